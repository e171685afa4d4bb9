"""MoFO in PyTorch and the library's checkpoint: training goes on with the same bits, in either direction."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import safe_open
from torch import Tensor, nn

import mofo
from mofo.checkpoint import from_mofo, main, to_mofo
from mofo.torch import MoFO
from torch_support import same_bits

OPTIONS = [
    {},
    {"state_dtype": "bf16", "seed": 2**64 - 3},
    {"master_weights": True, "seed": 5},
    {"state_dtype": "bf16", "master_weights": True, "filter": "random", "seed": 9},
]


def model(dtype: torch.dtype) -> nn.Module:
    """A part of 16 bits, if asked for, and a norm that stays in f32."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)).to(dtype)
    made[1].float()
    return made


def set_grads(made: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in made.parameters():
        # Written to where it is: the library's own optimizer is bound to it.
        value = torch.randn(parameter.shape, generator=generator)
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.copy_(value)


def torch_optimizer(made: nn.Module, named: bool = True, **options: Any) -> MoFO:
    if "state_dtype" in options:
        options["state_dtype"] = torch.bfloat16
    params = made.named_parameters() if named else made.parameters()
    return MoFO(params, lr=1e-2, weight_decay=0.1, update_fraction=0.25, **options)


def library_optimizer(made: nn.Module, names: list[str], **options: Any) -> mofo.Optimizer:
    optimizer = mofo.Optimizer(learning_rate=1e-2, weight_decay=0.1, update_fraction=0.25, num_threads=1, **options)
    for name, parameter in zip(names, made.parameters()):
        kind = "f32" if parameter.dtype is torch.float32 else "bf16"
        grad: Tensor = parameter.grad
        optimizer.add(name, parameter.data_ptr(), grad.data_ptr(), numel=parameter.numel(), dtype=kind, grad_dtype=kind)
    return optimizer


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("named", [True, False])
def test_training_goes_on_with_the_same_bits_there_and_back(
    options: dict[str, Any], dtype: torch.dtype, named: bool, tmp_path: Path
) -> None:
    path = tmp_path / "state.safetensors"
    made = model(dtype)
    optimizer = torch_optimizer(made, named, **options)
    for step in range(3):
        set_grads(made, step)
        optimizer.step()
    other = copy.deepcopy(made)
    from_mofo(optimizer.state_dict(), path)
    names = [name for name, _ in made.named_parameters()] if named else [f"0.{number}" for number in range(6)]
    # Another seed: the checkpoint has the right one.
    set_grads(other, 3)
    with library_optimizer(other, names, **{**options, "seed": 77}) as library:
        library.load(path)
        for step in range(3, 6):
            set_grads(made, step)
            optimizer.step()
            set_grads(other, step)
            library.step()
        assert all(same_bits(a, b) for a, b in zip(made.parameters(), other.parameters()))
        library.save(path)

    resumed = torch_optimizer(other, named, **{**options, "seed": 123})
    resumed.load_state_dict(to_mofo(path, optimizer.state_dict()))
    shapes = {name: parameter.shape for name, parameter in zip(names, other.parameters())}
    from_fresh = to_mofo(path, torch_optimizer(other, named).state_dict(), shapes=shapes)
    assert from_fresh["param_groups"][0]["seed"] == options.get("seed", 0)
    for ours, theirs in zip(other.parameters(), made.parameters()):
        assert set(resumed.state[ours]) == set(optimizer.state[theirs])
        for part, value in optimizer.state[theirs].items():
            assert torch.equal(resumed.state[ours][part], value) and resumed.state[ours][part].dtype is value.dtype
    for step in range(6, 9):
        for trained, stepped in ((made, optimizer), (other, resumed)):
            set_grads(trained, step)
            stepped.step()
    assert all(same_bits(a, b) for a, b in zip(made.parameters(), other.parameters()))


def test_names_that_are_given_become_those_of_the_groups(tmp_path: Path) -> None:
    path, made = tmp_path / "state.safetensors", model(torch.float32)
    optimizer = torch_optimizer(made, named=False)
    set_grads(made, 0)
    optimizer.step()
    names = [f"layer{number}" for number in range(6)]
    from_mofo(optimizer.state_dict(), path, names=names)
    with safe_open(path, "pt") as file:
        assert "layer0.exp_avg" in file.keys()  # noqa: SIM118
    back = to_mofo(path, optimizer.state_dict(), names=names)
    assert back["param_groups"][0]["param_names"] == names


def test_what_a_checkpoint_cannot_hold_is_refused(tmp_path: Path) -> None:
    path, made = tmp_path / "state.safetensors", model(torch.bfloat16)
    parameters = list(made.parameters())
    optimizer = MoFO([{"params": parameters[:2], "seed": 1}, {"params": parameters[2:]}], master_weights=True)
    set_grads(made, 0)
    optimizer.step()
    with pytest.raises(mofo.Error, match="several values of seed"):
        from_mofo(optimizer.state_dict(), path)
    optimizer.param_groups[0]["seed"] = 0
    broken = copy.deepcopy(optimizer.state_dict())
    broken["state"][0]["master"] = broken["state"][0]["master"].half()
    with pytest.raises(mofo.Error, match=r"master copy of '0\.0' is of torch\.float16"):
        from_mofo(broken, path)
    assert not path.exists()
    from_mofo(optimizer.state_dict(), path)
    with pytest.raises(mofo.Error, match="parameters are not in"):
        to_mofo(path, torch_optimizer(made).state_dict())


def test_the_command_keeps_what_else_a_file_has(tmp_path: Path) -> None:
    made = model(torch.bfloat16)
    optimizer = torch_optimizer(made, seed=4, master_weights=True)
    set_grads(made, 0)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    training, state = str(tmp_path / "training.pt"), str(tmp_path / "state.safetensors")
    torch.save({"optimizer": before, "model": made.state_dict()}, training)
    main(["from-mofo", training, state, "--key", "optimizer"])
    main(["to-mofo", state, training, "--like", training, "--key", "optimizer"])
    back = torch.load(training, weights_only=True)
    assert set(back) == {"optimizer", "model"}
    assert back["optimizer"]["param_groups"] == before["param_groups"]
    for key, parts in before["state"].items():
        assert set(back["optimizer"]["state"][key]) == set(parts)
        for part, value in parts.items():
            assert torch.equal(back["optimizer"]["state"][key][part], value)
