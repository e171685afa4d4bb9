"""Whatever PyTorch's default device is, tensors are made where they belong."""

from __future__ import annotations

import ast
import io

import pytest
import torch
from torch import nn

import mofo
from mofo.checkpoint import from_mofo, to_adamw, to_mofo
from mofo.torch import MoFO
from support import ROOT

SOURCES = sorted((ROOT / "bindings" / "python" / "src" / "mofo").rglob("*.py"))

FACTORIES = {
    *("arange", "as_tensor", "empty", "empty_strided", "eye", "from_file", "full", "linspace", "ones", "rand"),
    *("randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros"),
}


def test_every_tensor_is_made_on_a_device_that_is_named():
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES:
                assert ast.unparse(node.func.value) == "torch"
                found.append((f"{path.name}:{node.lineno}", [keyword.arg for keyword in node.keywords]))
    assert len(found) >= 8
    assert [place for place, keywords in found if "device" not in keywords] == []


def test_only_one_module_hands_out_addresses():
    """Elsewhere `data_ptr` only tells whether a tensor has moved, or what shares memory."""
    calls = {path.name for path in SOURCES if ".data_ptr()" in path.read_text(encoding="utf-8")}
    assert calls == {"_torch_memory.py", "_engine.py", "_memory.py"}


@pytest.fixture(params=["default", "context"])
def elsewhere(request):
    """The meta device is PyTorch's default, while the test's own tensors are on the CPU."""
    if request.param == "context":
        with torch.device("meta"):
            yield
        return
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


def trained(dtype, numel=24, steps=2, **options):
    param = nn.Parameter(torch.linspace(1, 2, numel, dtype=dtype, device="cpu"))
    optimizer = MoFO([("w", param)], lr=0.1, state_dtype=torch.float32, **options)
    go_on(param, optimizer, steps)
    return param, optimizer


def go_on(param, optimizer, steps):
    for step in range(steps):
        param.grad = torch.linspace(-1, 1 + step, param.numel(), dtype=param.dtype, device="cpu")
        optimizer.step()


@pytest.mark.parametrize(("dtype", "master"), [(torch.float32, False), (torch.bfloat16, True)])
@pytest.mark.parametrize("numel", [24, 1 << 19])
def test_training_and_resuming(elsewhere, dtype, master, numel):
    whole = trained(dtype, numel, 3, master_weights=master)[0]
    param, optimizer = trained(dtype, numel, 2, master_weights=master)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = MoFO([("w", param)], lr=0.1, master_weights=master)
    resumed.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    param.grad = torch.linspace(-1, 3, param.numel(), dtype=param.dtype, device="cpu")
    resumed.step()
    assert torch.equal(param, whole)
    assert all(tensor.device.type == "cpu" for tensor in resumed.state[param].values())


def test_conversions(elsewhere, tmp_path):
    param, optimizer = trained(torch.bfloat16, master_weights=True)
    path = tmp_path / "state.safetensors"
    from_mofo(optimizer.state_dict(), path)
    for back in (
        to_mofo(path, optimizer.state_dict()),
        to_adamw(path, optimizer.state_dict(), drop_masters=True),
    ):
        state = back["state"][0]
        assert all(tensor.device.type == "cpu" for tensor in state.values())
        assert torch.equal(state["exp_avg"], optimizer.state[param]["exp_avg"]) and state["step"].item() == 2


def on_meta(part):
    param, optimizer = trained(torch.float32)
    state = optimizer.state[param]
    state[part] = torch.empty_like(state[part], device="meta")
    return param, optimizer


@pytest.mark.parametrize("part", ["exp_avg", "exp_avg_sq", "step"])
def test_a_state_without_numbers_is_refused(part):
    param, optimizer = on_meta(part)
    before = param.detach().clone()
    with pytest.raises(mofo.Error, match=r"parameter w has .*meta device"):
        optimizer.step()
    assert torch.equal(param, before)
    with pytest.raises(ValueError, match="on the meta device"):
        trained(torch.float32)[1].load_state_dict(optimizer.state_dict())
