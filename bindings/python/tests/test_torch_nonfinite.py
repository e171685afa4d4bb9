"""Gradients that are not finite: by default the step is left out, counted, and warned of once."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from mofo.torch import MoFO, param_groups
from torch_support import loss_of, same_bits, tokens, train, transformer


def spoilt(model, name, value):
    """Gradients of which one entry is not finite."""
    loss_of(model, tokens(0)).backward()
    dict(model.named_parameters())[name].grad.view(-1)[0] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("clip", [False, True])
def test_a_step_with_a_bad_gradient_changes_nothing_and_training_goes_on(value, clip):
    model = transformer()
    optimizer = MoFO(param_groups(model), lr=1e-3)
    train(model, optimizer, range(2))
    expected_model, expected = copy.deepcopy((model, optimizer))
    optimizer.zero_grad()
    spoilt(model, "ln_f.bias", value)
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with pytest.warns(RuntimeWarning, match="gradient of parameter ln_f.bias|gradient of parameter wte.weight"):
        optimizer.step()
    assert optimizer.skipped_steps == 1 and expected.skipped_steps == 0
    for param, other in zip(model.parameters(), expected_model.parameters()):
        assert same_bits(param, other)
        state, expected_state = optimizer.state[param], expected.state[other]
        assert state["step"] == 2 and all(same_bits(state[part], expected_state[part]) for part in ("exp_avg",))
    assert train(model, optimizer, range(2, 5)) == train(expected_model, expected, range(2, 5))
    assert all(torch.isfinite(optimizer.state[param]["exp_avg"]).all() for param in model.parameters())


def two_groups(**options):
    """Parameters that are stepped by different calls of the library."""
    first, second = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer = MoFO(
        [
            {"params": [first], "param_names": ["first"], "betas": (0.8, 0.9)},
            {"params": [second], "param_names": ["second"], "lr": 0.5},
        ],
        **options,
    )
    first.grad, second.grad = torch.ones(4), torch.ones(4)
    return first, second, optimizer


def test_all_groups_are_left_out_and_the_parameter_is_named_once():
    first, second, optimizer = two_groups()
    second.grad[3] = torch.nan
    with pytest.warns(RuntimeWarning, match="gradient of parameter second"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert optimizer.skipped_steps == 2
    assert torch.equal(first, torch.ones(4)) and torch.equal(second, torch.ones(4))
    second.grad = torch.ones(4)
    optimizer.step()
    assert optimizer.skipped_steps == 2 and not torch.equal(first, torch.ones(4))
    assert [optimizer.state[param]["step"].item() for param in (first, second)] == [1, 1]


def test_entries_that_never_move_again_are_warned_of_once():
    first, second, optimizer = two_groups(skip_nonfinite=False)
    second.grad[3] = torch.nan
    with pytest.warns(RuntimeWarning, match="entries of parameter second will never move again"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    # Neither gradient is bad, and no other entry is frozen: the square of one is infinite.
    first, second, optimizer = two_groups()
    first.grad[1] = 1e30
    with pytest.warns(RuntimeWarning, match="entries of parameter first will never move again"):
        optimizer.step()


def test_it_can_be_switched_off_and_on_again():
    first, second, optimizer = two_groups(skip_nonfinite=False)
    optimizer.step()
    second.grad[3] = torch.nan
    optimizer.skip_nonfinite = True
    with pytest.warns(RuntimeWarning):
        optimizer.step()
    optimizer.skip_nonfinite = False
    with pytest.warns(RuntimeWarning, match="never move again"):
        optimizer.step()
    assert optimizer.skipped_steps == 1 and optimizer.state[second]["step"].item() == 2
    assert torch.isnan(optimizer.state[second]["exp_avg"]).tolist() == [False, False, False, True]
    optimizer.skip_nonfinite = 1
    with pytest.raises(TypeError, match="skip_nonfinite must be True or False"):
        optimizer.step()
    with pytest.raises(TypeError, match="skip_nonfinite must be True or False"):
        MoFO([first], skip_nonfinite="yes")


def test_large_finite_gradients_are_stepped():
    param = nn.Parameter(torch.zeros(1000))
    optimizer = MoFO([param], lr=1.0, maximize=True)
    param.grad = torch.full((1000,), torch.finfo(torch.float32).max)
    with pytest.warns(RuntimeWarning, match="never move again"):
        optimizer.step()
    assert optimizer.skipped_steps == 0 and optimizer.state[param]["step"].item() == 1


def test_setting_and_count_are_copied_and_pickled_but_no_part_of_the_state_dict():
    _, second, optimizer = two_groups()
    second.grad[0] = torch.inf
    with pytest.warns(RuntimeWarning):
        optimizer.step()
    optimizer.skip_nonfinite = False
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other.skipped_steps == 1 and other.skip_nonfinite is False
    other = two_groups()[2]
    other.load_state_dict(optimizer.state_dict())
    assert other.skipped_steps == 0 and other.skip_nonfinite is True
