"""Layouts that are stepped in place, and parameters, gradients and state whose memory moves between steps."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

import mofo
from mofo.torch import MoFO
from mofo.torch._memory import state_tensor
from torch_support import same_bits, train, transformer


def gradients(shape, steps, dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(steps)]


def run(param, grads, **options):
    optimizer = MoFO([param], lr=1e-2, **options)
    for grad in grads:
        param.grad = grad
        optimizer.step()
    return optimizer


def channels_last(value):
    return value.to(memory_format=torch.channels_last)


def transposed(value):
    return value.transpose(0, 1).contiguous().transpose(0, 1)


def as_it_is(value):
    return value.clone()


def with_gaps(value):
    return torch.stack([value, value], dim=-1)[..., 0]


LAYOUTS = [as_it_is, channels_last, transposed]


@pytest.mark.parametrize("grad_layout", [*LAYOUTS, with_gaps])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_of_dimensions_in_memory_does_not_matter(layout, grad_layout):
    value = torch.linspace(-1, 1, 4 * 3 * 6 * 5).view(4, 3, 6, 5)
    grads = gradients(value.shape, 4)
    plain = nn.Parameter(value.clone())
    expected = run(plain, grads).state[plain]
    param = nn.Parameter(layout(value))
    strides = param.stride()
    optimizer = run(param, [grad_layout(grad) for grad in grads])
    assert torch.equal(param, plain) and not torch.equal(param, value)
    assert param.stride() == strides
    for part in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[param][part], expected[part])
        assert optimizer.state[param][part].stride() == strides


@pytest.mark.parametrize("shape", [(), (1,), (1, 5), (5, 1), (1, 1, 3)])
def test_dimensions_of_size_1_may_have_any_stride(shape):
    value = torch.linspace(1, 2, torch.Size(shape).numel()).view(shape)
    grads = gradients(shape, 2)
    plain = nn.Parameter(value.clone())
    run(plain, grads)
    odd = [77 if size == 1 else step for size, step in zip(shape, value.stride())]
    param = nn.Parameter(value.clone().as_strided(shape, odd))
    run(
        param,
        [grad.clone().as_strided(shape, [9 if s == 1 else t for s, t in zip(shape, grad.stride())]) for grad in grads],
    )
    assert torch.equal(param, plain)


def test_a_broadcast_gradient():
    plain, param = nn.Parameter(torch.ones(6, 4)), nn.Parameter(torch.ones(6, 4))
    run(plain, [torch.full((6, 4), 0.5)], update_fraction=1.0)
    run(param, [torch.tensor(0.5).expand(6, 4)], update_fraction=1.0)
    assert torch.equal(param, plain)


def test_a_parameter_may_be_part_of_a_larger_buffer():
    buffer = torch.zeros(100)
    params = [nn.Parameter(buffer[10:50].view(5, 8)), nn.Parameter(buffer[50:90])]
    optimizer = MoFO(params, lr=1.0, update_fraction=1.0)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert torch.equal(buffer != 0, (torch.arange(100) >= 10) & (torch.arange(100) < 90))


def test_an_empty_parameter_is_left_alone():
    empty, other = nn.Parameter(torch.empty(0, 4)), nn.Parameter(torch.ones(3))
    optimizer = MoFO([empty, other])
    empty.grad, other.grad = torch.empty(0, 4), torch.ones(3)
    for _ in range(2):
        optimizer.step()
    assert optimizer.state[other]["step"].item() == 2
    assert empty not in optimizer.state


def moved_to_other_memory(param):
    param.data = param.data.clone()


def set_to_other_storage(param):
    with torch.no_grad():
        param.set_(param.detach().clone())


def with_its_storage_made_larger(param):
    param.data.untyped_storage().resize_(1 << 22)


def permuted_in_memory(param):
    param.data = transposed(param.data)


def flattened(param):
    param.data = param.data.view(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "move",
    [moved_to_other_memory, set_to_other_storage, with_its_storage_made_larger, permuted_in_memory, flattened],
)
def test_a_parameter_that_moves_is_followed_and_nothing_is_lost(move, dtype):
    value = torch.linspace(-1, 1, 48, dtype=dtype).view(6, 8)
    grads = gradients(value.shape, 6, dtype)
    options = {"master_weights": True}
    plain = nn.Parameter(value.clone())
    run(plain, grads, **options)
    param = nn.Parameter(value.clone())
    optimizer = run(param, grads[:3], **options)
    keep = param.data
    move(param)
    for grad in grads[3:]:
        param.grad = grad.view(param.shape)
        optimizer.step()
    assert same_bits(param.detach().reshape(6, 8).contiguous(), plain)
    assert optimizer.state[param]["step"].item() == 6
    del keep


def test_a_parameter_that_moves_while_its_gradient_stays():
    grad = torch.linspace(-1, 1, 64)
    plain, param = nn.Parameter(torch.ones(64)), nn.Parameter(torch.ones(64))
    run(plain, [grad, grad])
    optimizer = run(param, [grad])
    left = param.data
    before = left.clone()
    param.data = param.data.clone()
    assert param.grad is grad
    optimizer.step()
    assert same_bits(param, plain) and torch.equal(left, before)


def test_a_parameter_whose_memory_moves_at_every_step():
    model, expected = transformer(), transformer()
    optimizer = MoFO(model.parameters())
    for step in range(6):
        for param in model.parameters():
            param.data = param.data.clone()
        gc.collect()
        train(model, optimizer, range(step, step + 1))
    train(expected, MoFO(expected.parameters()), range(6))
    assert all(same_bits(a, b) for a, b in zip(model.parameters(), expected.parameters()))


def test_a_parameter_that_gives_up_its_memory_is_refused_until_it_is_back():
    one, two = nn.Parameter(torch.ones(64)), nn.Parameter(torch.ones(64))
    optimizer = MoFO([("one", one), ("two", two)])
    for step in range(3):
        one.grad = two.grad = torch.ones(64)
        if step == 1:
            kept = two.detach().clone()
            two.untyped_storage().resize_(0)
            with pytest.raises(mofo.Error, match="parameter two has lost its memory"):
                optimizer.step()
            assert optimizer.state[one]["step"].item() == 1
            two.untyped_storage().resize_(256)
            two.data.copy_(kept)
        optimizer.step()
    assert torch.equal(one, two) and optimizer.state[two]["step"].item() == 3


def test_a_storage_made_smaller_is_refused():
    param = nn.Parameter(torch.ones(1 << 16))
    optimizer = run(param, [torch.ones(1 << 16)])
    param.grad = torch.ones(1 << 16)
    param.data.untyped_storage().resize_(16)
    with pytest.raises(mofo.Error, match="lost its memory"):
        optimizer.step()


@pytest.mark.parametrize("change", ["numel", "dtype"])
def test_another_size_or_type_is_refused_and_the_state_kept(change):
    param = nn.Parameter(torch.ones(6, 4))
    optimizer = run(param, [torch.ones(6, 4)])
    state = {name: value.clone() for name, value in optimizer.state[param].items()}
    param.data = torch.ones(5, 4) if change == "numel" else param.data.to(torch.bfloat16)
    param.grad = torch.ones_like(param)
    before = param.detach().clone()
    message = (
        r"shape \(5, 4\), but `exp_avg`" if change == "numel" else "was of torch.float32 and is now of torch.bfloat16"
    )
    with pytest.raises(mofo.Error, match=f"parameter 0.0 .*{message}") as caught:
        optimizer.step()
    assert caught.value.status_name == "MOFO_ERROR_INVALID_STATE"
    assert torch.equal(param, before)
    assert all(torch.equal(optimizer.state[param][name], value) for name, value in state.items())
    if change == "dtype":
        optimizer.load_state_dict(optimizer.state_dict())
    else:
        del optimizer.state[param]
    optimizer.step()
    assert optimizer.state[param]["step"].item() == (2 if change == "dtype" else 1)


def test_parameters_that_come_to_share_memory_are_refused():
    one, two = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))
    optimizer = MoFO([{"params": [one]}, {"params": [two], "seed": 1}])
    one.grad = two.grad = torch.ones(8)
    optimizer.step()
    two.data = one.data
    before = one.detach().clone()
    with pytest.raises(mofo.Error, match=r"parameters 0.0 and 1.0 share memory"):
        optimizer.step()
    assert torch.equal(one, before)


def replaced_by_clones(optimizer, param):
    optimizer.state[param] = {name: value.clone() for name, value in optimizer.state[param].items()}


def moved_within_the_tensors(optimizer, param):
    for value in optimizer.state[param].values():
        value.data = value.data.clone()


def permuted(optimizer, param):
    optimizer.state[param]["exp_avg"] = transposed(optimizer.state[param]["exp_avg"])


@pytest.mark.parametrize("change", [replaced_by_clones, moved_within_the_tensors, permuted])
def test_a_state_that_is_exchanged_is_followed(change):
    value, grads = torch.linspace(-1, 1, 48).view(6, 8), gradients((6, 8), 6)
    plain, param = nn.Parameter(value.clone()), nn.Parameter(value.clone())
    run(plain, grads)
    optimizer = run(param, grads[:3])
    old = dict(optimizer.state[param])
    change(optimizer, param)
    del old
    gc.collect()
    for number, grad in enumerate(grads[3:]):
        # A step without a gradient must not look at memory that is gone either.
        if number == 1:
            param.grad = None
            change(optimizer, param)
            optimizer.step()
            assert optimizer._engine._groups[0].rows[0].handle is None
        param.grad = grad
        optimizer.step()
    assert same_bits(param, plain)


def test_a_state_that_would_be_cut_is_refused():
    param = nn.Parameter(torch.ones(4))
    optimizer = run(param, [torch.ones(4)], state_dtype=torch.bfloat16)
    optimizer.state[param]["exp_avg"] = torch.ones(4)
    with pytest.raises(mofo.Error, match=r"`exp_avg` of torch.float32 .* torch.bfloat16 \(state_dtype\) cannot hold"):
        optimizer.step()


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("exp_avg", None, "has made 1 steps, but there is no `exp_avg`"),
        ("exp_avg_sq", torch.ones(3), r"`exp_avg_sq` of its state has \(3,\)"),
        ("exp_avg", 1.0, "no dense tensor"),
        ("step", None, "no `step`|whole number"),
        ("step", torch.tensor(1.5), "whole number"),
        ("step", torch.tensor(-1), "from 0 to"),
        ("step", torch.tensor(float("nan")), "whole number"),
    ],
)
def test_a_broken_state_is_refused(part, value, message):
    param = nn.Parameter(torch.ones(4))
    optimizer = run(param, [torch.ones(4)])
    before = param.detach().clone()
    optimizer.state[param][part] = value
    with pytest.raises(mofo.Error, match=message):
        optimizer.step()
    assert torch.equal(param, before)


def test_a_negative_step_written_in_place_is_refused():
    param = nn.Parameter(torch.ones(4))
    optimizer = run(param, [torch.ones(4)])
    optimizer.state[param]["step"].fill_(-3)
    with pytest.raises(mofo.Error, match="a `step` of -3"):
        optimizer.step()


def test_clearing_the_state_starts_afresh():
    param, plain = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer = run(param, gradients((4,), 3), update_fraction=1.0)
    optimizer.state.clear()
    param.data.copy_(torch.ones(4))
    for other in (optimizer, MoFO([plain], lr=1e-2, update_fraction=1.0)):
        (target,) = other.param_groups[0]["params"]
        target.grad = torch.arange(4.0)
        other.step()
    assert same_bits(param, plain) and optimizer.state[param]["step"].item() == 1


def test_large_moments_start_at_different_places_of_a_page():
    # Just above a page boundary, where the C library puts large memory unless it has some to use again.
    memory = torch.zeros((1 << 20) + 1024)
    param = memory[(64 - memory.data_ptr()) % 4096 // 4 :][: 1 << 20]
    assert param.data_ptr() % 4096 == 64
    parts = {part: state_tensor(param, torch.float32, part) for part in ("exp_avg", "exp_avg_sq", "master")}
    offsets = {tensor.data_ptr() % 4096 for tensor in (param, *parts.values())}
    assert len(offsets) == 4
    assert all(tensor.data_ptr() % 64 == 0 and not tensor.any() for tensor in parts.values())
    permuted_like = transposed(torch.zeros(1024, 1024))
    assert state_tensor(permuted_like, torch.bfloat16, "exp_avg").stride() == permuted_like.stride()


def test_a_large_state_survives_saving(tmp_path):
    param = nn.Parameter(torch.zeros(600_000))
    optimizer = run(param, [torch.randn(600_000)])
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    other = copy.deepcopy(param)
    loaded = MoFO([other])
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same_bits(loaded.state[other]["exp_avg"], optimizer.state[param]["exp_avg"])
    assert (tmp_path / "state.pt").stat().st_size < 1.05 * 8 * 600_000
