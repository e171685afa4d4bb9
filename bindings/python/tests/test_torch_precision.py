"""16-bit parameters and moments: what loading, copying and outside changes do to them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import mofo
from mofo.torch import MoFO
from torch_support import loss_of, same_bits, same_parameters, tokens, train, transformer

MASTERS = {"lr": 1e-3, "master_weights": True}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("master_weights", [False, True])
def test_moments_and_masters_keep_their_type_through_a_checkpoint(dtype, master_weights, tmp_path):
    def start():
        return transformer().to(dtype)

    options = {"lr": 1e-3, "eps": 1e-6, "master_weights": master_weights, "update_fraction": 0.2}
    expected = start()
    train(expected, MoFO(expected.parameters(), **options), range(6))

    model = start()
    optimizer = MoFO(model.parameters(), **options)
    train(model, optimizer, range(3))
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "checkpoint.pt")
    resumed = start()
    loaded = MoFO(resumed.parameters(), **options)
    weights, state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed.load_state_dict(weights)
    loaded.load_state_dict(state)
    for param in resumed.parameters():
        kept = loaded.state[param]
        assert kept["exp_avg"].dtype == kept["exp_avg_sq"].dtype == torch.float32
        # Not merely of that type: with bits that the parameter's type does not have.
        assert not torch.equal(kept["exp_avg_sq"], kept["exp_avg_sq"].to(dtype).float())
        assert ("master" in kept) == master_weights
    train(resumed, loaded, range(3, 6))
    assert same_parameters(resumed, expected)


def test_small_updates_count_with_masters_and_stochastic_rounding_but_not_to_nearest():
    def after_100_steps(**options):
        param = nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
        optimizer = MoFO([param], lr=1e-4, update_fraction=1.0, **options)
        for _ in range(100):
            param.grad = torch.ones(1000, dtype=torch.bfloat16)
            optimizer.step()
        return param.float().mean().item()

    assert after_100_steps(master_weights=True) == pytest.approx(0.99, abs=2e-3)
    assert after_100_steps(rounding="stochastic") == pytest.approx(0.99, abs=1e-3)
    assert after_100_steps(rounding="nearest") == 1.0


def test_the_parameter_is_the_rounding_of_its_master():
    model = transformer().to(torch.bfloat16)
    optimizer = MoFO(model.parameters(), **MASTERS)
    train(model, optimizer, range(3))
    for param in model.parameters():
        master = optimizer.state[param]["master"]
        assert master.dtype == torch.float32
        assert torch.equal(master.to(torch.bfloat16), param)
    weight = model.head.weight
    assert not torch.equal(optimizer.state[weight]["master"], weight.float())


def test_changes_of_the_parameter_from_outside_reach_its_master():
    model = transformer().to(torch.bfloat16)
    optimizer = MoFO(model.parameters(), update_fraction=0.1, **MASTERS)
    train(model, optimizer, range(2))
    best = copy.deepcopy(model.state_dict())
    masters = {name: optimizer.state[param]["master"].clone() for name, param in model.named_parameters()}
    train(model, optimizer, range(2, 4))
    model.load_state_dict(best)
    with torch.no_grad():
        model.ln_f.bias[3] = 5.0
    loss_of(model, tokens(9)).backward()
    # A learning rate of 0 shows what a step starts from.
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert model.ln_f.bias[3].item() == 5.0
    for name, param in model.named_parameters():
        if name != "ln_f.bias":
            assert torch.equal(param, best[name]), name
    # Where the parameter was not touched, the master keeps the bits that the parameter lacks.
    model2 = transformer().to(torch.bfloat16)
    optimizer2 = MoFO(model2.parameters(), update_fraction=0.1, **MASTERS)
    train(model2, optimizer2, range(2))
    optimizer2.param_groups[0]["lr"] = 0.0
    with torch.no_grad():
        model2.wte.weight.mul_(1.0)
    optimizer2.step()
    assert same_bits(optimizer2.state[model2.wte.weight]["master"], masters["wte.weight"])


def test_masters_for_moments_that_came_without_them():
    model = transformer().to(torch.bfloat16)
    theirs = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, theirs, range(2))
    ours = MoFO(model.parameters(), **MASTERS)
    ours.load_state_dict(theirs.state_dict())
    train(model, ours, range(2, 3))
    state = ours.state[model.wte.weight]
    # AdamW keeps moments in the type of the parameter; they are widened.
    assert state["exp_avg"].dtype == torch.float32 and state["step"].item() == 3
    assert torch.equal(state["master"].to(torch.bfloat16), model.wte.weight)


def test_a_master_is_not_dropped_without_a_word():
    model = transformer().to(torch.bfloat16)
    optimizer = MoFO(model.parameters(), **MASTERS)
    train(model, optimizer, range(1))
    optimizer.param_groups[0]["master_weights"] = False
    with pytest.raises(mofo.Error, match="has a master copy in its state, but master_weights is off"):
        optimizer.step()
    for state in optimizer.state.values():
        del state["master"]
    optimizer.step()
    assert optimizer.state[model.wte.weight]["step"].item() == 2


def test_float32_parameters_have_no_master():
    model = transformer()
    optimizer = MoFO(model.parameters(), **MASTERS)
    train(model, optimizer, range(1))
    assert all("master" not in state for state in optimizer.state.values())


def test_bf16_moments():
    model = transformer()
    optimizer = MoFO(model.parameters(), lr=3e-3, update_fraction=0.2, state_dtype=torch.bfloat16)
    losses = train(model, optimizer, range(40))
    assert losses[-1] < 0.9 * losses[0]
    assert {state["exp_avg_sq"].dtype for state in optimizer.state.values()} == {torch.bfloat16}


def test_types_of_parameters_may_be_mixed():
    model = transformer()
    model.layers.to(torch.bfloat16)

    class Mixed(nn.Module):
        def forward(self, batch):
            hidden = (model.wte(batch) + model.wpe.weight[: batch.shape[1]]).to(torch.bfloat16)
            return model.head(model.ln_f(model.layers(hidden).float()))

    optimizer = MoFO(model.parameters(), **MASTERS)
    mixed = Mixed()
    for step in range(2):
        optimizer.zero_grad()
        loss_of(mixed, tokens(step)).backward()
        optimizer.step()
    for old, new in zip(transformer().parameters(), model.parameters()):
        # In bf16 the weights of the norms, 1, are too large for their steps; their masters are not.
        assert not same_bits(old, optimizer.state[new].get("master", new))
    assert {"master" in state for state in optimizer.state.values()} == {True, False}
