"""What must hold of the reference itself, whatever the library does."""

import json
import math
import pathlib

import numpy as np
from safetensors import safe_open

import reference as ref
from data import Draw
from reference import BF16, F16

N = 1_000_000
SIGMAS = 5.0
GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"


def arithmetic_keeps_subnormals_and_rounds_once():
    """Against f64: for these operations, rounding the f64 result to f32 is the correctly rounded one."""
    draw = Draw("arithmetic")
    x = (draw.raw(N) & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
    y = (draw.raw(N) & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
        pairs = {
            "add": (x + y, wide_x + wide_y),
            "subtract": (x - y, wide_x - wide_y),
            "multiply": (x * y, wide_x * wide_y),
            "sqrt": (np.sqrt(x), np.sqrt(wide_x)),
        }
        # A quotient may lie so near the middle of two subnormals that rounding twice differs.
        quotient = wide_x / wide_y
        normal = ~(np.abs(quotient) < 2.0**-126)
        pairs["divide"] = ((x / y)[normal], quotient[normal])
        for name, (found, wide) in pairs.items():
            expected = wide.astype(np.float32)
            same = (ref.bits(found) == ref.bits(expected)) | (np.isnan(found) & np.isnan(expected))
            assert same.all(), name
    tiny = np.array([1e-40], dtype=np.float32)
    assert (tiny * np.float32(0.5))[0] > 0 and (tiny / np.float32(2.0))[0] > 0


def nearest_rounding_is_to_nearest():
    draw = Draw("nearest")
    x = draw.bell(N, 100.0) * draw.choice(N, [2.0**k for k in range(-24, 10, 3)])
    for dtype, mantissa, smallest in ((BF16, 8, -126), (F16, 11, -14)):
        found = ref.widen(ref.nearest(x, dtype), dtype).astype(np.float64)
        exponent = np.maximum(np.frexp(x.astype(np.float64))[1] - 1, smallest)
        step = np.exp2((exponent - (mantissa - 1)).astype(np.float64))
        # np.round is to nearest even; f64 holds x and the quotient exactly.
        expected = np.round(x.astype(np.float64) / step) * step
        inside = np.abs(expected) < (65520 if dtype == F16 else 3e38)
        assert inside.any() and (found == expected)[inside].all(), dtype


def stochastic_rounding_is_unbiased():
    """The mean of N roundings of x lies within 5 deviations of x."""
    random = {
        stream: ref.random_bits(1, "weight", 1, number, np.arange(N, dtype=np.uint64))
        for stream, number in ref.STREAMS.items()
    }
    random["exp_avg"], random["exp_avg_sq"] = ref.moment_bits(random.pop("moments"))
    # Multiples of 2^-13 of a step, also in the subnormal range of f16, whose grid is 2^-24.
    f16_subnormal = [2.0**-37 * k for k in (1, 4097, 8191, 8192 * 3 + 100, 8192 * 1023 + 5000)]
    values = {
        BF16: [1.0 + 1 / 1024, -1.0 - 3 / 512, 3.14159, 1e-30, -2.5e30, 1.17549435e-38],
        F16: [1.0 + 1 / 4096, -1.0 - 3 / 8192, 3.14159, 6.2e-5, -1234.567, *f16_subnormal, -f16_subnormal[1]],
    }
    for dtype, xs in values.items():
        for x in np.array(xs, dtype=np.float32):
            for stream, bits in random.items():
                rounded = ref.widen(ref.stochastic(np.full(N, x), dtype, bits), dtype).astype(np.float64)
                low, high = rounded.min(), rounded.max()
                assert low <= x <= high, (dtype, x)
                if low == high:
                    # A chance of 2^-13 is seen in a million draws; nothing else may look certain.
                    assert low == x, (dtype, x)
                    continue
                up = (float(x) - low) / (high - low)
                deviation = (high - low) * math.sqrt(up * (1 - up) / N)
                bias = rounded.mean() - float(x)
                assert abs(bias) <= SIGMAS * deviation, (dtype, x, stream, bias / deviation)


def representable_values_are_not_rounded():
    every = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    for dtype in (BF16, F16):
        x = ref.widen(every, dtype)
        kept = ~np.isnan(x)
        for random in (0, 0xFFFFFFFF, 0x12345678):
            bits = np.full(65536, random, dtype=np.uint32)
            assert (ref.stochastic(x, dtype, bits) == every)[kept].all(), dtype
        assert (ref.nearest(x, dtype) == every)[kept].all(), dtype
        assert np.isnan(ref.widen(ref.stochastic(x, dtype, every.astype(np.uint32) << 16), dtype))[~kept].all()


def streams_are_uncorrelated():
    """Between streams, steps, names, seeds, neighbours and the moments; and every bit is fair."""
    entries = np.arange(N, dtype=np.uint64)
    beyond = entries + np.uint64(2**32)
    base = (1, "weight", 1, 0, entries)
    others = {
        "param": (1, "weight", 1, 1, entries),
        "filter": (1, "weight", 1, 2, entries),
        "next step": (1, "weight", 2, 0, entries),
        "next seed": (2, "weight", 1, 0, entries),
        "other name": (1, "weighu", 1, 0, entries),
        "neighbour": (1, "weight", 1, 0, entries + np.uint64(1)),
        "64 further": (1, "weight", 1, 0, entries + np.uint64(64)),
        "beyond 2^32": (1, "weight", 1, 0, beyond),
    }
    limit = SIGMAS / math.sqrt(N)

    def uniform(bits):
        return (bits.astype(np.float64) + 0.5) / 2.0**32 - 0.5

    first_bits = ref.random_bits(*base)
    first = uniform(first_bits)
    for name, key in others.items():
        other_bits = ref.random_bits(*key)
        correlation = 12.0 * float(np.mean(first * uniform(other_bits)))
        assert abs(correlation) <= limit, (name, correlation)
        differing = first_bits ^ other_bits
        for bit in range(32):
            share = float(np.mean((differing >> np.uint32(bit)) & np.uint32(1)))
            assert abs(share - 0.5) <= SIGMAS * 0.5 / math.sqrt(N), (name, bit, share)
    for bit in range(32):
        share = float(np.mean((first_bits >> np.uint32(bit)) & np.uint32(1)))
        assert abs(share - 0.5) <= SIGMAS * 0.5 / math.sqrt(N), (bit, share)
    for_m, for_v = (bits >> np.uint32(16) for bits in ref.moment_bits(first_bits))
    for rotation in range(16):
        rotated = ((for_v << np.uint32(rotation)) | (for_v >> np.uint32(16 - rotation))) & np.uint32(0xFFFF)
        for bit in range(16):
            share = float(np.mean(((for_m ^ rotated) >> np.uint32(bit)) & np.uint32(1)))
            assert abs(share - 0.5) <= SIGMAS * 0.5 / math.sqrt(N), (rotation, bit, share)


def norm_is_the_norm():
    for numel in (1, 65, 4097, 300_000):
        grad = Draw("norm").bell(numel)
        exact = math.fsum(float(x) ** 2 for x in grad)
        assert math.isclose(ref.sum_of_squares(grad), exact, rel_tol=1e-12)


def authors_code_agrees():
    """The golden vectors: values nearly, which entries move exactly."""
    paths = sorted(GOLDEN.glob("*.safetensors"))
    assert len(paths) == 7
    for path in paths:
        with safe_open(path, "np") as file:
            case = json.loads(file.metadata()["case"])

            def array(key):
                return file.get_tensor(key).reshape(-1)

            optimizer = ref.Optimizer(
                beta1=case["beta1"],
                beta2=case["beta2"],
                epsilon=case["epsilon"],
                weight_decay_scope=case["weight_decay_scope"],
            )
            for i, name in enumerate(case["names"]):
                optimizer.add_tensor(
                    ref.Tensor(
                        name,
                        array(f"param.{i}.0"),
                        update_fraction=case["update_fraction"][i],
                        weight_decay=case["weight_decay"][i],
                    )
                )
            for t, learning_rate in enumerate(case["learning_rate"], start=1):
                before = [tensor.param for tensor in optimizer.tensors]
                grads = [array(f"grad.{t}.{i}") for i in range(len(before))]
                optimizer.step(grads, learning_rate=learning_rate)
                for i, tensor in enumerate(optimizer.tensors):
                    for what in ("param", "exp_avg", "exp_avg_sq"):
                        found, expected = getattr(tensor, what), array(f"{what}.{i}.{t}")
                        # Second moments are sums of squares, which never cancel, and often below 1e-7.
                        atol = 0.0 if what == "exp_avg_sq" else 1e-7
                        assert np.allclose(found, expected, rtol=1e-5, atol=atol), (path.name, what, i, t)
                    # Entries that do not move are decayed, to the same bits in PyTorch.
                    decay = np.float32(1.0 - learning_rate * case["weight_decay"][i])
                    moved = tensor.param != before[i] * decay
                    expected = array(f"param.{i}.{t}") != array(f"param.{i}.{t - 1}") * decay
                    assert (moved == expected).all(), (path.name, "moved", i, t, np.count_nonzero(moved != expected))


def run():
    for fact in (
        authors_code_agrees,
        arithmetic_keeps_subnormals_and_rounds_once,
        nearest_rounding_is_to_nearest,
        representable_values_are_not_rounded,
        stochastic_rounding_is_unbiased,
        streams_are_uncorrelated,
        norm_is_the_norm,
    ):
        fact()
        print(f"ok: {fact.__name__}")
