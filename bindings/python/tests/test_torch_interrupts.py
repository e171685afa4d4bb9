"""Ctrl-C while a step is under way: whatever it stops, states count the steps that were made."""

from __future__ import annotations

import signal

import pytest
import torch
from torch import nn

import mofo
from mofo.torch import MoFO
from mofo.torch._engine import Engine
from mofo.torch._handle import DeviceHandle
from torch_support import same_bits


def made(**options):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(40).to(dtype)) for dtype in (torch.float32, torch.bfloat16)]
    for param in params:
        param.grad = torch.randn(40).to(param.dtype)
    # Two groups, so that a step is two calls of the library.
    return params, MoFO([{"params": [param], "lr": 0.1 + number} for number, param in enumerate(params)], **options)


def interrupted(monkeypatch, owner, name, after):
    """From now on the method raises SIGINT at its first call, after or before it has done its work."""
    original = getattr(owner, name)
    left = [1]

    def method(self, *arguments, **keywords):
        if not after and left:
            left.clear()
            signal.raise_signal(signal.SIGINT)
        result = original(self, *arguments, **keywords)
        if left:
            left.clear()
            # As when it comes while the library works: Python calls the handler when the call returns.
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize("master_weights", [False, True])
@pytest.mark.parametrize(
    ("owner", "name", "after", "stepped"),
    [
        (DeviceHandle, "step", True, [1, 0]),
        (DeviceHandle, "step", False, [0, 0]),
        (DeviceHandle, "add", True, [0, 0]),
        (DeviceHandle, "bind", True, [0, 0]),
        (Engine, "_check_capture", True, [0, 0]),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_counts_are_those_of_the_library(monkeypatch, owner, name, after, stepped, first, master_weights):
    params, optimizer = made(master_weights=master_weights)
    expected, other = made(master_weights=master_weights)
    before = 0 if first else 1
    if not first:
        optimizer.step()
        other.step()
        if name == "add":
            for group in optimizer.param_groups:
                group["filter"] = "gradient"
        if name == "bind":
            for param in params:
                param.grad = param.grad.clone()
    with monkeypatch.context() as patched:
        interrupted(patched, owner, name, after)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    counts = [int(optimizer.state[param].get("step", 0)) if param in optimizer.state else 0 for param in params]
    assert counts == [before + steps for steps in stepped]
    # What was not stepped goes on as if nothing had been.
    for param, done in zip(params, stepped):
        param.grad = None if done else param.grad
    optimizer.step()
    if name == "add" and not first:
        for group in other.param_groups:
            group["filter"] = "gradient"
    other.step()
    assert all(same_bits(a, b) for a, b in zip(params, expected))
    assert [int(optimizer.state[param]["step"]) for param in params] == [before + 1] * 2


def test_a_step_that_fails_half_way_says_which_parameters_it_has_stepped(monkeypatch):
    params, optimizer = made()
    before = [param.detach().clone() for param in params]
    original, calls = DeviceHandle.step, []

    def failing(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            # As the library's own errors do, it changes nothing.
            raise mofo.Error(-7, "out of memory")
        original(self, *arguments)

    monkeypatch.setattr(DeviceHandle, "step", failing)
    with pytest.raises(mofo.Error, match="out of memory"):
        optimizer.step()
    assert [int(optimizer.state[param]["step"]) for param in params] == [1, 0]
    assert not torch.equal(params[0], before[0]) and torch.equal(params[1], before[1])
