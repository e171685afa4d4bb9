"""The cases: which settings, which data. generate.py runs them through the reference and stores them."""

import numpy as np

import reference as ref
from data import Draw, Computed, stored
from reference import BF16, F16, F32

SIZES = {"bias": 1, "norm.weight": 7, "größe": 64, "blk.0.attn_q.weight": 257}
INFINITY, NAN = float("inf"), float("nan")


class Case:
    """One optimizer, its tensors, and the gradients and arguments of each step."""

    def __init__(self, name, about, **options):
        self.name, self.about, self.options = name, about, options
        self.tensors, self.steps = [], []
        self.draw = Draw(name)

    def tensor(self, name, numel, scale=1.0, param=None, **settings):
        """`param` is f32 values, raw elements or Computed; None is random values of this scale."""
        dtype = settings.get("param_dtype", F32)
        if param is None:
            param = self.draw.bell(numel, scale)
        if not isinstance(param, Computed) and np.asarray(param).dtype != np.uint16:
            param = stored(param, dtype)
        self.tensors.append({"name": name, "numel": numel, "param": param} | settings)
        return self

    def standard(self, sizes=SIZES, **settings):
        for name, numel in sizes.items():
            self.tensor(name, numel, **settings)
        return self

    def step(self, grads=None, scale=1.0, **args):
        """`grads` has f32 values, raw elements, Computed or None a tensor; without it all are random."""
        if grads is None:
            grads = [self.draw.bell(tensor["numel"], scale) for tensor in self.tensors]
        grads = list(grads)
        for i, (tensor, grad) in enumerate(zip(self.tensors, grads, strict=True)):
            raw = grad is None or isinstance(grad, Computed) or np.asarray(grad).dtype == np.uint16
            grads[i] = grad if raw else stored(grad, tensor.get("grad_dtype", F32))
        self.steps.append((grads, args))
        return self

    def run(self, steps, **args):
        for _ in range(steps):
            self.step(**args)
        return self


def filters():
    for name in ("momentum", "gradient", "update", "random"):
        case = Case(f"filter_{name}", f"The filter `{name}`, f32 throughout.", filter=name, weight_decay=0.1, seed=7)
        yield case.standard().tensor("mlp", 1000).run(4)
        case = Case(
            f"filter_{name}_decay_all",
            f"The filter `{name}` where weight decay reaches every entry.",
            filter=name,
            weight_decay=0.1,
            weight_decay_scope="all",
            learning_rate=0.01,
            update_fraction=0.03,
            seed=2**64 - 1,
        )
        yield case.standard().run(3)
        case = Case(
            f"filter_{name}_bf16_state",
            f"The filter `{name}` with moments in bf16.",
            filter=name,
            state_dtype=BF16,
            weight_decay=0.01,
            seed=1,
        )
        yield case.standard().tensor("mlp", 1000).run(4)


def adamw():
    for state in (F32, BF16):
        case = Case(
            f"adamw_{state}_state",
            "update_fraction = 1 is AdamW, whatever the filter.",
            update_fraction=1.0,
            weight_decay=0.1,
            state_dtype=state,
            filter="random",
        )
        yield case.standard().run(4)


def dtypes():
    for param in (BF16, F16):
        for state in (F32, BF16):
            for rounding in ("master", "nearest", "stochastic"):
                for scope in ("selected", "all"):
                    case = Case(
                        f"param_{param}_{rounding}_{scope}_{state}_state",
                        f"Parameters in {param} ({rounding}), moments in {state}, gradients in each type.",
                        master_weights=rounding == "master",
                        rounding="stochastic" if rounding == "master" else rounding,
                        state_dtype=state,
                        weight_decay=0.1,
                        weight_decay_scope=scope,
                        learning_rate=0.01,
                        update_fraction=0.2,
                        seed=42,
                    )
                    for grad, numel in ((F32, 33), (F16, 65), (BF16, 130)):
                        case.tensor(f"{grad}.grad", numel, param_dtype=param, grad_dtype=grad)
                    case.tensor("adamw", 19, param_dtype=param, update_fraction=1.0)
                    yield case.run(3)
    case = Case("grad_dtypes", "Parameters in f32 with gradients in each type.", weight_decay=0.01)
    for grad, numel in ((F32, 33), (F16, 257), (BF16, 257)):
        case.tensor(f"{grad}.grad", numel, grad_dtype=grad)
    yield case.run(3)
    case = Case("mixed_dtypes", "Parameters of all types beside each other.", master_weights=True, max_grad_norm=1.0)
    for dtype, numel in ((F32, 33), (F16, 257), (BF16, 100)):
        case.tensor(f"{dtype}.weight", numel, param_dtype=dtype, grad_dtype=dtype)
    yield case.run(3)
    case = Case(
        "f16_subnormals",
        "Parameters around and below the smallest normal f16, rounded stochastically, gradients likewise.",
        learning_rate=2e-6,
        update_fraction=0.5,
        epsilon=1e-12,
        seed=3,
    )
    small = case.draw.bell(257, 2.0**-13)
    smaller = case.draw.bell(64, 2.0**-23)
    case.tensor("around", 257, param=small, param_dtype=F16, grad_dtype=F16)
    case.tensor("below", 64, param=smaller, param_dtype=F16, grad_dtype=F16)
    yield case.run(4, scale=2.0**-15)
    case = Case(
        "param_overflow",
        "Parameters that a step carries into infinity, of all roundings' types.",
        learning_rate=64.0,
        update_fraction=0.5,
        seed=5,
    )
    largest = {F32: 0x7F7FFFFF, BF16: 0x7F7F, F16: 0x7BFF}
    for dtype in (BF16, F16):
        raw = np.full(65, largest[dtype], dtype=np.uint16) | (case.draw.raw(65) % 2 << 15).astype(np.uint16)
        case.tensor(f"{dtype}.weight", 65, param=raw, param_dtype=dtype)
    huge = np.full(65, largest[F32], dtype=np.uint32).view(np.float32)
    case.tensor("f32.weight", 65, param=huge)
    case.step(learning_rate=3e37).step().step(learning_rate=2e36)
    yield case


def blocks():
    for name, options in (
        ("momentum", {}),
        ("update", {"filter": "update", "state_dtype": BF16}),
        ("random", {"filter": "random", "weight_decay_scope": "all", "weight_decay": 0.1}),
    ):
        case = Case(f"blocks_{name}", "Tensors cut into blocks, each with its own threshold.", seed=9, **options)
        case.tensor("heads", 7 * 37, num_blocks=7)
        case.tensor("single", 64, num_blocks=64)
        case.tensor("layers", 1000, num_blocks=8, update_fraction=0.03)
        case.tensor("tiny", 12, num_blocks=4, update_fraction=0.67)
        case.tensor("all", 30, num_blocks=3, update_fraction=1.0)
        yield case.run(3)
    case = Case(
        "blocks_bf16_param", "Blocks that start in the middle of a vector, in 16 bits.", seed=10, weight_decay=0.2
    )
    case.tensor("heads", 7 * 37, num_blocks=7, param_dtype=BF16, grad_dtype=BF16)
    case.tensor("odd", 11 * 13, num_blocks=11, param_dtype=F16, grad_dtype=F16)
    yield case.run(3)


def overrides():
    for state in (F32, BF16):
        case = Case(
            f"overrides_{state}_state",
            "Settings of single tensors, and tensors that come with moments, step counts and masters.",
            state_dtype=state,
            weight_decay=0.1,
            master_weights=True,
            update_fraction=0.2,
        )
        draw = case.draw
        case.tensor("plain", 65)
        case.tensor("bias", 33, update_fraction=1.0, weight_decay=0.0)
        case.tensor("half", 65, update_fraction=0.5, weight_decay=0.5, learning_rate_scale=0.1)
        case.tensor("frozen", 33, learning_rate_scale=0.0)
        for name, numel, step_count, dtype in (
            ("resumed", 65, 10, F32),
            ("ancient", 33, 2**32 + 5, F32),
            ("oldest", 33, 2**63 - 1 - 3, F32),
            ("resumed.bf16", 65, 1, BF16),
            ("resumed.f16", 65, 999, F16),
        ):
            param = draw.bell(numel)
            master = None
            if dtype != F32:
                # Deliberately not what rounds to the parameter: the master counts, the parameter follows.
                master = param + draw.bell(numel, 0.1)
            case.tensor(
                name,
                numel,
                param=param,
                param_dtype=dtype,
                step_count=step_count,
                exp_avg=stored(draw.bell(numel, 0.5), state),
                exp_avg_sq=stored(draw.uniform(numel), state),
                master=master,
            )
        yield case.run(3)
    case = Case(
        "dirty_memory",
        "Moments and masters in the caller's memory count as zero at the first step, whatever it holds.",
        master_weights=True,
    )
    case.tensor("f32", 65, caller_state=True)
    case.tensor("bf16", 65, caller_state=True, param_dtype=BF16)
    yield case.run(2)
    case = Case(
        "dirty_memory_bf16_state", "The same with moments in bf16.", state_dtype=BF16, update_fraction=1.0
    )
    yield case.tensor("f32", 65, caller_state=True).run(2)


def schedules():
    case = Case("schedules", "Learning rate and update fraction of the step, beside a tensor with its own.")
    case.standard().tensor("own", 65, update_fraction=0.5)
    for learning_rate, update_fraction in ((0.0, 0.05), (1e-3, None), (0.1, 1.0), (None, 0.3), (1e-5, 1e-9)):
        case.step(learning_rate=learning_rate, update_fraction=update_fraction)
    yield case
    case = Case(
        "fractions",
        "k = floor(update_fraction · numel) in f64, at least 1: 0.29 · 100 is 28.999999999999996.",
    )
    for fraction in (0.29, 0.57, 0.999999, 1e-300, 0.01, 0.07):
        case.tensor(f"fraction {fraction}", 100, update_fraction=fraction)
    yield case.run(2)
    case = Case("subsets", "Steps of some tensors, in any order, and tensors without a gradient.", max_grad_norm=0.5)
    case.standard()
    full = [case.draw.bell(tensor["numel"]) for tensor in case.tensors]
    case.step(full)
    case.step(full, tensors=[3, 1])
    case.step([full[0], None, full[2], None])
    case.step([None, full[1], full[2], full[3]], tensors=[2, 0, 3])
    case.step()
    yield case
    case = Case(
        "subsets_norm", "The norm adds in the order of the indices, whatever the order of the list.", max_grad_norm=0.5
    )
    case.standard({f"layer.{i}": 3 for i in range(5)})
    for seed in (100, 250, 270):
        # Gradients whose sums of squares round otherwise in the order of the list.
        case.step([Computed(seed + i, 115) for i in range(5)], tensors=[4, 2, 0, 1, 3])
    yield case


def gradients():
    case = Case("grad_scale", "Gradients that are unscaled in the step.", weight_decay=0.01)
    case.tensor("f16", 257, grad_dtype=F16).tensor("f32", 65)
    for grad_scale in (1 / 128, 1 / 3, -1.0, 0.0):
        case.step(scale=100.0, grad_scale=grad_scale)
    yield case
    for name in ("gradient", "update"):
        case = Case(f"grad_scale_{name}_filter", f"The filter `{name}` sees scaled gradients.", filter=name)
        yield case.tensor("weight", 129).step(grad_scale=1 / 3).step(grad_scale=-1 / 7)
    for name, limit in (("active", 0.5), ("inactive", 1e6)):
        case = Case(f"clip_{name}", f"Clipping to a norm of {limit}.", max_grad_norm=limit)
        case.standard().tensor("bf16", 100, grad_dtype=BF16)
        case.step().step(grad_scale=1 / 128).step(grad_scale=-2.0).step(grad_scale=0.0)
        yield case
    case = Case("clip_given_norm", "The caller passes the norm.", max_grad_norm=1.0)
    case.standard()
    for norm in (10.0, 0.1, 0.0, 1.0, 1e300):
        case.step(grad_norm=norm, grad_scale=0.5)
    yield case
    case = Case("given_norm_unused", "A norm that is passed without clipping is only reported.")
    yield case.tensor("weight", 33).step(grad_norm=123.25).step()
    case = Case("clip_many_tensors", "More tensors than lanes in the norm.", max_grad_norm=0.1, update_fraction=0.5)
    for i in range(70):
        case.tensor(f"layer.{i}", 1 + i % 3)
    yield case.run(1)


def nonfinite():
    for clip in (0.0, 1.0):
        case = Case(
            f"skip_nonfinite_{'clip' if clip else 'plain'}",
            "A step with a NaN or an infinity is left out, and the next one is as if it had not been.",
            skip_nonfinite=True,
            max_grad_norm=clip,
            state_dtype=BF16,
            weight_decay=0.1,
        )
        case.tensor("first", 65).tensor("second", 257, grad_dtype=F16)
        case.step()
        for where, value in ((256, NAN), (0, INFINITY), (100, -INFINITY)):
            first, second = case.draw.bell(65), case.draw.bell(257)
            second[where] = value
            case.step([first, second])
        case.step()
        case.step(grad_norm=INFINITY).step(grad_norm=NAN)
        # A norm that is passed is trusted, and the gradients are not looked at.
        first = case.draw.bell(65)
        first[64] = NAN
        case.step([first, case.draw.bell(257)], grad_norm=2.0)
        # The largest finite gradients are no reason to skip.
        case.step([np.full(65, 3e38, dtype=np.float32), np.full(257, 65504, dtype=np.float32)])
        # What is refused is refused before it could be skipped.
        case.step([np.full(65, 1e20, dtype=np.float32), case.draw.bell(257)], grad_scale=1e300)
        case.step([np.full(65, NAN, dtype=np.float32), case.draw.bell(257)], grad_scale=1e39)
        case.step([np.full(65, NAN, dtype=np.float32), case.draw.bell(257)], learning_rate=1e39)
        yield case

    def poisoned(case, numel):
        grad = case.draw.bell(numel)
        grad[[0, 17, 40]] = NAN, INFINITY, -INFINITY
        return grad

    for name, options in (
        ("momentum", {}),
        ("gradient", {"filter": "gradient"}),
        ("update", {"filter": "update", "weight_decay_scope": "all"}),
        ("random", {"filter": "random", "state_dtype": BF16}),
        ("decay_all", {"weight_decay_scope": "all", "state_dtype": BF16}),
        ("adamw", {"update_fraction": 1.0}),
        ("adamw_decay_all", {"update_fraction": 1.0, "weight_decay_scope": "all"}),
    ):
        case = Case(
            f"nonfinite_{name}",
            "NaN and infinite gradients: those entries never move again, all others are unaffected.",
            weight_decay=0.1,
            **({"update_fraction": 0.5} | options),
        )
        case.tensor("f32", 65).tensor("bf16", 65, param_dtype=BF16, grad_dtype=BF16)
        case.step().step([poisoned(case, 65), poisoned(case, 65)]).step().step()
        yield case
    case = Case(
        "clip_nonfinite",
        "Clipping without skipping: an infinite norm makes finite gradients count as zero, a NaN is refused.",
        max_grad_norm=1.0,
        update_fraction=0.5,
    )
    case.tensor("weight", 65)
    infinite, nan = case.draw.bell(65), case.draw.bell(65)
    infinite[3], nan[4] = INFINITY, NAN
    case.step().step([infinite]).step([nan]).step().step(grad_norm=INFINITY).step(grad_norm=NAN)
    yield case
    case = Case("refused", "A derived scalar that is no finite f32 refuses the step for all tensors.", beta1=0.5)
    case.tensor("weight", 33).tensor("scaled", 33, learning_rate_scale=1e30)
    case.step().step(learning_rate=1e10).step(grad_scale=1e39).step(grad_scale=-1e300)
    case.step(learning_rate=1e39, tensors=[0]).step()
    yield case
    case = Case(
        "nonfinite_params",
        "Parameters that are NaN, infinite, zero of either sign or subnormal.",
        update_fraction=0.4,
        weight_decay=0.1,
        learning_rate=1e-40,
    )
    special = [NAN, INFINITY, -INFINITY, 0.0, -0.0, 1e-40, -1e-44, 1.0, -3e38]
    for dtype in (F32, BF16, F16):
        case.tensor(f"{dtype}.weight", 65, param=case.draw.choice(65, special), param_dtype=dtype)
    yield case.run(3)
    case = Case(
        "nonfinite_params_nearest",
        "The same, with scope `all`, nearest rounding.",
        update_fraction=0.4,
        weight_decay=0.1,
        weight_decay_scope="all",
        rounding="nearest",
    )
    for dtype in (F32, BF16, F16):
        case.tensor(f"{dtype}.weight", 65, param=case.draw.choice(65, special), param_dtype=dtype)
    yield case.run(2)
    case = Case(
        "nonfinite_masters", "The same, with masters.", update_fraction=0.4, weight_decay=0.1, master_weights=True
    )
    for dtype in (BF16, F16):
        case.tensor(f"{dtype}.weight", 65, param=case.draw.choice(65, special), param_dtype=dtype)
    yield case.run(2)


def magnitudes():
    for state in (F32, BF16):
        suffix = f"{state}_state"
        case = Case(f"ties_{suffix}", "Entries that tie with the threshold all move.", state_dtype=state)
        for name, numel in SIZES.items():
            case.tensor(name, numel)
        for values in ([1.0, -1.0], [0.5, -0.5, 0.25, 0.0], [1.0, -1.0, 0.5, 0.0, -0.0]):
            case.step([case.draw.choice(tensor["numel"], values) for tensor in case.tensors])
        yield case
        case = Case(
            f"zeros_{suffix}",
            "Entries without momentum never move, unless update_fraction is 1.",
            state_dtype=state,
            weight_decay=0.1,
        )
        case.tensor("zero", 65).tensor("negative", 65).tensor("sparse", 257).tensor("adamw", 65, update_fraction=1.0)
        zero = np.zeros(65, dtype=np.float32)
        for _ in range(3):
            sparse = np.where(case.draw.raw(257) % np.uint64(40) == 0, case.draw.bell(257), np.float32(0))
            case.step([zero, -zero, sparse, zero])
        yield case
        case = Case(
            f"denormals_{suffix}",
            "Denormal gradients and moments, and moments that are flushed to zero.",
            state_dtype=state,
            update_fraction=0.6,
            epsilon=1e-30,
        )
        draw = case.draw
        case.tensor("gradients", 257).tensor("edge", 257)
        case.tensor(
            "moments",
            65,
            step_count=3,
            exp_avg=stored(draw.bell(65, 2.0**-125), state),
            exp_avg_sq=stored(draw.uniform(65) * np.float32(2.0**-125), state),
        )
        case.tensor("f16", 65, grad_dtype=F16)
        for _ in range(3):
            case.step(
                [
                    draw.bell(257, 2.0**-130),
                    draw.bell(257, 2.0**-120),
                    np.zeros(65, dtype=np.float32),
                    (draw.raw(65) & np.uint64(0x83FF)).astype(np.uint16),
                ]
            )
        yield case
        case = Case(
            f"flush_edge_{suffix}",
            "Moments at 2^-126, which stay, and one bit below, which are flushed before they could be rounded up.",
            state_dtype=state,
            beta1=0.0,
            beta2=0.0,
            update_fraction=0.9,
            epsilon=1e-30,
        )
        case.tensor("exp_avg", 65).tensor("exp_avg_sq", 65)
        around = np.array([0x00800000, 0x007FFFFF, 0x00800001, 0x80800000, 0x807FFFFF], dtype=np.uint32)
        roots = np.array([0x20000000, 0x1FFFFFFF, 0x20000001, 0xA0000000, 0x9FFFFFFF], dtype=np.uint32)
        for _ in range(2):
            case.step([case.draw.choice(65, around.view(np.float32)), case.draw.choice(65, roots.view(np.float32))])
        yield case
        case = Case(
            f"huge_{suffix}",
            "Gradients whose squares and moments overflow.",
            state_dtype=state,
            update_fraction=0.6,
            weight_decay=0.1,
        )
        case.tensor("squares", 65).tensor("moments", 65).tensor("bf16", 65, grad_dtype=BF16)
        case.step(scale=1e20)
        case.step([case.draw.bell(65, 1e21), case.draw.choice(65, [3e38, -3e38, 1.0]), case.draw.bell(65, 1e38)])
        case.step().step(grad_scale=1e30)
        yield case
    case = Case("tiny_steps", "Parameters and steps below the smallest normal f32.", learning_rate=1e-40)
    case.tensor("weight", 257, scale=2.0**-128, update_fraction=0.5)
    yield case.run(3)


def hyperparameters():
    for name, options in (
        ("beta1_zero", {"beta1": 0.0}),
        ("beta2_zero", {"beta2": 0.0}),
        ("betas_zero", {"beta1": 0.0, "beta2": 0.0}),
        ("epsilon_zero", {"epsilon": 0.0}),
        ("epsilon_large", {"epsilon": 1e3}),
        ("decay_large", {"weight_decay": 50.0, "learning_rate": 0.1}),
        # 1 - 0.07 · 0.29 rounds otherwise if the product is rounded to f32 first.
        ("decay_rounded_once", {"weight_decay": 0.29, "learning_rate": 0.07}),
    ):
        case = Case(name, "Hyper-parameters at the ends of their ranges.", **({"weight_decay": 0.01} | options))
        yield case.standard({"bias": 1, "weight": 129}).tensor("adamw", 33, update_fraction=1.0).run(3)
    case = Case(
        "betas_near_one",
        "1 - β^t cancels, so that the last bits of β^t are seen.",
        beta1=0.9999999999,
        beta2=0.9999999999,
    )
    case.tensor("first", 33)
    for step_count in (110, 160, 12345, 2**20 - 2, 2**32 + 5):
        exp_avg, exp_avg_sq = case.draw.bell(33), case.draw.uniform(33)
        case.tensor(f"after {step_count}", 33, step_count=step_count, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    yield case.run(3)
    for name, options in (
        ("adamw", {"update_fraction": 1.0}),
        ("adamw_update_filter", {"update_fraction": 1.0, "filter": "update"}),
        ("update_filter", {"update_fraction": 0.5, "filter": "update"}),
        ("gradient_filter", {"update_fraction": 0.5, "filter": "gradient"}),
    ):
        case = Case(f"epsilon_zero_{name}", "0 / 0 where a moment is zero and ε is too.", epsilon=0.0, **options)
        case.tensor("weight", 65)
        case.step([case.draw.choice(65, [0.0, 1.0, -2.0])]).step([case.draw.choice(65, [0.0, 1e-30])])
        yield case
    case = Case("overflown_beta2_zero", "v overflows, then 0 · ∞ makes it NaN.", beta2=0.0, update_fraction=0.5)
    case.tensor("weight", 33)
    case.step([case.draw.bell(33, 1e20)]).step().step()
    yield case


def large():
    case = Case(
        "large_dtypes",
        "More than one chunk of the norm, in every type; buffers as digests.",
        max_grad_norm=1.0,
        weight_decay=0.01,
        state_dtype=BF16,
    )
    case.digest = True
    for i, (dtype, numel) in enumerate(((F32, 4099), (F16, 8193), (BF16, 12289))):
        exponent = 12 if dtype == F16 else 115
        case.tensor(
            f"{dtype}.weight", numel, param=Computed(100 + i, exponent), param_dtype=dtype, grad_dtype=dtype
        )
    for step in range(3):
        exponents = {F32: 110, BF16: 110, F16: 6}
        case.step([Computed(200 + 10 * step + i, exponents[t["grad_dtype"]]) for i, t in enumerate(case.tensors)])
    yield case
    case = Case(
        "large_f16_subnormals",
        "So many subnormals that every one of their 2^13 roundings is likely to be seen; buffers as digests.",
        learning_rate=1e-6,
        update_fraction=0.9,
        epsilon=1e-30,
    )
    case.digest = True
    case.tensor("weight", 2**18, param=Computed(3, 0), param_dtype=F16)
    for step in range(3):
        case.step([Computed(30 + step, 105)])
    yield case
    for name, options in (
        ("f32", {"weight_decay": 0.01}),
        ("bf16_decay_all", {"weight_decay": 0.1, "weight_decay_scope": "all", "state_dtype": BF16}),
        ("update_filter", {"filter": "update", "update_fraction": 0.03}),
    ):
        case = Case(
            f"large_{name}",
            "A tensor with more chunks than lanes, and one of blocks; buffers as digests.",
            max_grad_norm=1.0,
            **options,
        )
        case.digest = True
        dtype = BF16 if "bf16" in name else F32
        case.tensor("embedding", 65 * 4096 + 4097, param=Computed(1, 115), param_dtype=dtype)
        case.tensor("stack", 12 * 4321, num_blocks=12, param=Computed(2, 115), param_dtype=dtype, grad_dtype=BF16)
        for step in range(3):
            case.step([Computed(10 + step, 105), Computed(20 + step, 105)])
        yield case


    for name, about, shape in (
        ("equal", "All magnitudes are equal: all entries move.", {"mask": 0x80000000}),
        ("ties", "Four magnitudes in all.", {"mask": 0x81800000}),
        ("ascending", "Magnitudes rise with the index.", {"multiplier": 2**8}),
        ("descending", "Magnitudes fall with the index.", {"multiplier": 2**32 - 2**8, "offset": 2**27 - 1}),
        ("clustered", "Equal magnitudes on each cache line, which mislead a sample of lines.", {"cluster": 16}),
        ("sparse", "Fewer entries than the fraction have a gradient.", {"period": 4096}),
    ):
        case = Case(f"large_{name}", f"{about} Buffers as digests.", update_fraction=0.05)
        case.digest = True
        case.tensor("single", 66 * 4096 + 13, param=Computed(4, 115))
        case.tensor("stack", 3 * 50_001, num_blocks=3, param=Computed(5, 115), param_dtype=BF16)
        case.tensor("heads", 16 * 6_400, num_blocks=16, param=Computed(6, 115), grad_dtype=BF16)
        # The second step's gradients dwarf the first's, so that the first threshold tells nothing of the second.
        for step, exponent in enumerate((100, 112)):
            case.step([Computed(40 + 3 * step + i, exponent, **shape) for i in range(3)])
        yield case


def norms():
    """Norms alone: (tensors, entries each, dtype, seed of the first, exponent, grad_scale)."""
    for numel in (1, 63, 64, 65, 4095, 4096, 4097, 64 * 4096, 64 * 4096 + 1, 65 * 4096 + 77):
        yield 1, numel, F32, numel, 110, 1.0
    yield 1, 4097, F16, 5, 6, 1 / 128
    yield 1, 4097, BF16, 6, 110, -3.0
    # Three levels: more than 4,096 chunks, and more than 4,096 tensors.
    yield 1, 4096 * 4096 + 4097, BF16, 7, 110, 1.0
    yield 65, 5, F32, 1000, 110, 1.0
    yield 4500, 3, F32, 2000, 110, 1.0
    # Squares beyond f32, and sums of subnormals.
    yield 1, 1000, F32, 8, 239, 1.0
    yield 1, 1000, F32, 9, 0, 1.0


def all_cases():
    for group in (
        filters,
        adamw,
        dtypes,
        blocks,
        overrides,
        schedules,
        gradients,
        nonfinite,
        magnitudes,
        hyperparameters,
        large,
    ):
        yield from group()


def random_bits_keys():
    """(seed, name, t, stream, entry)"""
    draw = Draw("random_bits")
    names = ["weight", "größe", "a", "blk.0.attn_q.weight", "層.0", "x" * 100]
    for seed in (0, 1, 2**32, 2**64 - 1):
        for stream in range(3):
            yield seed, names[0], 1, stream, 0
    for entry in (1, 63, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**40 + 12345, 2**61 - 1):
        yield 7, names[0], 1, 0, entry
    for t in (2, 3, 1000, 2**32 - 1, 2**32, 2**63 - 1):
        yield 7, names[1], t, 1, 5
    for name in names:
        yield 7, name, 1, 2, 5
    for _ in range(60):
        a, b, c, d, e = (int(x) for x in draw.raw(5))
        yield a, names[b % len(names)], 1 + c % 10**6, d % 3, e % 2**61


def rounding_inputs():
    """(bits of x, random)"""
    draw = Draw("rounding")
    edges = [0x00000000, 0x00000001, 0x00000FFF, 0x007FFFFF, 0x00800000]
    # Around 1, at and beside the middles of bf16 and of f16.
    edges += [0x3F800000, 0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F801000, 0x3F803000, 0x3F800FFF]
    # The smallest normal f16 and below, down to half of the smallest subnormal.
    edges += [0x38800000, 0x387FFFFF, 0x387FE000, 0x38000000, 0x38001000, 0x38003000]
    edges += [0x33800000, 0x33000000, 0x33000001, 0x32FFFFFF, 0x2D000000]
    # The largest of f16 and of bf16, infinity and NaN.
    edges += [0x477FE000, 0x477FEFFF, 0x477FF000, 0x477FFFFF, 0x47800000]
    edges += [0x7F7F0000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF]
    edges += [0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF]
    for x in edges:
        for sign in (0, 0x80000000):
            for random in (0, 0x0007FFFF, 0x00080000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
                yield x | sign, random
    raw = draw.raw(600)
    for i, value in enumerate(raw):
        x, random = int(value) >> 32, int(value) & 0xFFFFFFFF
        if i % 2:
            # The range in which f16 is neither zero nor infinite.
            x = (x & 0x807FFFFF) | ((101 + (x >> 23) % 42) << 23)
        yield x, random
