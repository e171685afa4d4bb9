"""AdamW's checkpoints as mofo's and back: the bits of the moments, and training that goes on with them."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import safe_open, save_file

import mofo
from mofo.checkpoint import from_adamw, main, parameter_names, to_adamw
from support import environment

MOMENTS = ("exp_avg", "exp_avg_sq")


def model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3)).to(dtype)


def train(trained: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(16, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        trained(inputs.to(trained[0].weight.dtype)).float().square().mean().backward()
        optimizer.step()


def trained_adamw(dtype: torch.dtype = torch.float32, steps: int = 3) -> tuple[torch.nn.Module, torch.optim.AdamW]:
    made = model(dtype)
    optimizer = torch.optim.AdamW(made.named_parameters(), lr=1e-2, weight_decay=0.1)
    train(made, optimizer, range(steps))
    return made, optimizer


def assert_same_bits(one: torch.Tensor, other: torch.Tensor) -> None:
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert one.reshape(-1).view(torch.uint8).equal(other.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_every_bit_is_the_same(dtype: torch.dtype, tmp_path: Path) -> None:
    made, adamw = trained_adamw(dtype)
    train(made, adamw, range(3, 5))
    before = copy.deepcopy(adamw.state_dict())
    from_adamw(adamw.state_dict(), tmp_path / "state.safetensors")
    fresh = torch.optim.AdamW(model(dtype).named_parameters(), lr=0.5)
    shapes = {name: parameter.shape for name, parameter in made.named_parameters()}
    back = to_adamw(tmp_path / "state.safetensors", fresh.state_dict(), shapes=shapes)
    assert back["param_groups"][0]["lr"] == 0.5
    assert set(back["state"]) == set(before["state"])
    for key, state in before["state"].items():
        assert set(back["state"][key]) == set(state)
        for part in ("step", *MOMENTS):
            assert_same_bits(back["state"][key][part], state[part])


def test_the_file_is_one_of_mofo(tmp_path: Path) -> None:
    made, adamw = trained_adamw()
    from_adamw(adamw.state_dict(), tmp_path / "state.safetensors")
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        assert set(file.keys()) == {f"{name}.{moment}" for name, _ in made.named_parameters() for moment in MOMENTS}
        for name, parameter in made.named_parameters():
            for moment in MOMENTS:
                assert_same_bits(file.get_tensor(f"{name}.{moment}"), adamw.state[parameter][moment].flatten())


def test_mofo_goes_on_where_adamw_stopped_and_adamw_where_mofo_did(tmp_path: Path) -> None:
    made, adamw = trained_adamw()
    path = tmp_path / "state.safetensors"
    from_adamw(adamw.state_dict(), path)
    other = copy.deepcopy(made)
    for step in range(3, 6):
        train(made, adamw, range(step, step + 1))

    # With an update fraction of 1 MoFO is AdamW, up to the rounding of the arithmetic.
    with mofo.Optimizer(learning_rate=1e-2, weight_decay=0.1, update_fraction=1.0) as optimizer:
        for name, parameter in other.named_parameters():
            optimizer.add(name, parameter.detach().numpy())
        optimizer.load(path)
        for step in range(3, 5):
            other.zero_grad()
            inputs = torch.randn(16, 5, generator=torch.Generator().manual_seed(step))
            other(inputs).square().mean().backward()
            for name, parameter in other.named_parameters():
                optimizer.bind(name, grad=parameter.grad.numpy())
            optimizer.step()
        optimizer.save(path)
    fresh = torch.optim.AdamW(other.named_parameters(), lr=1e-2, weight_decay=0.1)
    fresh.load_state_dict(to_adamw(path, adamw.state_dict()))
    assert all(state["step"] == 5 for state in fresh.state.values())
    train(other, fresh, range(5, 6))
    for ours, theirs in zip(other.parameters(), made.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        for moment in MOMENTS:
            torch.testing.assert_close(fresh.state[ours][moment], adamw.state[theirs][moment], rtol=1e-4, atol=1e-9)


def test_names_follow_the_groups_not_the_model(tmp_path: Path) -> None:
    made = model()
    decayed = [parameter for parameter in made.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in made.parameters() if parameter.dim() <= 1]
    adamw = torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}])
    train(made, adamw, range(2))
    names = parameter_names(adamw, made)
    assert names[:3] == ["0.weight", "2.weight", "0.bias"]
    from_adamw(adamw.state_dict(), tmp_path / "state.safetensors", names=names)
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        for name, parameter in made.named_parameters():
            assert_same_bits(file.get_tensor(f"{name}.exp_avg"), adamw.state[parameter]["exp_avg"].flatten())
    with pytest.raises(mofo.Error, match="none of the model's"):
        parameter_names(adamw, model())


def test_parameters_that_were_never_stepped_need_a_shape(tmp_path: Path) -> None:
    made = model()
    made[2].weight.requires_grad_(False)
    adamw = torch.optim.AdamW(made.named_parameters())
    train(made, adamw, range(2))
    path = tmp_path / "state.safetensors"
    with pytest.raises(mofo.Error, match=r"'2\.weight' was never stepped"):
        from_adamw(adamw.state_dict(), path)
    assert not path.exists()
    shapes = {name: parameter.shape for name, parameter in made.named_parameters()}
    from_adamw(adamw.state_dict(), path, shapes=shapes)
    back = to_adamw(path, adamw.state_dict(), shapes=shapes)
    assert set(back["state"]) == set(adamw.state_dict()["state"])
    with pytest.raises(mofo.Error, match=r"'2\.weight' has no state"):
        to_adamw(path, adamw.state_dict())


def test_entries_are_in_the_order_of_their_indices(tmp_path: Path) -> None:
    adamw = torch.optim.AdamW([("w", torch.nn.Parameter(torch.zeros(2, 3)))])
    adamw.param_groups[0]["params"][0].grad = torch.arange(6.0).reshape(3, 2).T
    adamw.step()
    state_dict = adamw.state_dict()
    state_dict["state"][0]["exp_avg"] = torch.arange(6.0).reshape(3, 2).T
    from_adamw(state_dict, tmp_path / "state.safetensors")
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        assert file.get_tensor("w.exp_avg").tolist() == [0, 2, 4, 1, 3, 5]


def test_state_dicts_that_cannot_be_converted_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"

    def changed(**entries: Any) -> dict[str, Any]:
        state_dict = copy.deepcopy(trained_adamw()[1].state_dict())
        for name, value in entries.items():
            state_dict["state"][0][name] = value
        return state_dict

    unnamed = changed()
    del unnamed["param_groups"][0]["param_names"]
    for state_dict, names, text in [
        (unnamed, None, "no names for its 6 parameters"),
        (unnamed, ["a", "b"], "6 parameters, but 2 names"),
        (unnamed, list("abcdea"), "two parameters are named 'a'"),
        (changed(max_exp_avg_sq=torch.zeros(7, 5)), None, "amsgrad"),
        (changed(exp_avg=torch.zeros(5, 7)), None, "differ in shape"),
        (changed(exp_avg=torch.zeros(7, 5).half(), exp_avg_sq=torch.zeros(7, 5).half()), None, "float16"),
        (changed(exp_avg=torch.zeros(7, 5).bfloat16()), None, "differ in type"),
        (changed(step=torch.tensor(2.5)), None, r"step of '0.weight' is tensor\(2.5"),
        (changed(step="x"), None, "step of '0.weight' is 'x'"),
        (changed(step=float("nan")), None, "step of '0.weight' is nan"),
        (changed(step=0), None, "step of '0.weight' is 0"),
        (changed(exp_avg=[0.0] * 35), None, "exp_avg of '0.weight' is no dense tensor, but list"),
        (changed(), "a", "list of texts is needed as names, not 'a'"),
        (changed(), [1, 2, 3, 4, 5, 6], "list of texts is needed as names"),
        ({}, None, "a dict of nothing, not an optimizer's state"),
        ([], None, "is list, not an optimizer's state"),
        ({**changed(), "state": [1]}, None, "a `state` that is no dict of dicts"),
        ({**changed(), "state": {0: [1]}}, None, "a `state` that is no dict of dicts"),
        ({**changed(), "param_groups": {}}, None, "`param_groups` that are no list of dicts"),
        ({**changed(), "param_groups": [{"lr": 1.0}]}, None, "`params` of group 0"),
        ({**changed(), "param_groups": [{"params": [[0]]}]}, None, "`params` of group 0"),
        ({**changed(), "param_groups": [{"params": [0], "param_names": "a"}]}, None, "`param_names` of group 0"),
        (
            {**changed(), "param_groups": [{"params": [0, 0], "param_names": ["a", "b"]}]},
            None,
            "a parameter twice",
        ),
    ]:
        with pytest.raises(mofo.Error, match=text) as raised:
            from_adamw(state_dict, path, names=names)
        assert raised.value.status_name == "MOFO_ERROR_CHECKPOINT"
    assert not path.exists()


def test_moments_of_several_types_become_f32(tmp_path: Path) -> None:
    made = model(torch.bfloat16)
    made[1].float()
    adamw = torch.optim.AdamW(made.named_parameters())
    for parameter in made.parameters():
        parameter.grad = torch.randn_like(parameter)
    adamw.step()
    path = tmp_path / "state.safetensors"
    from_adamw(adamw.state_dict(), path)
    back = to_adamw(path, adamw.state_dict())
    kinds = set()
    for key, state in adamw.state_dict()["state"].items():
        for moment in MOMENTS:
            kinds.add(state[moment].dtype)
            assert_same_bits(back["state"][key][moment], state[moment].float())
    assert kinds == {torch.float32, torch.bfloat16}


def test_parameters_without_entries_are_converted(tmp_path: Path) -> None:
    weight, empty = (torch.nn.Parameter(torch.ones(shape)) for shape in ((3,), (0, 4)))
    weight.grad, empty.grad = torch.ones(3), torch.ones(0, 4)
    adamw = torch.optim.AdamW([("weight", weight), ("empty", empty)])
    adamw.step()
    path = tmp_path / "state.safetensors"
    from_adamw(adamw.state_dict(), path)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {f"{name}.{moment}" for name in ("weight", "empty") for moment in MOMENTS}
    with mofo.Optimizer() as optimizer:
        optimizer.add("weight", numel=3)
        optimizer.add("empty", numel=0)
        optimizer.load(path)
        assert optimizer.state("empty").step_count == 1
    back = to_adamw(path, adamw.state_dict())
    assert_same_bits(back["state"][0]["exp_avg"], adamw.state[weight]["exp_avg"])
    fresh = torch.optim.AdamW([("weight", weight), ("empty", empty)])
    fresh.load_state_dict(to_adamw(path, fresh.state_dict(), shapes={"weight": (3,), "empty": (0, 4)}))
    adamw.step()
    fresh.step()
    assert_same_bits(fresh.state[weight]["exp_avg"], adamw.state[weight]["exp_avg"])


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _, adamw = trained_adamw()
    like, path = adamw.state_dict(), tmp_path / "state.safetensors"
    from_adamw(like, path)
    broken = bytearray(path.read_bytes())
    broken[-1] ^= 1
    (tmp_path / "broken").write_bytes(broken)
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    (tmp_path / "none").write_bytes(b"text")
    for name in ("broken", "other", "none", "missing"):
        with pytest.raises(mofo.Error) as raised:
            to_adamw(tmp_path / name, like)
        assert raised.value.status_name == "MOFO_ERROR_CHECKPOINT", name
    with pytest.raises(mofo.Error, match="'x' among them"):
        to_adamw(path, like, names=["x", *like["param_groups"][0]["param_names"][1:]])
    with pytest.raises(mofo.Error, match=r"35 entries in mofo's checkpoint, but shape \(7, 6\)"):
        wrong = copy.deepcopy(like)
        wrong["state"][0]["exp_avg"] = torch.zeros(7, 6)
        to_adamw(path, wrong)


def test_master_copies_are_not_lost_unasked(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    like = torch.optim.AdamW([("w", weight)]).state_dict()
    with mofo.Optimizer(master_weights=True) as optimizer:
        param = torch.ones(4, dtype=torch.bfloat16)
        grad = torch.ones(4)
        optimizer.add("w", param.data_ptr(), grad.numpy(), dtype="bf16", numel=4)
        optimizer.step()
        optimizer.save(path)
        expected = torch.from_numpy(optimizer.state("w").exp_avg.copy()).reshape(2, 2)
    with pytest.raises(mofo.Error, match=r"master copies \('w'\)"):
        to_adamw(path, like, shapes={"w": (2, 2)})
    back = to_adamw(path, like, shapes={"w": (2, 2)}, drop_masters=True)
    assert_same_bits(back["state"][0]["exp_avg"], expected)


def test_the_command_converts_files(tmp_path: Path) -> None:
    made, adamw = trained_adamw()
    state_dict = adamw.state_dict()
    names = state_dict["param_groups"][0].pop("param_names")
    torch.save({"step": 3, "optimizer": state_dict}, tmp_path / "training.pt")
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    fresh = torch.optim.AdamW(made.parameters()).state_dict()
    torch.save({"optimizer": fresh}, tmp_path / "fresh.pt")
    save_file(made.state_dict(), tmp_path / "model.safetensors")

    def run(*arguments: str) -> None:
        command = [sys.executable, "-m", "mofo.checkpoint", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    run("from-adamw", "training.pt", "state.safetensors", "--key", "optimizer", "--names", "names.txt")
    options = ["--key", "optimizer", "--names", "names.txt", "--model", "model.safetensors"]
    run("to-adamw", "state.safetensors", "back.pt", "--like", "fresh.pt", *options)
    back = torch.load(tmp_path / "back.pt", weights_only=True)["optimizer"]
    for key, state in state_dict["state"].items():
        for part in ("step", *MOMENTS):
            assert_same_bits(back["state"][key][part], state[part])
    assert not list(tmp_path.glob("*.partial"))


def training_file(path: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    made, adamw = trained_adamw()
    whole = {"model": made.state_dict(), "optimizer": adamw.state_dict(), "epoch": 7}
    torch.save(whole, path)
    return made, whole


def test_with_a_key_everything_else_in_the_file_stays(tmp_path: Path) -> None:
    made, whole = training_file(tmp_path / "training.pt")
    training, state = str(tmp_path / "training.pt"), str(tmp_path / "state.safetensors")
    main(["from-adamw", training, state, "--key", "optimizer"])
    main(["to-adamw", state, training, "--like", training, "--key", "optimizer"])
    back = torch.load(training, weights_only=True)
    assert set(back) == set(whole) and back["epoch"] == 7
    for name, weight in made.state_dict().items():
        assert_same_bits(back["model"][name], weight)
    for key, parts in whole["optimizer"]["state"].items():
        for part in ("step", *MOMENTS):
            assert_same_bits(back["optimizer"]["state"][key][part], parts[part])


def test_layouts_of_other_tools_are_addressed(tmp_path: Path) -> None:
    made, adamw = trained_adamw()
    training, state = str(tmp_path / "lightning.ckpt"), str(tmp_path / "state.safetensors")
    whole = {"state_dict": made.state_dict(), "optimizer_states": [{"other": 1}, adamw.state_dict()], "epoch": 7}
    torch.save(whole, training)
    options = ["--key", "optimizer_states/1", "--model", training, "--model-key", "state_dict"]
    main(["from-adamw", training, state, *options])
    main(["to-adamw", state, training, "--like", training, *options])
    back = torch.load(training, weights_only=True)
    assert back["epoch"] == 7 and back["optimizer_states"][0] == {"other": 1}
    for key, parts in whole["optimizer_states"][1]["state"].items():
        for part in ("step", *MOMENTS):
            assert_same_bits(back["optimizer_states"][1]["state"][key][part], parts[part])
    for key in ("optimizer_states/2", "optimizer_states/-1", "epoch/0", "optimizer_states/x"):
        with pytest.raises(SystemExit, match="has no entry"):
            main(["from-adamw", training, state, "--key", key])
    with pytest.raises(SystemExit, match=r"is a folder: .* dcp_to_torch"):
        main(["from-adamw", str(tmp_path), state])


def test_keys_that_are_names_need_no_others(tmp_path: Path) -> None:
    made, adamw = trained_adamw()
    numbered = adamw.state_dict()
    names = numbered["param_groups"][0].pop("param_names")
    named = {
        "state": {names[key]: state for key, state in numbered["state"].items()},
        "param_groups": [{**numbered["param_groups"][0], "params": names}],
    }
    from_adamw(named, tmp_path / "state.safetensors")
    back = to_adamw(tmp_path / "state.safetensors", named)
    assert_same_bits(back["state"][names[0]]["exp_avg"], numbered["state"][0]["exp_avg"])


def test_what_a_wrapper_keeps_in_the_state_is_left_out(tmp_path: Path) -> None:
    _, adamw = trained_adamw()
    state_dict = adamw.state_dict()
    state_dict["state"][0] = {**state_dict["state"][0], "lookahead_slow": torch.ones(3)}
    from_adamw(state_dict, tmp_path / "state.safetensors")
    back = to_adamw(tmp_path / "state.safetensors", state_dict)
    assert set(back["state"][0]) == {"step", *MOMENTS}


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training_file(tmp_path / "training.pt")
    training, state = str(tmp_path / "training.pt"), str(tmp_path / "state.safetensors")
    main(["from-adamw", training, state, "--key", "optimizer"])
    before = Path(training).read_bytes()
    files = set(tmp_path.iterdir())
    synced = []
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        synced.append(descriptor)
        fsync(descriptor)

    def failing(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("no space left")

    command = ["to-adamw", state, training, "--like", training, "--key", "optimizer"]
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", failing)
        with pytest.raises(SystemExit, match="error: no space left"):
            main(command)
    assert Path(training).read_bytes() == before and set(tmp_path.iterdir()) == files
    monkeypatch.setattr(os, "fsync", counted)
    # Somebody's own file beside it is no concern of ours.
    (tmp_path / "training.pt.partial").write_text("mine", encoding="utf-8")
    main(command)
    assert synced and (tmp_path / "training.pt.partial").read_text(encoding="utf-8") == "mine"
    assert set(tmp_path.iterdir()) == {*files, tmp_path / "training.pt.partial"}


def test_the_command_says_what_is_wrong_and_runs_no_code_of_files(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "was here",)

    torch.save({"state": Evil(), "param_groups": []}, tmp_path / "evil.pt")
    torch.save({"model": {}}, tmp_path / "model.pt")
    torch.save([], tmp_path / "list.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_bytes(b"just text")
    for file, text in [
        ("evil.pt", "error: .*eights"),
        ("model.pt", "error: .*--key"),
        ("missing.pt", "error: .*missing"),
        ("empty.pt", "error: .*empty.pt cannot be loaded"),
        ("text.pt", "error: .*text.pt cannot be loaded"),
        ("list.pt", "error: .*list.pt holds.*is list"),
    ]:
        with pytest.raises(SystemExit, match=f"(?s){text}"):
            main(["from-adamw", str(tmp_path / file), str(tmp_path / "state.safetensors")])
    assert not (tmp_path / "was here").exists()
