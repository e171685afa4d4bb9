"""mofo.torch.MoFO keeps the conventions of torch.optim.Optimizer."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings

import pytest
import torch
from torch import nn

from mofo.torch import MoFO, param_groups
from torch_support import bits, loss_of, same_bits, same_parameters, tokens, train, transformer

OPTIONS = {"lr": 3e-3, "update_fraction": 0.1, "weight_decay": 0.01, "state_dtype": torch.bfloat16, "seed": 7}


def optimizer_of(model: nn.Module, **changes: object) -> MoFO:
    return MoFO(model.named_parameters(), **{**OPTIONS, **changes})


def uninterrupted(steps: int) -> nn.Module:
    model = transformer()
    train(model, optimizer_of(model), range(steps))
    return model


def test_it_is_an_optimizer_with_groups_defaults_and_state():
    model = transformer()
    optimizer = MoFO(model.parameters(), lr=0.5, update_fraction=0.25)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.param_groups[0]["update_fraction"] == 0.25
    assert "update_fraction: 0.25" in repr(optimizer)
    assert len(optimizer.state) == 0
    train(model, optimizer, range(2))
    for param in model.parameters():
        state = optimizer.state[param]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
        assert state["step"].dtype == torch.int64 and state["step"].item() == 2
        assert state["exp_avg"].shape == param.shape and state["exp_avg"].stride() == param.stride()
        assert state["exp_avg"].abs().sum() > 0 and state["exp_avg_sq"].min() >= 0


def test_the_state_is_the_optimizers_own_memory():
    param = nn.Parameter(torch.ones(4))
    optimizer = MoFO([param], lr=0.1, update_fraction=1.0)
    param.grad = torch.ones(4)
    optimizer.step()
    state = optimizer.state[param]
    exp_avg = state["exp_avg"]
    exp_avg.fill_(1.0)
    state["exp_avg_sq"].fill_(4.0)
    state["step"].fill_(9)
    param.data.fill_(1.0)
    param.grad = torch.zeros(4)
    optimizer.step()
    # The tenth step's corrections of the bias.
    update = 0.1 / (1 - 0.9**10) * 0.9 / (math.sqrt(4.0 * 0.999) / math.sqrt(1 - 0.999**10))
    assert param.tolist() == pytest.approx([1.0 - update] * 4, rel=1e-6)
    assert state["step"].item() == 10 and state["exp_avg"] is exp_avg
    assert torch.allclose(state["exp_avg_sq"], torch.full((4,), 4.0 * 0.999))


def saved(state_dict: dict) -> dict:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("through", [saved, copy.deepcopy, lambda state_dict: state_dict])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(through):
    model = transformer()
    optimizer = optimizer_of(model)
    train(model, optimizer, range(4))
    resumed = transformer(seed=1)
    resumed.load_state_dict(model.state_dict())
    fresh = optimizer_of(resumed)
    for group in fresh.param_groups:
        group.update(lr=7.0, betas=(0.1, 0.2), eps=1.0, weight_decay=3.0, maximize=True, seed=123)
    fresh.load_state_dict(through(optimizer.state_dict()))
    # The two have nothing in common afterwards.
    train(model, optimizer, range(50, 53))
    train(resumed, fresh, range(4, 8))
    assert same_parameters(resumed, uninterrupted(8))


def test_loading_into_an_optimizer_that_has_stepped_replaces_its_state():
    model = transformer()
    optimizer = optimizer_of(model)
    train(model, optimizer, range(3))
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, range(20, 26))
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(model, optimizer, range(3, 8))
    assert same_parameters(model, uninterrupted(8))


def test_pickling_an_optimizer_with_its_model():
    model = transformer()
    optimizer = optimizer_of(model)
    train(model, optimizer, range(4))
    model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    train(model, optimizer, range(4, 8))
    assert same_parameters(model, uninterrupted(8))


def test_deepcopies_go_their_own_way():
    model = transformer()
    optimizer = optimizer_of(model)
    train(model, optimizer, range(4))
    model2, optimizer2 = copy.deepcopy((model, optimizer))
    train(model2, optimizer2, range(30, 32))
    train(model, optimizer, range(4, 8))
    assert same_parameters(model, uninterrupted(8))
    assert not same_parameters(model2, model)


def test_loading_an_adamw_state_goes_on_as_adamw():
    model = transformer()
    theirs = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    train(model, theirs, range(5))
    other = copy.deepcopy(model)
    ours = MoFO(other.parameters(), lr=5.0, update_fraction=1.0)
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["lr"] == 1e-3 and ours.param_groups[0]["update_fraction"] == 1.0
    assert train(other, ours, range(5, 10)) == pytest.approx(train(model, theirs, range(5, 10)), rel=1e-4)
    assert ours.state[other.wte.weight]["step"].item() == 10


def test_an_adamw_goes_on_from_our_state():
    model = transformer()
    ours = MoFO(model.parameters(), update_fraction=1.0)
    train(model, ours, range(5))
    other = copy.deepcopy(model)
    theirs = torch.optim.AdamW(other.parameters(), weight_decay=0.0)
    packed = theirs.state_dict()
    packed["state"] = copy.deepcopy(ours.state_dict()["state"])
    theirs.load_state_dict(packed)
    assert train(other, theirs, range(5, 10)) == pytest.approx(train(model, ours, range(5, 10)), rel=1e-4)


def test_load_hooks_see_and_may_change_what_is_loaded():
    model = transformer()
    optimizer = optimizer_of(model)
    train(model, optimizer, range(1))
    seen = []

    def before(_, state_dict):
        state_dict["param_groups"][0]["lr"] = 0.25
        return state_dict

    def after(loaded):
        seen.extend(type(value) for state in loaded.state.values() for value in state.values())

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert set(seen) == {torch.Tensor}
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1


def spoil_shape(state_dict):
    state_dict["state"][1]["exp_avg"] = state_dict["state"][1]["exp_avg"][:-1]


def spoil_step(state_dict):
    state_dict["state"][1]["step"] = torch.tensor(2.5)


def spoil_option(state_dict):
    state_dict["param_groups"][0]["lr"] = -1.5


def spoil_type(state_dict):
    state_dict["state"][1]["exp_avg_sq"] = [1.0]


def spoil_length(state_dict):
    state_dict["param_groups"][0]["params"].pop()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_shape, r"exp_avg of parameter 1 .* shape \(11, 32\)"),
        (spoil_step, "step of parameter 1 .* whole number"),
        (spoil_option, "group 0 .*lr must be finite and at least 0, not -1.5"),
        (spoil_type, "exp_avg_sq of parameter 1 .* no dense tensor"),
        (spoil_length, "doesn't match the size"),
    ],
)
def test_an_unsound_state_dict_is_refused_and_changes_nothing(spoil, message):
    model = transformer()
    optimizer = optimizer_of(model)
    train(model, optimizer, range(4))
    state_dict = copy.deepcopy(optimizer.state_dict())
    spoil(state_dict)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state_dict)
    train(model, optimizer, range(4, 8))
    assert same_parameters(model, uninterrupted(8))


def test_closures_are_called_with_gradients_on_and_their_loss_is_returned():
    model = transformer()
    optimizer = optimizer_of(model)
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = loss_of(model, tokens(len(calls)))
        loss.backward()
        calls.append(loss)
        return loss

    with torch.no_grad():
        for _ in range(8):
            assert optimizer.step(closure) is calls[-1]
    assert len(calls) == 8
    assert same_parameters(model, uninterrupted(8))


def test_step_returns_nothing_without_a_closure_and_does_nothing_without_gradients():
    model = transformer()
    optimizer = optimizer_of(model)
    assert optimizer.step() is None
    assert same_parameters(model, transformer()) and len(optimizer.state) == 0


def test_step_hooks_are_called_in_order():
    model = transformer()
    optimizer = optimizer_of(model)
    order = []
    optimizer.register_step_pre_hook(lambda *_: order.append(("before", bits(model.wte.weight).copy())))
    optimizer.register_step_post_hook(lambda *_: order.append(("after", bits(model.wte.weight).copy())))
    train(model, optimizer, range(1))
    assert [name for name, _ in order] == ["before", "after"]
    assert (order[0][1] != order[1][1]).any()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none):
    model = transformer()
    optimizer = optimizer_of(model)
    loss_of(model, tokens(0)).backward()
    optimizer.zero_grad(set_to_none=set_to_none)
    grads = [param.grad for param in model.parameters()]
    assert all(grad is None if set_to_none else not grad.any() for grad in grads)
    optimizer.step()
    # A gradient of zeros is a gradient: the step counts, as in PyTorch.
    assert len(optimizer.state) == (0 if set_to_none else len(grads))


def test_gradients_kept_in_place_give_the_same_bits():
    model = transformer()
    optimizer = optimizer_of(model)
    for step in range(8):
        optimizer.zero_grad(set_to_none=False)
        loss_of(model, tokens(step)).backward()
        optimizer.step()
    assert same_parameters(model, uninterrupted(8))


def test_a_parameter_without_a_gradient_keeps_its_step_count():
    one, two = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    optimizer = MoFO([one, two])
    for step in range(5):
        one.grad = torch.ones(5)
        two.grad = torch.ones(5) if step % 2 else None
        before = two.detach().clone()
        optimizer.step()
        assert torch.equal(before, two) == (two.grad is None)
    assert optimizer.state[one]["step"].item() == 5
    assert optimizer.state[two]["step"].item() == 2


def test_add_param_group():
    model = transformer()
    frozen, rest = [model.wte.weight], [p for p in model.parameters() if p is not model.wte.weight]
    optimizer = MoFO(rest, lr=1e-3)
    train(model, optimizer, range(2))
    optimizer.add_param_group({"params": frozen, "lr": 1e-2, "update_fraction": 1.0})
    assert optimizer.param_groups[1]["betas"] == (0.9, 0.999)
    before = frozen[0].detach().clone()
    train(model, optimizer, range(2, 4))
    assert optimizer.state[frozen[0]]["step"].item() == 2
    assert optimizer.state[rest[0]]["step"].item() == 4
    assert (before != frozen[0]).all()


def test_parameters_taken_out_of_their_group_are_left_alone():
    model = transformer()
    optimizer = MoFO(model.parameters())
    train(model, optimizer, range(2))
    gone = optimizer.param_groups[0]["params"].pop(0)
    before = gone.detach().clone()
    train(model, optimizer, range(2, 4))
    assert torch.equal(gone, before) and gone.grad is not None


class TestSchedulers:
    """Options that change between steps: the reference is an optimizer made anew, with the options, for each step."""

    def expected(self, options_of_steps):
        model, state = transformer(), None
        for step, options in enumerate(options_of_steps):
            optimizer = MoFO(model.parameters(), **options)
            if state is not None:
                state["param_groups"] = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict(state)
            train(model, optimizer, range(step, step + 1))
            state = optimizer.state_dict()
        return model

    def test_one_cycle_changes_learning_rate_and_betas(self):
        model = transformer()
        optimizer = MoFO(model.parameters())
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=8, cycle_momentum=True)
        used = []
        for step in range(8):
            group = optimizer.param_groups[0]
            used.append({"lr": group["lr"], "betas": group["betas"]})
            train(model, optimizer, range(step, step + 1))
            scheduler.step() if step < 7 else None
        assert len({options["betas"] for options in used}) > 3
        assert same_parameters(model, self.expected(used))

    def test_any_option_may_be_set_at_each_step(self):
        used = [
            {"weight_decay": 0.1 * step, "update_fraction": 0.1 + 0.1 * step, "lr": 1e-2 / (1 + step)}
            for step in range(4)
        ]
        used.append({**used[-1], "filter": "gradient"})
        used.append({**used[-1], "eps": 1e-3, "weight_decay_scope": "all"})
        model = transformer()
        optimizer = MoFO(model.parameters())
        for step, options in enumerate(used):
            optimizer.param_groups[0].update(options)
            train(model, optimizer, range(step, step + 1))
        assert same_parameters(model, self.expected(used))

    def test_blocks_that_change_at_every_step_do_not_pile_up(self):
        param = nn.Parameter(torch.ones(8))
        optimizer = MoFO([param], update_fraction=1.0)
        for step in range(2500):
            param.grad = torch.ones(8)
            optimizer.param_groups[0]["num_blocks"] = 1 + step % 2
            optimizer.step()
        assert optimizer.state[param]["step"].item() == 2500
        (handle,) = optimizer._engine._handles
        assert handle.num_tensors == 1 and handle._added < 1100

    def test_a_learning_rate_in_a_tensor(self):
        model = transformer()
        rate = torch.tensor(1e-2, dtype=torch.float64)
        optimizer = MoFO(model.parameters(), lr=rate)
        train(model, optimizer, range(2))
        rate.fill_(1e-3)
        train(model, optimizer, range(2, 4))
        assert same_parameters(model, self.expected([{"lr": 1e-2}] * 2 + [{"lr": 1e-3}] * 2))

    def test_lambda_lr_with_a_group_of_its_own_rate(self):
        model = transformer()
        optimizer = MoFO(param_groups(model), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        for step in range(4):
            train(model, optimizer, range(step, step + 1))
            scheduler.step()
        assert {group["lr"] for group in optimizer.param_groups} == {1e-2 / 16}


class TestGradScaler:
    def test_scaled_steps_are_the_unscaled_ones(self):
        model = transformer()
        optimizer = optimizer_of(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(8):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, tokens(step))).backward()
            scaler.step(optimizer)
            scaler.update()
        # A power of two is undone exactly.
        assert same_parameters(model, uninterrupted(8))

    def test_an_infinite_gradient_skips_the_step(self):
        model = transformer()
        optimizer = optimizer_of(model)
        train(model, optimizer, range(1))
        before = copy.deepcopy(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(loss_of(model, tokens(1))).backward()
        model.wte.weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 512.0
        assert same_parameters(model, before)
        assert optimizer.state[model.wte.weight]["step"].item() == 1


def test_autograd_notices_that_a_step_has_changed_the_parameters():
    weight = nn.Parameter(torch.ones(3))
    optimizer = MoFO([weight])
    loss = (weight * weight).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_names_key_the_random_bits():
    def run(params):
        optimizer = MoFO(params, state_dtype=torch.bfloat16, update_fraction=1.0)
        generator = torch.Generator().manual_seed(0)
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
        return [optimizer.state[param]["exp_avg"] for group in optimizer.param_groups for param in group["params"]]

    one = [nn.Parameter(torch.zeros(64)) for _ in range(2)]
    (a,) = run([("first", one[0])])
    (b,) = run([("second", one[0])])
    assert not same_bits(a, b)
    assert same_bits(run([("first", one[0]), ("second", one[1])])[0], a)
    # Without names: by group and position.
    assert same_bits(run([one[0]])[0], run([("0.0", one[0])])[0])
    assert same_bits(run([{"params": [one[0]]}, {"params": [one[1]]}])[1], run([("x", one[0]), ("1.0", one[1])])[1])


def test_the_number_of_threads_follows_pytorch_and_changes_no_bit():
    threads = torch.get_num_threads()
    try:
        models = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            param = nn.Parameter(torch.linspace(-1, 1, 300_000))
            optimizer = MoFO([param])
            for step in range(3):
                param.grad = torch.sin(torch.arange(300_000) * (step + 1.0))
                optimizer.step()
            assert [settings.num_threads for settings, _ in optimizer._engine._handle_for] == [count]
            models.append(param)
    finally:
        torch.set_num_threads(threads)
    assert same_bits(models[0], models[1]) and same_bits(models[0], models[2])


def test_the_number_of_threads_can_be_the_optimizers_own():
    params = [nn.Parameter(torch.ones(100_000)) for _ in range(2)]
    optimizer = MoFO([{"params": params[:1]}, {"params": params[1:], "seed": 1}], num_threads=3)

    def threads(of):
        for param in (param for group in of.param_groups for param in group["params"]):
            param.grad = torch.ones_like(param)
        of.step()
        return [settings.num_threads for settings, _ in of._engine._handle_for]

    assert threads(optimizer) == [3, 3]
    assert threads(copy.deepcopy(optimizer)) == threads(pickle.loads(pickle.dumps(optimizer))) == [3, 3]
    state_dict = optimizer.state_dict()
    assert not any("num_threads" in key for group in state_dict["param_groups"] for key in group)
    optimizer.load_state_dict(copy.deepcopy(state_dict))
    assert threads(optimizer) == [3, 3]
    for wrong, error in ((0, ValueError), (1025, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="num_threads"):
            MoFO(params, num_threads=wrong)


def test_small_tensors_are_stepped_by_one_thread():
    small = [nn.Parameter(torch.ones(100)) for _ in range(3)]
    large = nn.Parameter(torch.ones(100_000))
    optimizer = MoFO(
        [{"params": [param], "seed": number + 1} for number, param in enumerate(small)] + [{"params": [large]}],
        num_threads=4,
    )
    for param in (*small, large):
        param.grad = torch.ones_like(param)
    optimizer.step()
    handles = [settings.num_threads for settings, _ in optimizer._engine._handle_for]
    assert handles == [1, 1, 1, 4]
    # Small ones that share their settings with large ones are stepped with them.
    for group in optimizer.param_groups:
        group["seed"] = 7
    optimizer.step()
    assert [settings.num_threads for settings, _ in optimizer._engine._handle_for] == [4]


def test_a_compiled_training_step_calls_it():
    model = transformer()
    optimizer = optimizer_of(model)

    def whole_step(batch):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()

    compiled = torch.compile(whole_step, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(8):
            compiled(tokens(step))
    assert same_parameters(model, uninterrupted(8))
