"""Deterministic data for the vectors, made of integers only: no libm, no sampling algorithm that could change."""

import numpy as np

import reference as ref
from reference import BF16, F16, F32


def mix32(x):
    """`lowbias32` of a uint32 array, whose arithmetic wraps."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


class Draw:
    """A PCG64 stream keyed by text; `random_raw` is the part of NumPy whose output never changes."""

    def __init__(self, key):
        self.generator = np.random.PCG64(ref.fnv1a(key))

    def raw(self, n):
        return np.atleast_1d(self.generator.random_raw(n)).astype(np.uint64)

    def uniform(self, n):
        """f32 in [0, 1), multiples of 2^-24."""
        return (self.raw(n) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)

    def bell(self, n, scale=1.0):
        """f32, roughly Gaussian with a deviation of 0.58 `scale`."""
        total = self.uniform(n) + self.uniform(n)
        total = total + self.uniform(n)
        total = total + self.uniform(n)
        return (total - np.float32(2.0)) * np.float32(scale)

    def choice(self, n, values):
        """Entries of a short list of f32 values, each equally likely."""
        return np.array(values, dtype=np.float32)[(self.raw(n) % np.uint64(len(values))).astype(np.int64)]


def stored(x, dtype):
    """f32 values as elements of `dtype`."""
    x = np.asarray(x, dtype=np.float32)
    return x if dtype == F32 else ref.nearest(x, dtype)


class Computed:
    """Elements computed from their index i, so that a vector names them by a few numbers.

    h is mix32(j ^ mix32(seed)) & mask with j = i // cluster, or i · multiplier + offset where `multiplier` is given,
    which makes ordered values. The sign, the mantissa and the low bits of the exponent are h's; the biased exponent
    (f32's, also for bf16) spans 16 values from `exponent`, or 8 for f16. With a `period`, only every so manyth entry is
    not zero.
    """

    DEFAULTS = {"seed": 0, "mask": 0xFFFFFFFF, "cluster": 1, "multiplier": None, "offset": 0, "period": 1}

    def __init__(self, seed=0, exponent=0, **settings):
        self.settings = self.DEFAULTS | {"seed": seed, "exponent": exponent} | settings

    def described(self):
        """What differs from the defaults."""
        return {key: value for key, value in self.settings.items() if self.DEFAULTS.get(key, -1) != value}

    def elements(self, numel, dtype):
        settings = {key: None if value is None else np.uint32(value) for key, value in self.settings.items()}
        i = np.arange(numel, dtype=np.uint32)
        if settings["multiplier"] is None:
            seed = mix32(np.array([settings["seed"]], dtype=np.uint32))
            h = mix32(i // settings["cluster"] ^ seed) & settings["mask"]
        else:
            h = i * settings["multiplier"] + settings["offset"]
        if dtype == F16:
            exponent = settings["exponent"] + ((h >> np.uint32(10)) & np.uint32(7))
            b = (h & np.uint32(0x83FF)) | (exponent << np.uint32(10))
        else:
            exponent = settings["exponent"] + ((h >> np.uint32(23)) & np.uint32(15))
            b = (h & np.uint32(0x807FFFFF)) | (exponent << np.uint32(23))
        b = np.where(i % settings["period"] == 0, b, np.uint32(0))
        if dtype == F32:
            return b.view(np.float32)
        return (b >> np.uint32(16) if dtype == BF16 else b).astype(np.uint16)


def canonical(x, dtype):
    """The bit patterns, every NaN replaced by one: which NaN comes out is nobody's promise."""
    nan = np.isnan(ref.widen(x, dtype))
    quiet = {F32: 0x7FC00000, F16: 0x7E00, BF16: 0x7FC0}[dtype]
    pattern = x.view(np.uint32) if dtype == F32 else x
    return np.where(nan, pattern.dtype.type(quiet), pattern)


def digest(x, dtype):
    """The sum, modulo 2^64, of mix64(index << 32 | canonical bits)."""
    index = np.arange(x.size, dtype=np.uint64) << np.uint64(32)
    mixed = ref.mix64(index | canonical(x, dtype).astype(np.uint64))
    return f"{int(mixed.sum(dtype=np.uint64)):016x}"
