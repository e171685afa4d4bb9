"""The steps of mofo.torch against PyTorch's AdamW, MoFO written in PyTorch, and the NumPy reference."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mofo.torch import MoFO, param_groups
from mofo.torch._handle import DeviceHandle
from torch_support import bits, loss_of, reference, tokens, train, transformer


class PlainMoFO(torch.optim.Optimizer):
    """Algorithm 1 of the paper, with decoupled weight decay on the entries that move: sort, threshold, mask."""

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, update_fraction=0.1):
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "wd": weight_decay, "fraction": update_fraction}
        )

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            (beta1, beta2), fraction = group["betas"], group["fraction"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["step"] += 1
                m, v = state["m"], state["v"]
                m.mul_(beta1).add_((1 - beta1) * p.grad)
                v.mul_(beta2).add_((1 - beta2) * p.grad * p.grad)
                k = max(math.floor(fraction * p.numel()), 1)
                threshold = torch.topk(m.abs().flatten(), k).values[-1]
                chosen = (m.abs() >= threshold) & (m != 0) if fraction < 1 else torch.ones_like(m, dtype=torch.bool)
                corrected = v.sqrt() / math.sqrt(1 - beta2 ** state["step"]) + group["eps"]
                update = group["lr"] / (1 - beta1 ** state["step"]) * m / corrected
                p.copy_(torch.where(chosen, p * (1 - group["lr"] * group["wd"]) - update, p))


def largest_difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one.parameters(), other.parameters()))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_an_update_fraction_of_1_is_adamw(weight_decay):
    ours, theirs = transformer(), transformer()
    options = {"lr": 2e-3, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": weight_decay}
    losses = train(ours, MoFO(ours.parameters(), update_fraction=1.0, **options), range(40))
    expected = train(theirs, torch.optim.AdamW(theirs.parameters(), **options), range(40))
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < 0.8 * losses[0]
    assert largest_difference(ours, theirs) < 1e-4


def schedule(optimizer, step):
    """Other betas, epsilon and weight decay at every step."""
    for number, group in enumerate(optimizer.param_groups):
        group["betas"] = (0.85 + 0.1 * math.sin(step + number), 0.94 - 0.05 * math.cos(step))
        group["eps"] = 1e-6 * (1 + step % 3)
        group["weight_decay"] = (0.1 * (step % 2), 0.0)[number]


def test_adamw_with_changing_options_is_pytorchs_and_tensors_stay_in_the_library(monkeypatch):
    added, made = [], []
    add, init = DeviceHandle.add, DeviceHandle.__init__
    monkeypatch.setattr(DeviceHandle, "add", lambda self, **tensor: (added.append(1), add(self, **tensor))[1])
    monkeypatch.setattr(DeviceHandle, "__init__", lambda self, *settings: (made.append(1), init(self, *settings))[1])
    ours, theirs = transformer(), transformer()
    optimizers = [
        MoFO(param_groups(ours, update_fraction=1.0), lr=2e-3, update_fraction=1.0),
        torch.optim.AdamW(param_groups(theirs), lr=2e-3),
    ]
    for step in range(30):
        for model, optimizer in zip((ours, theirs), optimizers):
            schedule(optimizer, step)
            train(model, optimizer, range(step, step + 1))
    assert largest_difference(ours, theirs) < 1e-4
    assert len(added) == len(list(ours.parameters()))
    assert len(made) == 1


@pytest.mark.parametrize("update_fraction", [0.03, 0.2])
def test_mofo_is_the_papers_algorithm(update_fraction):
    ours, theirs = transformer(), transformer()
    options = {"lr": 2e-3, "eps": 1e-6, "weight_decay": 0.05, "update_fraction": update_fraction}
    losses = train(ours, MoFO(ours.parameters(), **options), range(40))
    expected = train(theirs, PlainMoFO(theirs.parameters(), **options), range(40))
    assert losses == pytest.approx(expected, rel=2e-3)
    assert losses[-1] < losses[0]
    # Where an entry is within rounding of the threshold, one may move it a step earlier than the other.
    differs = sum(((a - b).abs() > 1e-5).sum().item() for a, b in zip(ours.parameters(), theirs.parameters()))
    assert differs < 1e-3 * sum(p.numel() for p in ours.parameters())


def test_a_step_moves_the_stated_share_of_each_tensor_and_leaves_the_bits_of_the_rest():
    model = transformer()
    before = copy.deepcopy(model)
    train(model, MoFO(model.parameters(), update_fraction=0.1), range(1))
    for old, new in zip(before.parameters(), model.parameters()):
        moved = int((bits(old) != bits(new)).sum())
        entries = new.numel()
        # Ties at the threshold move, too: rows of the embedding that are not in the batch do not.
        assert 0 < moved <= math.floor(0.1 * entries) + 2


OPTIONS = {
    "f32": {},
    "weight decay": {"weight_decay": 0.1, "weight_decay_scope": "all"},
    "bf16 moments": {"state_dtype": torch.bfloat16, "seed": 2**64 - 1},
    "gradient filter": {"filter": "gradient"},
    "update filter": {"filter": "update"},
    "random filter": {"filter": "random", "seed": 5},
    "bf16": {"dtype": torch.bfloat16, "seed": 1},
    "bf16 to nearest": {"dtype": torch.bfloat16, "rounding": "nearest"},
    "bf16 with masters": {"dtype": torch.bfloat16, "master_weights": True, "weight_decay": 0.1},
    "f16": {"dtype": torch.float16},
    "f16 with masters": {"dtype": torch.float16, "master_weights": True, "state_dtype": torch.bfloat16},
    "blocks": {"num_blocks": [1, 4, 3]},
    "AdamW": {"update_fraction": 1.0, "weight_decay": 0.1},
}
NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_gives_the_bits_of_the_numpy_reference(options):
    options = dict(options)
    dtype = options.pop("dtype", torch.float32)
    generator = torch.Generator().manual_seed(3)
    params = [
        torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in [(7,), (64, 40), (3, 5, 5)]
    ]
    names = ["bias", "weight", "kernel"]
    optimizer = MoFO(list(zip(names, params)), lr=1e-2, betas=(0.9, 0.99), eps=1e-7, **options)

    module = reference()
    num_blocks = options.pop("num_blocks", [1, 1, 1])
    state_dtype = NAMES[options.pop("state_dtype", torch.float32)]
    expected = module.Optimizer(
        learning_rate=1e-2, beta1=0.9, beta2=0.99, epsilon=1e-7, state_dtype=state_dtype, **options
    )
    for name, param, blocks in zip(names, params, num_blocks):
        expected.add_tensor(module.Tensor(name, values(param), NAMES[dtype], NAMES[dtype], num_blocks=blocks))

    for step in range(6):
        for number, param in enumerate(params):
            grad = torch.randn(param.shape, generator=generator).to(dtype)
            param.grad = None if (step, number) == (2, 1) else grad
        optimizer.param_groups[0]["lr"] = rate = 1e-2 / (step + 1)
        optimizer.step()
        grads = [None if param.grad is None else values(param.grad) for param in params]
        assert expected.step(grads, learning_rate=rate)[0] == module.OK
        for param, tensor in zip(params, expected.tensors):
            state = optimizer.state[param]
            assert state["step"].item() == tensor.step_count
            pairs = {
                "param": param,
                **{part: state[part] for part in ("exp_avg", "exp_avg_sq", "master") if part in state},
            }
            assert ("master" in state) == (tensor.master is not None)
            for part, value in pairs.items():
                there = getattr(tensor, part)
                assert np.array_equal(bits(value), there.view(bits(value).dtype)), (step, tensor.name, part)


def values(tensor: Tensor) -> np.ndarray:
    """As the reference takes them: float32, or the bit patterns of 16 bits."""
    return bits(tensor).view(np.float32).copy() if tensor.element_size() == 4 else bits(tensor).copy()


def test_training_a_transformer_gives_the_bits_of_the_numpy_reference():
    model = transformer()
    module = reference()
    optimizer = MoFO(param_groups(model, update_fraction=0.05, weight_decay=0.1), lr=3e-3)
    expected = module.Optimizer(learning_rate=3e-3)
    params = []
    for group in optimizer.param_groups:
        for name, param in zip(group["param_names"], group["params"]):
            params.append(param)
            settings = {"update_fraction": group["update_fraction"], "weight_decay": group["weight_decay"]}
            expected.add_tensor(module.Tensor(name, values(param), **settings))
    assert len(params) == len(list(model.parameters()))
    for step in range(12):
        optimizer.zero_grad()
        loss_of(model, tokens(step)).backward()
        optimizer.step()
        assert expected.step([values(param.grad) for param in params])[0] == module.OK
        for param, tensor in zip(params, expected.tensors):
            assert np.array_equal(bits(param), tensor.param.view(np.uint32)), (step, tensor.name)


def test_maximize_climbs():
    down, up = transformer(), transformer()
    descent, ascent = MoFO(down.parameters()), MoFO(up.parameters(), maximize=True)
    for step in range(3):
        descent.zero_grad()
        loss_of(down, tokens(step)).backward()
        for a, b in zip(down.parameters(), up.parameters()):
            b.grad = -a.grad
        descent.step()
        ascent.step()
    assert all(np.array_equal(bits(a), bits(b)) for a, b in zip(down.parameters(), up.parameters()))
    assert not all(np.array_equal(bits(a), bits(b)) for a, b in zip(down.parameters(), transformer().parameters()))
