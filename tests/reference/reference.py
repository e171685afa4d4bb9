"""An optimizer step as docs/numerics.md defines it, in NumPy: vectorised, with the threshold found by sorting.

It shares no code and no structure with the Rust library, so that the two can only agree by both being what the
page says. Every f32 operation is a NumPy operation on float32 arrays, which rounds once and keeps subnormals.
Elements of 16 bits are uint16 arrays of their bit patterns throughout.
"""

import math

import numpy as np

F32, F16, BF16 = "f32", "f16", "bf16"
STREAMS = {"moments": 0, "param": 1, "filter": 2}

OK, SKIPPED, NOT_FINITE = "MOFO_OK", "MOFO_SKIPPED", "MOFO_ERROR_NOT_FINITE"

DEFAULT_OPTIONS = {
    "learning_rate": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "epsilon": 1e-8,
    "weight_decay": 0.0,
    "weight_decay_scope": "selected",
    "filter": "momentum",
    "update_fraction": 0.1,
    "state_dtype": F32,
    "master_weights": False,
    "rounding": "stochastic",
    "skip_nonfinite": False,
    "seed": 0,
    "max_grad_norm": 0.0,
}

DEFAULT_ARGS = {
    "learning_rate": None,
    "update_fraction": None,
    "grad_scale": 1.0,
    "grad_norm": None,
    "tensors": None,
}


# Bits and conversions


def bits(x):
    """The bit patterns of an f32 array."""
    return np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)


def magnitude(x):
    return bits(x) & np.uint32(0x7FFFFFFF)


def is_finite(x):
    return magnitude(x) <= np.uint32(0x7F7FFFFF)


def storage(dtype):
    """The NumPy type that holds elements of `dtype`."""
    return np.float32 if dtype == F32 else np.uint16


def widen(x, dtype):
    """To f32, exactly."""
    if dtype == F32:
        return x.astype(np.float32)
    if dtype == F16:
        return x.view(np.float16).astype(np.float32)
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def bf16_nearest(x):
    b = bits(x)
    rounded = (b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = (b >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(x), quiet_nan, rounded).astype(np.uint16)


def f16_nearest(x):
    with np.errstate(all="ignore"):
        return x.astype(np.float16).view(np.uint16)


def bf16_stochastic(x, random):
    b = bits(x)
    rounded = (b + (random >> np.uint32(16))) >> np.uint32(16)
    special = (b >> np.uint32(16)) | np.where(np.isnan(x), np.uint32(0x40), np.uint32(0))
    return np.where(is_finite(x), rounded, special).astype(np.uint16)


def f16_stochastic(x, random):
    mag = magnitude(x)
    r13 = random >> np.uint32(19)
    # Finite values only are looked at below, so that neither sum wraps where it matters.
    normal = np.minimum((mag + r13 - np.uint32(0x38000000)) >> np.uint32(13), np.uint32(0x7C00))
    below = np.where(mag < np.uint32(0x38800000), mag, np.uint32(0)).view(np.float32)
    steps = np.trunc(below * np.float32(2.0**37)).astype(np.uint32)
    subnormal = (steps + r13) >> np.uint32(13)
    h = np.where(mag < np.uint32(0x38800000), subnormal, normal)
    h = np.where(mag >= np.uint32(0x7F800000), np.uint32(0x7C00), h)
    h = np.where(mag > np.uint32(0x7F800000), np.uint32(0x7E00), h)
    return (h | ((bits(x) >> np.uint32(16)) & np.uint32(0x8000))).astype(np.uint16)


def nearest(x, dtype):
    return bf16_nearest(x) if dtype == BF16 else f16_nearest(x)


def stochastic(x, dtype, random):
    return bf16_stochastic(x, random) if dtype == BF16 else f16_stochastic(x, random)


# Random bits

MASK64 = (1 << 64) - 1


def mix64(x):
    """On a uint64 array, whose arithmetic wraps."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def low32(x):
    """The lower halves of a uint64 array."""
    return (x & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def fnv1a(name):
    h = 0xCBF29CE484222325
    for byte in name.encode("utf-8"):
        h = ((h ^ byte) * 0x00000100000001B3) & MASK64
    return h


def random_bits(seed, name, t, stream, entries):
    """bits32; `stream` is its number. `seed`, `t` and `entries` may be arrays."""
    seed, t, entries = (np.atleast_1d(np.asarray(x, dtype=np.uint64)) for x in (seed, t, entries))
    z = mix64(mix64(mix64(seed) ^ np.uint64(fnv1a(name))) ^ t)
    z = mix64(z ^ (entries >> np.uint64(32)))
    key = low32(mix64(z ^ np.uint64(stream)) << np.uint64(2) | np.uint64(stream))
    # The arithmetic of uint32 arrays wraps.
    x = low32(entries) ^ low32(z)
    x = (x ^ (x >> np.uint32(17))) * np.uint32(0xED5AD4BB)
    x = (x ^ (x >> np.uint32(11)) ^ key) * np.uint32(0xAC4C1B51)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x31848BAB)
    return x ^ (x >> np.uint32(16))


def moment_bits(moments):
    """What rounds m and what rounds v: each uses its upper half."""
    return moments, moments << np.uint32(16)


# Gradient norm


def fold(values):
    """One level: chunks of 4,096 into 64 lanes each, lanes into one; f64 in, one f64 a chunk out."""
    chunks = -(-values.size // 4096)
    padded = np.zeros(chunks * 4096, dtype=np.float64)
    padded[: values.size] = values
    rows = padded.reshape(chunks, 64, 64)
    lanes = np.zeros((chunks, 64), dtype=np.float64)
    for row in range(64):
        lanes = lanes + rows[:, row, :]
    width = 32
    while width >= 1:
        lanes = lanes[:, :width] + lanes[:, width : 2 * width]
        width //= 2
    return lanes[:, 0]


def fold_to_one(values):
    while values.size > 1:
        values = fold(values)
    return values[0]


def sum_of_squares(grad):
    """Of one tensor's gradient, widened to f32."""
    g0 = grad.astype(np.float64)
    with np.errstate(all="ignore"):
        return fold_to_one(fold(g0 * g0))


# One step


def power(beta, t):
    result, square = 1.0, beta
    while t:
        if t & 1:
            result *= square
        square *= square
        t >>= 1
    return result


def f32(x):
    with np.errstate(all="ignore"):
        return np.float32(x)


def divide(x, y):
    """IEEE division of Python floats."""
    with np.errstate(all="ignore"):
        return float(np.float64(x) / np.float64(y))


def scalars(options, learning_rate, scale, weight_decay, t):
    """The f32 scalars of a tensor's step, but for the gradients' factor, or None if one is not finite."""
    beta1, beta2 = options["beta1"], options["beta2"]
    lr = learning_rate * scale
    found = {
        "b1": f32(beta1),
        "c1": f32(1.0 - beta1),
        "b2": f32(beta2),
        "c2": f32(1.0 - beta2),
        "r": f32(divide(1.0, math.sqrt(1.0 - power(beta2, t)))),
        "e": f32(options["epsilon"]),
        "a": f32(divide(lr, 1.0 - power(beta1, t))),
        "decay": f32(1.0 - lr * weight_decay),
    }
    return found if all(np.isfinite(value) for value in found.values()) else None


def flush(x):
    return np.where(magnitude(x) < np.uint32(0x00800000), np.float32(0.0), x)


def thresholds(key, num_blocks, update_fraction):
    """The k-th largest key of each block."""
    blocks = np.sort(key.reshape(num_blocks, -1), axis=1)
    numel = blocks.shape[1]
    k = min(max(math.floor(update_fraction * float(numel)), 1), numel)
    return blocks[:, numel - k]


class Tensor:
    def __init__(
        self,
        name,
        param,
        param_dtype=F32,
        grad_dtype=F32,
        num_blocks=1,
        update_fraction=None,
        weight_decay=None,
        learning_rate_scale=1.0,
        step_count=0,
        exp_avg=None,
        exp_avg_sq=None,
        master=None,
    ):
        assert param.dtype == storage(param_dtype) and param.ndim == 1
        self.name = name
        self.param = param.copy()
        self.param_dtype = param_dtype
        self.grad_dtype = grad_dtype
        self.num_blocks = num_blocks
        self.update_fraction = update_fraction
        self.weight_decay = weight_decay
        self.learning_rate_scale = learning_rate_scale
        self.step_count = step_count
        self.exp_avg = exp_avg
        self.exp_avg_sq = exp_avg_sq
        self.master = master
        self.thresholds = np.zeros(num_blocks, dtype=np.float32)

    @property
    def numel(self):
        return self.param.size


class Optimizer:
    def __init__(self, **options):
        assert set(options) <= set(DEFAULT_OPTIONS), options
        self.options = DEFAULT_OPTIONS | options
        self.tensors = []

    def add_tensor(self, tensor):
        state = storage(self.options["state_dtype"])
        if tensor.step_count == 0:
            tensor.exp_avg = np.zeros(tensor.numel, dtype=state)
            tensor.exp_avg_sq = np.zeros(tensor.numel, dtype=state)
        assert tensor.exp_avg.dtype == state and tensor.exp_avg_sq.dtype == state
        if not self.has_master(tensor):
            assert tensor.master is None
        elif tensor.step_count == 0:
            tensor.master = np.zeros(tensor.numel, dtype=np.float32)
        self.tensors.append(tensor)

    def has_master(self, tensor):
        return self.options["master_weights"] and tensor.param_dtype != F32

    def step(self, grads, **args):
        """Takes one step on `grads`, one array or None a tensor; returns the status and the report."""
        assert set(args) <= set(DEFAULT_ARGS), args
        args = DEFAULT_ARGS | args
        options = self.options
        listed = range(len(self.tensors)) if args["tensors"] is None else sorted(args["tensors"])
        taking_part = [i for i in listed if grads[i] is not None]
        widened = {i: widen(grads[i], self.tensors[i].grad_dtype) for i in taking_part}
        entries = sum(self.tensors[i].numel for i in taking_part)

        # What can be refused without looking at a gradient is refused before a step can be skipped. A factor
        # within f32's range also keeps the norm of finite gradients finite.
        grad_scale = float(args["grad_scale"])
        found = {
            i: scalars(
                options,
                options["learning_rate"] if args["learning_rate"] is None else args["learning_rate"],
                self.tensors[i].learning_rate_scale,
                options["weight_decay"] if self.tensors[i].weight_decay is None else self.tensors[i].weight_decay,
                self.tensors[i].step_count + 1,
            )
            for i in taking_part
        }
        if not np.isfinite(f32(grad_scale)) or any(value is None for value in found.values()):
            return NOT_FINITE, None

        clipping = options["max_grad_norm"] > 0.0
        norm, finite = None, True
        if args["grad_norm"] is not None:
            norm = float(args["grad_norm"])
            finite = math.isfinite(norm)
        elif clipping or options["skip_nonfinite"]:
            sums = np.array([sum_of_squares(widened[i]) for i in taking_part], dtype=np.float64)
            with np.errstate(all="ignore"):
                total = fold_to_one(sums)
                norm = float(np.float64(abs(grad_scale)) * np.sqrt(total))
            finite = math.isfinite(total)

        report = {"grad_norm": norm, "entries": entries, "entries_selected": 0, "skipped": False}
        if options["skip_nonfinite"] and not finite:
            return SKIPPED, report | {"skipped": True}
        clip = 1.0
        if clipping:
            clip = divide(options["max_grad_norm"], norm + 1e-6)
            # A NaN stays a NaN, so that the step is refused.
            clip = 1.0 if clip > 1.0 else clip
        s = f32(grad_scale * clip)
        if not np.isfinite(s):
            return NOT_FINITE, None

        for i in taking_part:
            fraction = options["update_fraction"]
            if args["update_fraction"] is not None:
                fraction = args["update_fraction"]
            if self.tensors[i].update_fraction is not None:
                fraction = self.tensors[i].update_fraction
            with np.errstate(all="ignore"):
                report["entries_selected"] += self.step_tensor(self.tensors[i], widened[i], s, found[i], fraction)
        return OK, report

    def step_tensor(self, tensor, grad, s, c, update_fraction):
        """Returns how many entries were selected."""
        options = self.options
        tensor.step_count += 1
        t = tensor.step_count
        entries = np.arange(tensor.numel, dtype=np.uint64)
        master = self.has_master(tensor)
        state_dtype = options["state_dtype"]

        def draw(stream):
            return random_bits(options["seed"], tensor.name, t, STREAMS[stream], entries)

        if t == 1:
            m = np.zeros(tensor.numel, dtype=np.float32)
            v = np.zeros(tensor.numel, dtype=np.float32)
        else:
            m = widen(tensor.exp_avg, state_dtype)
            v = widen(tensor.exp_avg_sq, state_dtype)
        if master and t > 1:
            p = tensor.master.copy()
        else:
            p = widen(tensor.param, tensor.param_dtype)

        g = grad * s
        m = flush(c["b1"] * m + c["c1"] * g)
        v = flush(c["b2"] * v + (c["c2"] * g) * g)
        if state_dtype == BF16:
            for_m, for_v = moment_bits(draw("moments"))
            tensor.exp_avg = bf16_stochastic(m, for_m)
            tensor.exp_avg_sq = bf16_stochastic(v, for_v)
            m = widen(tensor.exp_avg, BF16)
            v = widen(tensor.exp_avg_sq, BF16)
        else:
            tensor.exp_avg, tensor.exp_avg_sq = m, v
        u = m / (np.sqrt(v) * c["r"] + c["e"])
        moved = p * c["decay"] - c["a"] * u
        decayed = p * c["decay"]
        for array in (g, m, v, u, moved, decayed):
            assert array.dtype == np.float32

        if update_fraction == 1.0:
            selected = is_finite(m)
            tensor.thresholds = np.zeros(tensor.num_blocks, dtype=np.float32)
        else:
            x = {
                "momentum": lambda: m,
                "gradient": lambda: g,
                "update": lambda: u,
                "random": lambda: (draw("filter") >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24),
            }[options["filter"]]()
            key = np.where(is_finite(m) & is_finite(x), magnitude(x), np.uint32(0))
            threshold = thresholds(key, tensor.num_blocks, update_fraction)
            floor = np.maximum(threshold, np.uint32(1))
            selected = (key.reshape(tensor.num_blocks, -1) >= floor[:, None]).reshape(-1)
            tensor.thresholds = threshold.astype(np.uint32).view(np.float32)

        decay_all = options["weight_decay_scope"] == "all"
        new = np.where(selected, moved, decayed if decay_all else p)
        if tensor.param_dtype == F32:
            tensor.param = new
        elif master:
            tensor.master = new
            tensor.param = nearest(new, tensor.param_dtype)
        else:
            if options["rounding"] == "nearest":
                rounded = nearest(new, tensor.param_dtype)
            else:
                rounded = stochastic(new, tensor.param_dtype, draw("param"))
            touched = np.ones_like(selected) if decay_all else selected
            tensor.param = np.where(touched, rounded, tensor.param)
        return int(np.count_nonzero(selected))
