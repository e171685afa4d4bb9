"""Layers that are frozen and thawed by turns, as LISA and BAdam do: state that is dropped, groups that others edit."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from mofo.torch import MoFO, param_groups
from torch_support import same_bits, same_parameters, train, transformer


def stepped(dtype=torch.bfloat16, **options):
    """Two parameters that have been stepped; the first has a master copy of its own size."""
    params = [nn.Parameter(torch.ones(64, dtype=dtype)) for _ in range(2)]
    optimizer = MoFO(params, master_weights=True, **options)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    return params, optimizer


def drop(optimizer, param):
    del optimizer.state[param]


def clear(optimizer, param):
    optimizer.state.clear()


def drop_inside(optimizer, param):
    optimizer.state[param].clear()


def leave(optimizer, param):
    del optimizer.state[param]
    optimizer.param_groups[0]["params"].pop(0)


@pytest.mark.parametrize("forget", [drop, clear, drop_inside, leave])
@pytest.mark.parametrize("frozen", [True, False])
def test_dropped_state_is_freed_at_the_next_step(forget, frozen):
    (first, second), optimizer = stepped()
    tensors = [weakref.ref(value) for value in optimizer.state[first].values()]
    assert len(tensors) == 4
    forget(optimizer, first)
    if frozen:
        first.requires_grad_(False).grad = None
    optimizer.step()
    gc.collect()
    assert [tensor() for tensor in tensors] == [None] * 4
    thawed = first.requires_grad_(True)
    thawed.grad = torch.ones_like(thawed)
    optimizer.step()
    assert optimizer.state[second]["step"].item() in (2, 3)


def test_a_library_optimizer_that_has_no_tensors_left_is_freed():
    (first, second), optimizer = stepped()
    assert len(optimizer._engine._handles) == 1
    for param in (first, second):
        param.grad = None
        del optimizer.state[param]
    optimizer.step()
    assert optimizer._engine._handles == [] and optimizer._engine._handle_for == {}


def names_in_library(optimizer):
    return {row.param: row.name for row in optimizer._engine._rows()}


def filled(params):
    for number, param in enumerate(params):
        param.grad = torch.linspace(-1, 1 + number, param.numel()).view_as(param).to(param.dtype)


@pytest.mark.parametrize("given", [True, False])
def test_a_name_stays_with_its_parameter_when_groups_are_edited(given):
    results = []
    for edited in (False, True):
        params = [nn.Parameter(torch.ones(256, dtype=torch.bfloat16)) for _ in range(3)]
        group = {"params": params, **({"param_names": ["a", "b", "c"]} if given else {})}
        optimizer = MoFO([group], lr=0.1)
        filled(params)
        optimizer.step()
        params[0].grad = None
        if edited:
            optimizer.param_groups[0]["params"] = params[1:]
        optimizer.step()
        if edited:
            optimizer.param_groups[0]["params"] = [params[2], params[0], params[1]]
        filled(params)
        optimizer.step()
        results.append(params)
    # Names key the random bits of rounding.
    assert all(same_bits(one, other) for one, other in zip(*results))
    optimizer.param_groups[0]["params"].append(nn.Parameter(torch.ones(4)))
    filled(optimizer.param_groups[0]["params"])
    optimizer.step()
    assert names_in_library(optimizer)[optimizer.param_groups[0]["params"][3]] == "0.3"
    del optimizer.param_groups[0]["params"][0]
    optimizer.param_groups[0]["params"].append(nn.Parameter(torch.ones(4)))
    filled(optimizer.param_groups[0]["params"])
    optimizer.step()
    assert names_in_library(optimizer)[optimizer.param_groups[0]["params"][3]] == "0.4"


def test_what_is_saved_and_copied_has_the_names_of_the_parameters_that_are_left():
    model = transformer()
    optimizer = MoFO(param_groups(model), lr=1e-3)
    train(model, optimizer, range(1))
    group = optimizer.param_groups[0]
    frozen, names = group["params"].pop(2), list(group["param_names"])
    frozen.requires_grad_(False).grad = None
    del optimizer.state[frozen]
    train(model, optimizer, range(1, 2))
    expected = [*names[:2], *names[3:]]
    state_dict = optimizer.state_dict()
    assert state_dict["param_groups"][0]["param_names"] == expected
    for model_, copied in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        assert copied.param_groups[0]["param_names"] == expected
        train(model_, copied, range(2, 3))
        assert expected == [names_in_library(copied)[param] for param in copied.param_groups[0]["params"]]
    again = MoFO(param_groups(model), lr=1e-3)
    again.load_state_dict(state_dict)
    other = copy.deepcopy((model, again))
    train(model, optimizer, range(2, 4))
    train(*other, range(2, 4))
    assert same_parameters(model, other[0])


def test_a_part_of_the_groups_in_another_order_has_its_names():
    model = transformer()
    groups = param_groups(model)
    names = {param: name for name, param in model.named_parameters()}
    parts = [{**group, "params": sorted(group["params"], key=torch.Tensor.numel)[::2]} for group in groups]
    optimizer = MoFO(parts)
    train(model, optimizer, range(1))
    assert names_in_library(optimizer) == {param: names[param] for group in parts for param in group["params"]}
    with pytest.raises(ValueError, match="1 parameters and 2 names"):
        MoFO([{"params": [nn.Parameter(torch.ones(2))], "param_names": ["a", "b"]}])


def test_zero_redundancy_optimizer_with_param_groups():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = transformer()
        expected = copy.deepcopy(model)
        names = {param: name for name, param in model.named_parameters()}
        optimizer = ZeroRedundancyOptimizer(param_groups(model), optimizer_class=MoFO, lr=1e-3)
        train(model, optimizer, range(3))
        assert names_in_library(optimizer.optim) == names
        train(expected, MoFO(param_groups(expected), lr=1e-3), range(3))
        assert same_parameters(model, expected)
        optimizer.consolidate_state_dict()
        state_dict = copy.deepcopy(optimizer.state_dict())
        losses = train(*copy.deepcopy((model, optimizer.optim)), range(3, 5))
        again = ZeroRedundancyOptimizer(param_groups(model), optimizer_class=MoFO, lr=1e-3)
        again.load_state_dict(state_dict)
        assert train(model, again, range(3, 5)) == losses
    finally:
        dist.destroy_process_group()
