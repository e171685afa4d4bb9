"""DistributedDataParallel with two processes on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mofo.torch import MoFO, param_groups
from torch_support import loss_of, same_bits, tokens, transformer

STEPS = 5


def optimizer_of(model: torch.nn.Module) -> MoFO:
    return MoFO(param_groups(model, update_fraction=0.1), lr=1e-2, state_dtype=torch.bfloat16, seed=4)


def worker(rank: int, folder: str, bucket_views: bool) -> None:
    """One of two processes: trains on its half of each batch, and leaves its weights and moments in a file."""
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = transformer(seed=rank)
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=bucket_views)
    optimizer = optimizer_of(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(ddp, tokens(step).chunk(2)[rank]).backward()
        optimizer.step()
    moments = [optimizer.state[param]["exp_avg"] for param in model.parameters()]
    torch.save([list(model.parameters()), moments], Path(folder, f"{rank}.pt"))
    distributed.destroy_process_group()
    # Past the end of the interpreter, during which a thread of gloo that still asks for its lock ends the process
    # (seen once in some hundred runs: "terminate called without an active exception").
    os._exit(0)


def in_two_processes(call: str) -> None:
    """Runs `worker`, or whatever is called with the rank as `rank`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = f"import test_torch_ddp as t, sys; rank = int(sys.argv[1]); {call}"
    processes = [
        subprocess.Popen([sys.executable, "-c", command, str(rank)], env=environment, cwd=Path(__file__).parent)
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()


def partial_gradient(rank: int, size: int) -> torch.Tensor:
    return torch.linspace(-1 - rank, 2, size)


def dtensor_worker(rank: int, folder: str) -> None:
    """One of two processes: steps replicated DTensors whose gradients are still to be summed over both."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate

    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    params = [torch.nn.Parameter(DTensor.from_local(torch.ones(n), mesh, [Replicate()])) for n in SIZES]
    optimizer = MoFO(params, update_fraction=0.5, lr=0.1)
    for _ in range(3):
        for param in params:
            param.grad = DTensor.from_local(partial_gradient(rank, len(param)), mesh, [Partial()])
        optimizer.step()
    torch.save([param.to_local().detach() for param in params], Path(folder, f"{rank}.pt"))
    distributed.destroy_process_group()
    os._exit(0)


SIZES = [40000, 40000, 30000]


def test_gradients_that_are_summed_for_the_step_live_as_long_as_it(tmp_path):
    in_two_processes(f"t.dtensor_worker(rank, {str(tmp_path)!r})")
    params = [torch.nn.Parameter(torch.ones(n)) for n in SIZES]
    optimizer = MoFO(params, update_fraction=0.5, lr=0.1)
    for _ in range(3):
        for param in params:
            param.grad = partial_gradient(0, len(param)) + partial_gradient(1, len(param))
        optimizer.step()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(same_bits(one, other) for one, other in zip(found, params))


@pytest.mark.parametrize("bucket_views", [False, True])
def test_two_processes_end_with_the_same_bits_as_one_with_the_mean_gradient(bucket_views, tmp_path):
    in_two_processes(f"t.worker(rank, {str(tmp_path)!r}, {bucket_views})")
    (weights, moments), other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert len(weights) > 10
    assert all(same_bits(a, b) for a, b in zip(weights + moments, other[0] + other[1]))

    # DistributedDataParallel divides each gradient by the number of processes, then adds them up.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = transformer(seed=0)
        optimizer = optimizer_of(model)
        for step in range(STEPS):
            sums = [torch.zeros_like(param) for param in model.parameters()]
            for half in tokens(step).chunk(2):
                optimizer.zero_grad()
                loss_of(model, half).backward()
                for total, param in zip(sums, model.parameters()):
                    total += param.grad / 2
            for total, param in zip(sums, model.parameters()):
                param.grad = total
            optimizer.step()
    finally:
        torch.set_num_threads(threads)
    assert all(same_bits(a, b) for a, b in zip(weights, model.parameters()))
