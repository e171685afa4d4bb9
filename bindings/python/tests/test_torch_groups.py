"""mofo.torch.param_groups."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mofo.torch import MoFO, param_groups
from torch_support import same_bits, train, transformer


class RMSNorm(nn.Module):
    """Not one of PyTorch's: known by its name."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(10, 4)
        self.ln_1 = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 4)
        self.rms = RMSNorm()
        self.attention = nn.MultiheadAttention(4, 1)
        self.normalizer = nn.Linear(4, 4, bias=False)
        self.lm_head = nn.Linear(4, 10, bias=False)
        self.lm_head.weight = self.wte.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def names(groups):
    return [group["param_names"] for group in groups]


WEIGHTS = ["wte.weight", "fc.weight", "attention.in_proj_weight", "attention.out_proj.weight"]
UNFILTERED = [
    "ln_1.weight",
    "ln_1.bias",
    "fc.bias",
    "rms.scale",
    "attention.in_proj_bias",
    "attention.out_proj.bias",
    "normalizer.weight",
]


def test_biases_and_norms_are_not_filtered_and_tied_parameters_come_once():
    model = Model()
    groups = param_groups(model, update_fraction=0.05, weight_decay=0.1)
    assert [sorted(group) for group in names(groups)] == [sorted(WEIGHTS), sorted(UNFILTERED)]
    assert [(group["update_fraction"], group["weight_decay"]) for group in groups] == [(0.05, 0.1), (1.0, 0.0)]
    by_name = dict(model.named_parameters())
    for group in groups:
        assert all(by_name[name] is param for name, param in zip(group["param_names"], group["params"]))


@pytest.mark.parametrize(
    "exempt",
    [
        ["wte.weight"],
        ["*wte*"],
        ["lm_head.*"],
        [nn.Embedding],
        "module",
        "tied module",
        "parameter",
        [nn.Embedding, "lm_*"],
    ],
)
def test_more_can_be_exempted(exempt):
    model = Model()
    exempt = {"module": [model.wte], "tied module": [model.lm_head], "parameter": [model.wte.weight]}.get(
        exempt if isinstance(exempt, str) else "", exempt
    )
    filtered, exempted, unfiltered = param_groups(model, update_fraction=0.05, weight_decay=0.1, exempt=exempt)
    assert sorted(filtered["param_names"]) == sorted(WEIGHTS[1:])
    assert exempted["param_names"] == ["wte.weight"]
    assert (exempted["update_fraction"], exempted["weight_decay"]) == (1.0, 0.1)
    assert sorted(unfiltered["param_names"]) == sorted(UNFILTERED)


@pytest.mark.parametrize("exempt", ["lm_haed", nn.Conv2d, nn.Linear(1, 1), nn.Parameter(torch.ones(1))])
def test_an_exemption_that_matches_nothing_is_an_error(exempt):
    with pytest.raises(ValueError, match="exempt: no parameter of the model matches"):
        param_groups(Model(), exempt=[exempt])


def test_wrong_arguments():
    with pytest.raises(TypeError, match="exempt takes names"):
        param_groups(Model(), exempt=[3])
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        param_groups(Model().requires_grad_(False))
    with pytest.raises(ValueError, match="update_fraction"):
        MoFO(param_groups(Model(), update_fraction=2.0))


def test_a_model_of_norms_alone_has_one_group():
    (group,) = param_groups(nn.LayerNorm(3))
    assert group["update_fraction"] == 1.0


def test_the_groups_work_as_they_should():
    model = transformer()
    before = copy.deepcopy(model)
    optimizer = MoFO(param_groups(model, update_fraction=0.05, exempt=[nn.Embedding]), lr=1e-3)
    train(model, optimizer, range(1))
    share = {
        name: (old != new).float().mean().item()
        for (name, old), new in zip(before.named_parameters(), model.parameters())
    }
    assert share["layers.layers.0.linear1.weight"] == pytest.approx(0.05, abs=0.01)
    assert share["ln_f.weight"] == 1.0 and share["wte.weight"] == 1.0


def test_torch_optimizers_take_the_groups_too():
    model, other = transformer(), transformer()
    train(model, torch.optim.AdamW(param_groups(model), lr=1e-3, eps=1e-6), range(2))
    optimizer = MoFO(param_groups(other, update_fraction=1.0), lr=1e-3, eps=1e-6)
    train(other, optimizer, range(2))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(model.parameters(), other.parameters()))
    assert not all(same_bits(a, b) for a, b in zip(model.parameters(), transformer().parameters()))


def test_many_groups_take_time_in_proportion():
    params = [nn.Parameter(torch.ones(8)) for _ in range(1600)]

    def looked_at(count):
        seen = []
        optimizer = MoFO([{"params": [params[0]]}])
        original = optimizer._check_all_groups
        optimizer._check_all_groups = lambda: (seen.append(1), original())
        for param in params[1:count]:
            optimizer.add_param_group({"params": [param]})
        return seen

    # No group made it necessary to look at all the others.
    assert looked_at(1600) == []


def test_conflicts_are_found_among_many_groups_and_only_where_they_are():
    memory = torch.ones(64)
    params = [nn.Parameter(memory[8 * number : 8 * number + 8]) for number in range(7)]
    optimizer = MoFO([{"params": [(f"p{number}", param)]} for number, param in enumerate(params)])
    for named, message in [
        (("p3", nn.Parameter(torch.ones(8))), "two parameters are named p3"),
        (("new", nn.Parameter(memory[20:23])), "parameters p2 and new share memory"),
        (("new", nn.Parameter(memory[55:60])), "parameters p6 and new share memory"),
    ]:
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group({"params": [named]})
        assert len(optimizer.param_groups) == 7
    # One that has moved is in nobody's way where it was.
    params[2].data = torch.ones(8)
    optimizer.add_param_group({"params": [("new", nn.Parameter(memory[16:24]))]})
    with pytest.raises(ValueError, match="parameters new and newer share memory"):
        optimizer.add_param_group({"params": [("newer", nn.Parameter(memory[23:24]))]})
    # Nor is one that was taken out by hand.
    del optimizer.param_groups[0]
    optimizer.add_param_group({"params": [("p0", nn.Parameter(memory[:8]))]})
    assert len(optimizer.param_groups) == 8
    clone = copy.deepcopy(optimizer)
    with pytest.raises(ValueError, match="two parameters are named p6"):
        clone.add_param_group({"params": [("p6", nn.Parameter(torch.ones(1)))]})
