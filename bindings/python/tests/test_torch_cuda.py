"""mofo.torch on an NVIDIA GPU; the CPU is the reference, bit for bit."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import nn

import mofo
from mofo.torch import MoFO, param_groups
from torch_support import bits, same_bits, same_parameters, train, transformer


@pytest.fixture(autouse=True)
def cuda():
    if not torch.cuda.is_available():
        if os.environ.get("MOFO_REQUIRE_CUDA") == "1":
            pytest.fail("MOFO_REQUIRE_CUDA is 1, but there is no CUDA device")
        pytest.skip("skipped: no CUDA device")


OPTIONS = {
    "f32": (torch.float32, {}),
    "bf16 moments": (torch.float32, {"state_dtype": torch.bfloat16}),
    "bf16": (torch.bfloat16, {}),
    "bf16 with masters": (torch.bfloat16, {"master_weights": True, "weight_decay": 0.1}),
    "f16": (torch.float16, {"rounding": "nearest"}),
}


def same_on_both(one, other):
    return all(same_bits(a.detach().cpu(), b.detach().cpu()) for a, b in zip(one, other))


@pytest.mark.parametrize(("dtype", "options"), OPTIONS.values(), ids=OPTIONS)
def test_the_bits_are_those_of_the_cpu(dtype, options):
    generator = torch.Generator().manual_seed(0)
    shapes = [(300_000,), (64, 65), (7,)]
    here = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    there = [param.detach().cuda().requires_grad_() for param in here]
    optimizers = [MoFO(params, lr=1e-2, **options) for params in (here, there)]
    for _ in range(5):
        for cpu, gpu in zip(here, there):
            cpu.grad = torch.randn(cpu.shape, generator=generator).to(dtype)
            gpu.grad = cpu.grad.cuda()
        for optimizer in optimizers:
            optimizer.step()
    assert same_on_both(here, there)
    for cpu, gpu in zip(here, there):
        for part in ("exp_avg", "exp_avg_sq"):
            assert optimizers[1].state[gpu][part].is_cuda
            assert same_on_both([optimizers[0].state[cpu][part]], [optimizers[1].state[gpu][part]])


def test_steps_are_made_on_the_current_stream():
    param = nn.Parameter(torch.zeros(1 << 20, device="cuda"))
    optimizer = MoFO([param], lr=1.0, update_fraction=1.0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.cuda._sleep(20_000_000)
            param.grad = torch.full_like(param, 2.0)
            optimizer.step()
        param.detach().mul_(0.0)
    stream.synchronize()
    assert not param.detach().any()


def test_a_model_that_moves_to_the_gpu_and_back_takes_its_state_along():
    param, plain = (nn.Parameter(torch.linspace(-1, 1, 5000)) for _ in range(2))
    moving, staying = MoFO([param]), MoFO([plain])
    for step in range(6):
        if step in (2, 4):
            param.data = param.data.to("cuda" if step == 2 else "cpu")
        plain.grad = torch.sin(torch.arange(5000) * (step + 1.0))
        param.grad = plain.grad.to(param.device)
        moving.step()
        staying.step()
        assert moving.state[param]["exp_avg"].device == param.device
    assert same_bits(param, plain) and moving.state[param]["step"].item() == 6


def test_training_and_resuming():
    def start():
        return transformer().cuda()

    def made(model):
        return MoFO(param_groups(model), lr=3e-3, state_dtype=torch.bfloat16)

    model = start()
    optimizer = made(model)
    train_on_gpu(model, optimizer, range(3))
    resumed = start()
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    loaded = made(resumed)
    # As from a file: on the CPU.
    state = copy.deepcopy(optimizer.state_dict())
    for entry in state["state"].values():
        entry.update({name: value.cpu() for name, value in entry.items()})
    loaded.load_state_dict(state)
    train_on_gpu(model, optimizer, range(3, 6))
    train_on_gpu(resumed, loaded, range(3, 6))
    assert same_parameters(model, resumed)


def train_on_gpu(model, optimizer, steps):
    class OnGpu(nn.Module):
        def forward(self, batch):
            return model(batch.cuda()).cpu()

    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return train(OnGpu(), optimizer, steps)
    finally:
        torch.use_deterministic_algorithms(deterministic)


def test_an_optimizer_of_both_devices():
    here = nn.Parameter(torch.ones(100))
    there = nn.Parameter(torch.ones(100, device="cuda"))
    optimizer = MoFO([here, there])
    here.grad = torch.linspace(0, 1, 100)
    there.grad = here.grad.cuda()
    optimizer.step()
    assert (bits(here) == bits(there.detach().cpu())).all()


def test_a_step_in_a_graph_is_refused():
    param = nn.Parameter(torch.ones(100, device="cuda"))
    optimizer = MoFO([param])
    param.grad = torch.ones(100, device="cuda")
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), pytest.raises(mofo.Error, match="captured"):
        optimizer.step()
