"""What `load_state_dict` takes, what it refuses at once, and whose state a parameter gets."""

from __future__ import annotations

import copy
import io
import subprocess
import sys

import pytest
import torch
from torch import nn

from mofo.torch import MoFO
from mofo.torch._settings import OPTIONS
from support import environment
from torch_support import same_bits


def made(cls=MoFO, dtype=torch.float32, order=(0, 1, 2), steps=2, **options):
    """Three parameters of one shape, in any order, and an optimizer that has stepped them."""
    params = [(f"p{number}", nn.Parameter(torch.full((4, 2), 1.0 + number, dtype=dtype))) for number in range(3)]
    optimizer = cls([params[number] for number in order], **options)
    for step in range(steps):
        for number, (_, param) in enumerate(params):
            param.grad = torch.full_like(param, 1.0 + number + step)
        optimizer.step()
    return [param for _, param in params], optimizer


def refused(optimizer, state_dict, message):
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state_dict)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, state in before["state"].items():
        assert all(torch.equal(after["state"][key][part], value) for part, value in state.items())
    optimizer.step()


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, "parameter 0 .* has momentum_buffer: it is of another"),
        (torch.optim.RMSprop, {}, "has square_avg"),
        (torch.optim.NAdam, {}, "has mu_product"),
        (torch.optim.Adamax, {}, "has exp_inf"),
        (torch.optim.Adagrad, {}, "has sum"),
        (torch.optim.AdamW, {"amsgrad": True}, "amsgrad"),
        (torch.optim.Adam, {"weight_decay": 0.1}, "group 0 .*weight_decay = 0.1 is Adam's"),
    ],
)
def test_states_of_other_optimizers_are_refused(cls, options, message):
    _, theirs = made(cls, **options)
    refused(made()[1], theirs.state_dict(), message)


def test_amsgrad_is_seen_in_the_state_alone():
    state_dict = made(torch.optim.AdamW, amsgrad=True)[1].state_dict()
    state_dict["param_groups"][0]["amsgrad"] = False
    refused(made()[1], state_dict, "has max_exp_avg_sq")


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (torch.optim.AdamW, {"foreach": True, "weight_decay": 0.1}),
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.Adam, {"weight_decay": 0.0}),
    ],
)
def test_states_of_adam_pass_whatever_else_their_groups_have(cls, options):
    params, theirs = made(cls, **options)
    ours = MoFO([(f"p{number}", param) for number, param in enumerate(params)], update_fraction=1.0)
    ours.load_state_dict(theirs.state_dict())
    for param in params:
        assert torch.equal(ours.state[param]["exp_avg"], theirs.state[param]["exp_avg"])
    ours.step()
    assert all(ours.state[param]["step"].item() == 3 for param in params)


def changed(change, **options):
    state_dict = copy.deepcopy(made(**options)[1].state_dict())
    change(state_dict["state"][1], state_dict["param_groups"][0])
    return state_dict


def test_what_could_not_be_stepped_is_refused_while_loading():
    ours = made()[1]
    doubles = changed(lambda state, group: state.update(exp_avg=state["exp_avg"].double()))
    refused(ours, doubles, r"exp_avg of parameter 1 .* torch.float64, which torch.float32 cannot hold \(state_dtype\)")
    cut = changed(lambda state, group: group.update(state_dtype=torch.bfloat16))
    refused(ours, cut, "group 0 .* state_dtype is torch.bfloat16, but the optimizer's torch.float32")
    bf16 = made(state_dtype=torch.bfloat16)[1]
    cut = changed(lambda state, group: group.pop("state_dtype"))
    refused(bf16, cut, "exp_avg of parameter 0 .* torch.float32, which torch.bfloat16")
    refused(
        ours, changed(lambda state, group: state.pop("exp_avg_sq")), "parameter 1 in the state dict has no exp_avg_sq"
    )
    refused(ours, changed(lambda state, group: state.pop("step")), "has no step")
    with_master = changed(lambda state, group: state.update(master=torch.ones(4, 2)))
    refused(ours, with_master, "has a master copy, but master_weights is off")


def test_the_same_names_in_another_order_get_their_own_state():
    params, theirs = made(num_blocks=[1, 2, 4])
    own, ours = made(order=(2, 0, 1), steps=0, num_blocks=[4, 1, 2])
    with torch.no_grad():
        for param, value in zip(own, params):
            param.copy_(value)
    ours.load_state_dict(theirs.state_dict())
    group = ours.param_groups[0]
    assert group["param_names"] == ["p2", "p0", "p1"] and list(group["num_blocks"]) == [4, 1, 2]
    for optimizer, stepped in ((theirs, params), (ours, own)):
        for number, param in enumerate(stepped):
            param.grad = torch.arange(8.0).view(4, 2) - number
        optimizer.step()
    for param, expected in zip(own, params):
        assert same_bits(param, expected)
        assert same_bits(ours.state[param]["exp_avg"], theirs.state[expected]["exp_avg"])


OTHERS = {
    "update_fraction": 0.5,
    "num_blocks": 2,
    "filter": "update",
    "weight_decay_scope": "all",
    "master_weights": True,
    "rounding": "nearest",
}
RESTORED = {"lr": 0.5, "betas": (0.1, 0.2), "eps": 0.25, "weight_decay": 0.125, "maximize": True, "seed": 9}


def test_the_state_dict_brings_pytorchs_options_and_the_seed_and_all_others_are_the_optimizers():
    _, theirs = made(**RESTORED, update_fraction=0.75)
    own, ours = made(steps=0, **OTHERS)
    ours.load_state_dict(theirs.state_dict())
    group = ours.param_groups[0]
    assert {option: group[option] for option in OTHERS} == OTHERS
    assert {option: group[option] for option in RESTORED} == RESTORED
    assert {*OTHERS, *RESTORED, "state_dtype"} == set(OPTIONS)
    ours.step()


def test_masters_that_the_state_dict_lacks_start_from_the_parameters():
    theirs = made(dtype=torch.bfloat16)[1]
    own, ours = made(dtype=torch.bfloat16, steps=0, master_weights=True)
    ours.load_state_dict(theirs.state_dict())
    own[0].grad = torch.zeros_like(own[0])
    ours.step()
    assert ours.state[own[0]]["master"].dtype is torch.float32 and ours.state[own[0]]["step"].item() == 3


def test_parameters_that_changed_their_groups_get_their_own_state():
    params, theirs = made()
    ours = MoFO([{"params": [("p1", params[1])]}, {"params": [("p0", params[0]), ("p2", params[2])]}])
    state_dict = copy.deepcopy(theirs.state_dict())
    first = {**state_dict["param_groups"][0], "params": [0], "param_names": ["p0"], "lr": 0.5}
    state_dict["param_groups"] = [first, {**first, "params": [1, 2], "param_names": ["p1", "p2"], "lr": 0.25}]
    ours.load_state_dict(state_dict)
    assert [group["lr"] for group in ours.param_groups] == [0.5, 0.25]
    for param in params:
        assert torch.equal(ours.state[param]["exp_avg"], theirs.state[param]["exp_avg"])


def test_other_names_are_matched_by_place():
    params, theirs = made()
    ours = MoFO([(f"module.p{number}", param) for number, param in enumerate(params)])
    ours.load_state_dict(theirs.state_dict())
    for param in params:
        assert torch.equal(ours.state[param]["exp_avg"], theirs.state[param]["exp_avg"])


def test_what_a_wrapper_keeps_in_the_state_is_passed_on():
    params, theirs = made()
    slow = {param: torch.full((4, 2), 0.5 + number) for number, param in enumerate(params)}
    for param in params:
        theirs.state[param]["lookahead_slow"] = slow[param]
        theirs.state[param]["counts"] = {"k": 5}
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    own, ours = made(steps=0)
    ours.load_state_dict(torch.load(file, weights_only=True))
    for param, other in zip(params, own):
        assert torch.equal(ours.state[other]["lookahead_slow"], slow[param])
        assert ours.state[other]["counts"] == {"k": 5}
        assert same_bits(ours.state[other]["exp_avg"], theirs.state[param]["exp_avg"])
        other.grad = torch.ones(4, 2)
    ours.step()
    assert torch.equal(ours.state[own[1]]["lookahead_slow"], slow[params[1]])
    alone = made(steps=0)[1]
    state_dict = alone.state_dict()
    state_dict["state"] = {0: {"lookahead_slow": torch.ones(4, 2)}}
    alone.load_state_dict(state_dict)
    alone.step()


def test_a_state_dict_that_is_loaded_keeps_its_values():
    state_dict = copy.deepcopy(made()[1].state_dict())
    expected = copy.deepcopy(state_dict)
    for _ in range(2):
        # As whoever returns to the best state again and again does.
        _, ours = made(steps=0)
        ours.load_state_dict(state_dict)
        for param in ours.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)
            assert ours.state[param]["step"].item() == 2
        ours.step()
        for key, state in expected["state"].items():
            assert all(torch.equal(state_dict["state"][key][part], value) for part, value in state.items())


PEAK = """
import resource, sys
import torch
from torch import nn
from mofo.torch import MoFO

optimizer_class = {"MoFO": MoFO, "AdamW": torch.optim.AdamW}[sys.argv[1]]
torch.set_num_threads(1)
params = [nn.Parameter(torch.ones(1 << 20)) for _ in range(24)]
optimizer = optimizer_class(params)
for param in params:
    param.grad = torch.ones_like(param)
if sys.argv[3] == "save":
    optimizer.step()
    torch.save(optimizer.state_dict(), sys.argv[2])
else:
    optimizer.load_state_dict(torch.load(sys.argv[2], weights_only=True))
    optimizer.step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_resuming_takes_no_more_memory_than_with_adamw(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-c", PEAK, *arguments]
        return subprocess.run(command, env=environment(), check=True, capture_output=True, text=True).stdout

    peaks = {}
    for name in ("MoFO", "AdamW"):
        run(name, str(tmp_path / name), "save")
        peaks[name] = int(run(name, str(tmp_path / name), "load"))
    # The moments are 192 MiB; the library itself takes some.
    assert peaks["MoFO"] < peaks["AdamW"] + 40, peaks


def test_a_tensor_that_shares_its_memory_with_another_is_copied_at_once():
    param = nn.Parameter(torch.linspace(1, 2, 100))
    param.grad = torch.ones(100)
    optimizer = MoFO([param])
    optimizer.step()
    memory = torch.full((100,), 0.5)
    saved = optimizer.state_dict()
    saved["state"][0] = {"step": torch.tensor(1), "exp_avg": memory.detach(), "exp_avg_sq": torch.ones(100)}
    optimizer.load_state_dict(saved)
    del saved
    memory.fill_(7.0)
    optimizer.step()
    assert optimizer.state[param]["exp_avg"][0].item() < 1
