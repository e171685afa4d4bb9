"""What mofo.torch refuses, and that nothing has changed then."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mofo
from mofo.torch import MoFO, param_groups


def parameter(**options):
    return nn.Parameter(torch.ones(4, 6, **options))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr must be finite and at least 0, not -1.0"),
        ({"lr": float("nan")}, ValueError, "lr must be finite"),
        ({"lr": 1e39}, ValueError, "exceeds 32-bit floats"),
        ({"lr": 1e30, "weight_decay": 1e30}, ValueError, "exceeds 32-bit floats"),
        ({"lr": "fast"}, TypeError, "lr must be a number"),
        ({"lr": "1e-3"}, TypeError, "lr must be a number, not '1e-3'"),
        ({"eps": True}, TypeError, "eps must be a number, not True"),
        ({"betas": "09"}, TypeError, "betas must be two numbers, not '09'"),
        ({"betas": {0.9, 0.999}}, TypeError, "betas must be two numbers"),
        ({"betas": iter((0.9, 0.999))}, TypeError, "betas must be two numbers"),
        ({"betas": (0.9, "0.999")}, TypeError, r"betas\[1\] must be a number"),
        ({"betas": (1.0, 0.9)}, ValueError, r"betas\[0\] must be at least 0 and below 1"),
        ({"betas": (0.9, -0.1)}, ValueError, r"betas\[1\]"),
        ({"betas": 0.9}, TypeError, "betas must be two numbers"),
        ({"betas": (0.9, 0.9, 0.9)}, TypeError, "betas must be two numbers"),
        ({"eps": -1e-8}, ValueError, "eps must be finite and at least 0"),
        ({"eps": 1e300}, ValueError, "eps = 1e\\+300 exceeds"),
        ({"weight_decay": float("inf")}, ValueError, "weight_decay must be finite"),
        ({"update_fraction": 0.0}, ValueError, "update_fraction must be above 0 and at most 1, not 0.0"),
        ({"update_fraction": 1.1}, ValueError, "update_fraction must be above 0 and at most 1, not 1.1"),
        ({"filter": "largest"}, ValueError, "filter must be one of 'momentum', .*, not 'largest'"),
        ({"weight_decay_scope": "none"}, ValueError, "weight_decay_scope must be one of 'selected', 'all'"),
        ({"state_dtype": torch.float16}, ValueError, "state_dtype must be one of torch.float32, torch.bfloat16"),
        ({"state_dtype": "bf16"}, ValueError, "state_dtype must be one of"),
        ({"rounding": "up"}, ValueError, "rounding must be one of"),
        ({"master_weights": 1}, TypeError, "master_weights must be True or False"),
        ({"maximize": None}, TypeError, "maximize must be True or False"),
        ({"seed": -1}, ValueError, "seed must be from 0 to 18446744073709551615, not -1"),
        ({"seed": 2**64}, ValueError, "seed must be from 0"),
        ({"seed": 1.0}, TypeError, "seed must be an integer"),
        ({"num_blocks": 0}, ValueError, "num_blocks must be from 1"),
        ({"num_blocks": 5}, ValueError, "parameter 0.0 has 24 entries, which num_blocks = 5 does not divide"),
        ({"num_blocks": [2, 2]}, ValueError, "num_blocks has 2 numbers for 1 parameters"),
        ({"fused": True}, TypeError, "fused"),
    ],
)
def test_options_out_of_range(options, error, message):
    with pytest.raises(error, match=message):
        MoFO([parameter()], **options)
    if "fused" not in options:
        # In a group just the same, and the group is not added.
        optimizer = MoFO([parameter()])
        with pytest.raises(error, match=message.replace("0.0 has", "1.0 has")):
            optimizer.add_param_group({"params": [parameter()], **options})
        assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("lr", float("nan")), ("betas", (2.0, 0.9)), ("weight_decay", -1), ("update_fraction", 2), ("num_blocks", 7)],
)
def test_an_option_set_out_of_range_later_is_refused_before_anything_is_stepped(option, value):
    one, two = parameter(), parameter()
    optimizer = MoFO([{"params": [one]}, {"params": [two]}])
    one.grad, two.grad = torch.ones(4, 6), torch.ones(4, 6)
    optimizer.step()
    before = [one.detach().clone(), two.detach().clone()]
    good = optimizer.param_groups[1][option]
    optimizer.param_groups[1][option] = value
    with pytest.raises((ValueError, mofo.Error), match=option):
        optimizer.step()
    assert torch.equal(one, before[0]) and torch.equal(two, before[1])
    assert optimizer.state[one]["step"].item() == 1
    optimizer.param_groups[1][option] = good
    optimizer.step()
    assert torch.equal(one, two) and optimizer.state[one]["step"].item() == 2


def test_numbers_of_numpy_are_as_good_as_pythons():
    param = parameter()
    optimizer = MoFO(
        [param], lr=np.float32(0.5), num_blocks=np.int64(4), seed=np.uint64(2**64 - 1), maximize=np.bool_(True)
    )
    param.grad = torch.ones(4, 6)
    optimizer.step()
    other = parameter()
    expected = MoFO([other], lr=0.5, num_blocks=4, seed=2**64 - 1, maximize=True)
    other.grad = torch.ones(4, 6)
    expected.step()
    assert torch.equal(param, other) and not torch.equal(param, torch.ones(4, 6))
    for wrong in ({"num_blocks": np.float32(4)}, {"seed": np.bool_(True)}, {"maximize": np.int64(1)}):
        with pytest.raises(TypeError):
            MoFO([parameter()], **wrong)


def test_options_that_change_in_place_are_noticed():
    results = []
    for in_place in (True, False):
        param = parameter()
        betas, decay = [0.9, 0.999], torch.tensor(0.0)
        optimizer = MoFO([param], lr=0.1, betas=betas, weight_decay=decay, update_fraction=1.0)
        for step in range(2):
            param.grad = torch.linspace(-1, 2 - step, 24).view(4, 6)
            optimizer.step()
            if in_place:
                optimizer.param_groups[0]["betas"][0] = 0.5
                decay.fill_(0.5)
            else:
                optimizer.param_groups[0].update(betas=(0.5, 0.999), weight_decay=0.5)
        results.append(param)
    assert torch.equal(*results)


def test_names_and_exemptions_are_lists():
    with pytest.raises(TypeError, match="param_names must be a list of names, not 'ab'"):
        MoFO([{"params": [parameter(), parameter()], "param_names": "ab"}])
    with pytest.raises(TypeError, match="exempt is a list"):
        param_groups(nn.Linear(2, 2), exempt="bias")


def gaps():
    return nn.Parameter(torch.ones(4, 12)[:, ::2])


def expanded():
    return nn.Parameter(torch.ones(4, 1).expand(4, 6))


def sparse():
    return nn.Parameter(torch.eye(3).to_sparse())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: parameter(dtype=torch.float64),
            "parameter w is of type torch.float64, but must be of float32, float16",
        ),
        (lambda: parameter(dtype=torch.complex64), "parameter w is of type torch.complex64"),
        (lambda: nn.Parameter(torch.ones(3, dtype=torch.int32), requires_grad=False), "of type torch.int32"),
        (gaps, r"parameter w has gaps or overlaps in memory \(shape \(4, 6\), strides \(12, 2\)\)"),
        (expanded, "parameter w has gaps or overlaps"),
        (sparse, "parameter w is of layout torch.sparse_coo"),
    ],
)
def test_parameters_that_cannot_be_stepped(make, message):
    with pytest.raises(ValueError, match=message):
        MoFO([("w", make())])


def test_blocks_need_a_contiguous_parameter():
    with pytest.raises(ValueError, match="must be contiguous for num_blocks = 2"):
        MoFO([nn.Parameter(torch.ones(4, 6).t())], num_blocks=2)


def test_shared_memory_and_repeated_parameters_and_names():
    weight = parameter()
    with pytest.raises(ValueError, match="parameters a and b share memory: list only one of them"):
        MoFO([("a", weight), ("b", nn.Parameter(weight.data.view(24)[20:]))])
    with pytest.raises(ValueError, match="two parameters are named a"):
        MoFO([("a", weight), ("a", parameter())])
    with pytest.raises(ValueError, match="more than one parameter group"):
        MoFO([{"params": [weight]}, {"params": [weight]}])
    with (
        pytest.raises(ValueError, match=r"parameter 0\.0 is listed twice, the second time as 0\.1"),
        pytest.warns(UserWarning, match="duplicate parameters"),
    ):
        MoFO([weight, weight])
    with pytest.raises(ValueError, match="name must be"):
        MoFO([("", weight)])
    with pytest.raises(ValueError, match="2 parameters and 1 names"):
        MoFO([{"params": [weight, parameter()], "param_names": ["a"]}])
    with pytest.raises(ValueError, match="empty parameter list"):
        MoFO([])


@pytest.fixture
def mesh():
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def test_sharded_tensors(mesh):
    from torch.distributed.tensor import DTensor, Shard

    param = nn.Parameter(DTensor.from_local(torch.ones(4, 6), mesh, [Shard(0)]))
    with pytest.raises(ValueError, match=r"is a DTensor with placements \(Shard\(dim=0\),\): its shards"):
        MoFO([param])
    optimizer = MoFO([parameter()])
    optimizer.param_groups[0]["params"].append(param)
    param.grad = torch.ones_like(param)
    with pytest.raises(mofo.Error, match="its shards would be filtered"):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replicated_dtensors_are_stepped(mesh, dtype):
    from torch.distributed.tensor import DTensor, Partial, Replicate

    plain = nn.Parameter(torch.linspace(1, 2, 24, dtype=dtype).view(4, 6))
    copied = nn.Parameter(DTensor.from_local(plain.detach().clone(), mesh, [Replicate()]))
    options = {"lr": 0.1, "update_fraction": 0.5, "master_weights": True}
    one, other = MoFO([("w", plain)], **options), MoFO([("w", copied)], **options)
    for step, placement in enumerate([Replicate(), Partial(), Replicate()]):
        grad = torch.linspace(-1, 1 + step, 24, dtype=dtype).view(4, 6)
        plain.grad, copied.grad = grad.clone(), DTensor.from_local(grad.clone(), mesh, [placement])
        if step == 1:
            with torch.no_grad():
                plain.add_(1.0)
                copied.add_(1.0)
        one.step()
        other.step()
        assert torch.equal(copied.to_local(), plain)
        loaded = MoFO([("w", copied)], **options)
        loaded.load_state_dict(other.state_dict())
        other = loaded
    assert torch.equal(other.state[copied]["exp_avg"], one.state[plain]["exp_avg"])
    adamw = torch.optim.AdamW([copied])
    adamw.step()
    if dtype is torch.float32:
        other.load_state_dict(adamw.state_dict())
        other.step()
        assert other.state[copied]["step"].item() == 2
    with pytest.raises(ValueError, match="parameters a and b share memory"):
        MoFO([("a", copied), ("b", nn.Parameter(copied.detach()))])


def test_another_subclass_is_named():
    from torch.testing._internal.two_tensor import TwoTensor

    with pytest.raises(ValueError, match="parameter w is a TwoTensor, a subclass of Tensor"):
        MoFO([("w", nn.Parameter(TwoTensor(torch.ones(4), torch.ones(4))))])


def step_with(param, change):
    """Makes a step that must fail, and one that must not."""
    other = parameter()
    optimizer = MoFO([("other", other), ("w", param)])
    other.grad = torch.ones(4, 6)
    change(param)
    with pytest.raises(mofo.Error) as caught:
        optimizer.step()
    assert torch.equal(other, torch.ones(4, 6)) and not optimizer.state[other].get("step", torch.tensor(0)).item()
    param.grad = None
    optimizer.step()
    assert optimizer.state[other]["step"].item() == 1
    return caught.value


def test_a_sparse_gradient():
    embedding = nn.Embedding(5, 3, sparse=True)
    error = step_with(embedding.weight, lambda _: embedding(torch.tensor([1, 2])).sum().backward())
    assert "parameter w has a gradient of layout torch.sparse_coo" in str(error)
    assert error.status_name == "MOFO_ERROR_UNSUPPORTED"


def test_gradients_of_another_type_or_shape():
    def of_doubles(param):
        param.grad = torch.ones(4, 6)
        param.grad.data = torch.ones(4, 6, dtype=torch.float64)

    def complex_numbers(param):
        param.grad = torch.ones(4, 6)
        param.grad.data = torch.ones(4, 6, dtype=torch.complex64)

    def too_short(param):
        param.grad = torch.ones(4, 6)
        param.grad.data = torch.ones(4, 5)

    def freed(param):
        param.grad = torch.ones(4, 6)
        param.grad.untyped_storage().resize_(0)

    assert "gradient of type torch.float64" in str(step_with(parameter(), of_doubles))
    assert "gradient of type torch.complex64" in str(step_with(parameter(), complex_numbers))
    assert "its gradient shape (4, 5)" in str(step_with(parameter(), too_short))
    assert "the gradient of parameter w has lost its memory" in str(step_with(parameter(), freed))


def test_parameters_that_become_unfit():
    def becomes(value):
        def change(param):
            param.data = value
            param.grad = torch.zeros_like(param)

        return change

    assert "of type torch.float64" in str(step_with(parameter(), becomes(torch.ones(4, 6, dtype=torch.float64))))
    assert "gaps or overlaps" in str(step_with(parameter(), becomes(torch.ones(4, 12)[:, ::2])))
    meta = nn.Parameter(torch.ones(4, 6, device="meta"))
    error = step_with(meta, lambda param: setattr(param, "grad", torch.ones(4, 6, device="meta")))
    assert "parameter w is on meta" in str(error) and error.status_name == "MOFO_ERROR_UNSUPPORTED"


def test_a_parameter_made_on_the_meta_device_may_get_memory_later():
    linear = nn.Linear(3, 2, device="meta")
    optimizer = MoFO(linear.parameters(), lr=0.1, update_fraction=1.0)
    linear.to_empty(device="cpu")
    with torch.no_grad():
        for param in linear.parameters():
            param.fill_(1.0)
    # `to_empty` makes new parameters where it cannot keep the old ones.
    optimizer.param_groups[0]["params"] = list(linear.parameters())
    linear(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert all(param.detach().max().item() == pytest.approx(0.9) for param in linear.parameters())


def negated(tensor):
    """A view that shows `tensor`, whose numbers lie in memory with the other sign."""
    return torch._neg_view(-tensor)


def test_negated_views():
    with pytest.raises(ValueError, match="parameter w is a negated view"):
        MoFO([("w", nn.Parameter(negated(torch.ones(4, 6))))])

    def becomes(param):
        param.data = negated(torch.ones(4, 6))
        param.grad = torch.ones(4, 6)

    assert "parameter w is a negated view" in str(step_with(parameter(), becomes))
    # As a gradient it is no harm.
    results = []
    for grad in (torch.arange(24.0).view(4, 6), negated(torch.arange(24.0).view(4, 6))):
        param = parameter()
        optimizer = MoFO([param], lr=0.1, update_fraction=0.5)
        param.grad = torch.ones(4, 6)
        optimizer.step()
        param.grad = grad
        optimizer.step()
        results.append(param)
    assert negated(torch.ones(2)).is_neg() and torch.equal(*results)


def test_gradients_whose_storage_is_smaller_than_they_are():
    param = parameter()
    optimizer = MoFO([("w", param)])
    param.grad = torch.ones(4, 6)
    optimizer.step()
    before = param.detach().clone()
    for offset in (0, 5):
        memory = torch.ones(24 + offset)
        grad = memory[offset:].view(4, 6)
        # The storage may lie elsewhere then, but still somewhere.
        memory.untyped_storage().resize_(4 * (23 + offset))
        param.grad = grad
        with pytest.raises(mofo.Error, match="the gradient of parameter w has lost its memory"):
            optimizer.step()
        assert torch.equal(param, before) and optimizer.state[param]["step"].item() == 1
        memory.untyped_storage().resize_(4 * (24 + offset))
        memory.fill_(1.0)
    optimizer.step()
    assert optimizer.state[param]["step"].item() == 2


def test_one_thread_at_a_time():
    param = parameter()
    optimizer = MoFO([param])
    param.grad = torch.ones(4, 6)
    with optimizer._engine._turn.taken(), pytest.raises(mofo.Error, match="one thread at a time"):
        optimizer.step()
    optimizer.step()
    assert optimizer.state[param]["step"].item() == 1
