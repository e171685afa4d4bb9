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


@pytest.mark.parametrize("bucket_views", [False, True])
def test_two_processes_end_with_the_same_bits_as_one_with_the_mean_gradient(bucket_views, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = f"import test_torch_ddp as t, sys; t.worker(int(sys.argv[1]), {str(tmp_path)!r}, {bucket_views})"
    processes = [
        subprocess.Popen([sys.executable, "-c", command, str(rank)], env=environment, cwd=Path(__file__).parent)
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
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
