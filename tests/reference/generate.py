"""Writes the vectors (see README.md).

    python generate.py            writes vectors/
    python generate.py --check    tests the reference itself, and that the committed vectors are current
"""

import argparse
import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import save

import cases
import reference as ref
import selftest
from data import Computed, canonical, digest
from reference import F32

VECTORS = pathlib.Path(__file__).resolve().parent / "vectors"


def number(x):
    """A double as text: not every JSON reader rounds correctly, every strtod does."""
    return None if x is None else repr(float(x))


class Store:
    """The tensors of a file; what is there already is not stored again."""

    def __init__(self):
        self.tensors, self.keys = {}, {}

    def put(self, key, array):
        content = (array.dtype.str, array.tobytes())
        if content not in self.keys:
            assert key not in self.tensors
            self.keys[content] = key
            self.tensors[key] = np.ascontiguousarray(array)
        return self.keys[content]

    def input(self, key, data):
        if data is None:
            return None
        if isinstance(data, Computed):
            return data.described()
        return self.put(key, data)

    def expected(self, key, data, dtype, as_digest):
        if data is None:
            return None
        if as_digest:
            return {"digest": digest(data, dtype)}
        return self.put(key, canonical(data, dtype).view(data.dtype))


def elements(data, numel, dtype):
    return data.elements(numel, dtype) if isinstance(data, Computed) else data


def run(case):
    """The case's file, as bytes."""
    store = Store()
    as_digest = getattr(case, "digest", False)
    optimizer = ref.Optimizer(**case.options)
    state_dtype = optimizer.options["state_dtype"]
    described = []
    for i, spec in enumerate(case.tensors):
        spec = dict(spec)
        numel = spec.pop("numel")
        caller_state = spec.pop("caller_state", False)
        param = spec.pop("param")
        dtype = spec.get("param_dtype", F32)
        optimizer.add_tensor(ref.Tensor(param=elements(param, numel, dtype), **spec))
        tensor = optimizer.tensors[-1]
        given = {what: spec.get(what) for what in ("exp_avg", "exp_avg_sq", "master")}
        described.append(
            {
                "name": tensor.name,
                "numel": numel,
                "num_blocks": tensor.num_blocks,
                "param_dtype": tensor.param_dtype,
                "grad_dtype": tensor.grad_dtype,
                "update_fraction": number(tensor.update_fraction),
                "weight_decay": number(tensor.weight_decay),
                "learning_rate_scale": number(tensor.learning_rate_scale),
                "step_count": tensor.step_count,
                "caller_state": caller_state,
                "param": store.input(f"param.{i}.0", param),
            }
            | {what: store.input(f"{what}.{i}.0", array) for what, array in given.items()}
        )
    steps = []
    for t, (grads, args) in enumerate(case.steps, start=1):
        widened = [
            None if grad is None else elements(grad, tensor.numel, tensor.grad_dtype)
            for grad, tensor in zip(grads, optimizer.tensors)
        ]
        status, report = optimizer.step(widened, **args)
        if report is not None:
            report["grad_norm"] = number(report["grad_norm"])
        after = []
        for i, tensor in enumerate(optimizer.tensors):

            def expected(what, dtype):
                return store.expected(f"{what}.{i}.{t}", getattr(tensor, what), dtype, as_digest)

            after.append(
                {
                    "step_count": tensor.step_count,
                    "thresholds": store.put(f"thresholds.{i}.{t}", tensor.thresholds),
                    "param": expected("param", tensor.param_dtype),
                    "exp_avg": expected("exp_avg", state_dtype),
                    "exp_avg_sq": expected("exp_avg_sq", state_dtype),
                    "master": expected("master", F32),
                }
            )
        given = ref.DEFAULT_ARGS | args
        steps.append(
            {
                "args": {
                    "learning_rate": number(given["learning_rate"]),
                    "update_fraction": number(given["update_fraction"]),
                    "grad_scale": number(given["grad_scale"]),
                    "grad_norm": number(given["grad_norm"]),
                    "tensors": given["tensors"],
                },
                "grads": [store.input(f"grad.{t}.{i}", grad) for i, grad in enumerate(grads)],
                "expect": {"status": status, "report": report, "tensors": after},
            }
        )
    options = {
        key: number(value) if isinstance(value, float) else value for key, value in optimizer.options.items()
    }
    description = {
        "case": case.name,
        "about": case.about,
        "options": options,
        "tensors": described,
        "steps": steps,
    }
    text = json.dumps(description, ensure_ascii=False, separators=(",", ":"))
    return save(store.tensors, metadata={"case": text})


def norms():
    """norms.tsv: the gradient norm of generated gradients, as the bits of an f64."""
    lines = ["tensors\tnumel\tdtype\tseed\texponent\tgrad_scale\tnorm"]
    for count, numel, dtype, seed, exponent, grad_scale in cases.norms():
        sums = []
        for i in range(count):
            grad = ref.widen(Computed(seed + i, exponent).elements(numel, dtype), dtype)
            sums.append(ref.sum_of_squares(grad))
        norm = np.float64(abs(grad_scale)) * np.sqrt(ref.fold_to_one(np.array(sums)))
        bits = int(norm.view(np.uint64))
        lines.append(f"{count}\t{numel}\t{dtype}\t{seed}\t{exponent}\t{grad_scale!r}\t{bits:016x}")
    return lines


def random_bits():
    """random_bits.tsv: known answers of bits32."""
    lines = ["seed\tname\tt\tstream\tentry\tbits"]
    for seed, name, t, stream, entry in cases.random_bits_keys():
        bits = int(ref.random_bits(seed, name, t, stream, np.array([entry], dtype=np.uint64))[0])
        lines.append(f"{seed}\t{name}\t{t}\t{stream}\t{entry}\t{bits:08x}")
    return lines


def rounding():
    """rounding.tsv: x and what it is rounded to; every NaN is the quiet one without sign and payload."""
    lines = ["x\trandom\tbf16_nearest\tbf16_stochastic\tf16_nearest\tf16_stochastic"]
    pairs = np.array(list(cases.rounding_inputs()), dtype=np.uint32)
    x, random = np.ascontiguousarray(pairs[:, 0]).view(np.float32), np.ascontiguousarray(pairs[:, 1])
    columns = [
        canonical(ref.bf16_nearest(x), ref.BF16),
        canonical(ref.bf16_stochastic(x, random), ref.BF16),
        canonical(ref.f16_nearest(x), ref.F16),
        canonical(ref.f16_stochastic(x, random), ref.F16),
    ]
    for i, (a, r) in enumerate(pairs):
        lines.append(f"{a:08x}\t{r:08x}\t" + "\t".join(f"{column[i]:04x}" for column in columns))
    return lines


def files():
    """Every file of vectors/: its name and its bytes."""
    for case in cases.all_cases():
        yield f"{case.name}.safetensors", run(case)
    for table in (norms, random_bits, rounding):
        yield f"{table.__name__}.tsv", ("\n".join(table()) + "\n").encode()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    if check:
        selftest.run()
    made = dict(files())
    if check:
        committed = {path.name: path.read_bytes() for path in VECTORS.iterdir()}
        stale = sorted(name for name in made.keys() | committed.keys() if made.get(name) != committed.get(name))
        if stale:
            sys.exit(f"not current, run generate.py: {', '.join(stale)}")
    else:
        VECTORS.mkdir(exist_ok=True)
        for path in VECTORS.iterdir():
            if path.name not in made:
                path.unlink()
        for name, content in made.items():
            (VECTORS / name).write_bytes(content)
    print(f"{len(made)} files, {sum(map(len, made.values()))} bytes")


if __name__ == "__main__":
    main()
