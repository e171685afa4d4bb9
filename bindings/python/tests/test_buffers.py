"""Which arrays are taken, what is said of the others, and that nothing is lost when one is moved or freed."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import struct
import unittest
import warnings
import weakref
from typing import Any

import mofo
from support import NO_NUMPY, floats, numpy, optimizer

INVALID_BUFFER = "MOFO_ERROR_INVALID_BUFFER"
INVALID_ARGUMENT = "MOFO_ERROR_INVALID_ARGUMENT"


class BufferTest(unittest.TestCase):
    def setUp(self) -> None:
        self.optimizer = mofo.Optimizer(learning_rate=0.5, update_fraction=1.0, num_threads=1)
        self.addCleanup(self.optimizer.close)

    def assert_refused(self, text: str, status: str, *arguments: Any, **keywords: Any) -> None:
        """Adding this is refused, and leaves no tensor behind."""
        with self.assertRaisesRegex(mofo.Error, text) as raised:
            self.optimizer.add("w", *arguments, **keywords)
        self.assertEqual(raised.exception.status_name, status)
        self.assertEqual((len(self.optimizer), self.optimizer.memory().num_tensors), (0, 0))


class Kinds(BufferTest):
    """A step of α = 1 with a gradient of 1 everywhere moves an entry by the learning rate, up to ε."""

    def assert_steps(self, param: Any, grad: Any, read: Any, **keywords: Any) -> None:
        self.optimizer.add("w", param, grad, **keywords)
        before = read()
        self.assertEqual(self.optimizer.step().entries_selected, len(before))
        for old, new in zip(before, read()):
            self.assertAlmostEqual(new, old - 0.5, places=2)

    def test_array_array(self) -> None:
        param = floats(1, 2, 3)
        self.assert_steps(param, floats(1, 1, 1), lambda: list(param))

    def test_bytearray_with_a_type(self) -> None:
        param = bytearray(struct.pack("3f", 1, 2, 3))
        self.assert_steps(param, struct.pack("3f", 1, 1, 1), lambda: struct.unpack("3f", param), dtype="f32")

    def test_bytes_of_f16(self) -> None:
        param = bytearray(struct.pack("3e", 1, 2, 3))
        self.assert_steps(param, struct.pack("3e", 1, 1, 1), lambda: struct.unpack("3e", param), dtype="f16")

    def test_integers_of_16_bits_as_bf16(self) -> None:
        param, grad = array.array("H", [0x3F80, 0x4000, 0x4040]), array.array("H", [0x3F80] * 3)

        def read() -> list[float]:
            return [struct.unpack("<f", struct.pack("<I", bits << 16))[0] for bits in param]

        self.assert_steps(param, grad, read, dtype="bf16")

    def test_ctypes_array(self) -> None:
        param = (ctypes.c_float * 3)(1, 2, 3)
        self.assert_steps(param, (ctypes.c_float * 3)(1, 1, 1), lambda: list(param))

    def test_mmap(self) -> None:
        param = mmap.mmap(-1, 12)
        param[:] = struct.pack("3f", 1, 2, 3)
        self.assert_steps(param, floats(1, 1, 1), lambda: struct.unpack("3f", param[:]), dtype="f32")
        self.optimizer.close()
        param.close()

    def test_addresses(self) -> None:
        param, grad = floats(1, 2, 3), floats(1, 1, 1)
        addresses = param.buffer_info()[0], grad.buffer_info()[0]
        self.assert_steps(*addresses, lambda: list(param), numel=3, dtype="f32")

    def test_a_gradient_may_be_read_only_and_of_another_type(self) -> None:
        param = floats(1, 2, 3)
        self.assert_steps(param, struct.pack("3e", 1, 1, 1), lambda: list(param), grad_dtype="f16")

    def test_buffers_may_come_later(self) -> None:
        param = floats(1, 2, 3)
        self.optimizer.add("w", numel=3)
        self.optimizer.bind("w", param)
        self.assertEqual(self.optimizer.step().entries, 0)
        self.optimizer.bind("w", grad=floats(1, 1, 1))
        self.assertEqual(self.optimizer.step().entries, 3)
        self.assertAlmostEqual(param[0], 0.5)
        self.optimizer.bind(0, grad=None)
        self.assertEqual(self.optimizer.step().entries, 0)

    def test_the_callers_own_state(self) -> None:
        exp_avg, exp_avg_sq = floats(9, 9, 9), floats(9, 9, 9)
        self.optimizer.add("w", floats(1, 2, 3), floats(1, 1, 1), exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
        self.optimizer.step()
        for moment, expected in ((exp_avg, 0.1), (exp_avg_sq, 0.001)):
            self.assertTrue(all(abs(value - expected) < 1e-6 for value in moment), moment)
        self.assertEqual(list(self.optimizer.state("w").exp_avg), list(exp_avg))
        self.assertEqual(self.optimizer.memory().caller_state, 24)

    def test_the_callers_own_master(self) -> None:
        with mofo.Optimizer(learning_rate=0.5, update_fraction=1.0, num_threads=1, master_weights=True) as with_masters:
            param, master = array.array("H", [0x3F80] * 3), floats(0, 0, 0)
            with_masters.add("w", param, floats(1, 1, 1), dtype="bf16", master=master)
            with_masters.step()
            self.assertTrue(all(abs(value - 0.5) < 1e-6 for value in master), master)
            self.assertEqual(list(param), [0x3F00] * 3)


class Refused(BufferTest):
    def test_wrong_types_of_elements(self) -> None:
        for param, text in [
            (array.array("d", [1, 2]), "tensor \"w\": param holds format 'd', but must hold f32, f16 or bf16"),
            (array.array("i", [1, 2]), "tensor \"w\": param holds format 'i'"),
        ]:
            self.assert_refused(text, INVALID_BUFFER, param)
        self.assert_refused(
            "tensor \"w\": param holds format 'f', but must hold f16", INVALID_BUFFER, floats(1), dtype="f16"
        )
        self.assert_refused("tensor \"w\": grad holds format 'd'", INVALID_BUFFER, floats(1), array.array("d", [1]))

    def test_types_that_nobody_tells(self) -> None:
        self.assert_refused(r'tensor "w": param is of bytes \(bytearray\).*dtype=', INVALID_ARGUMENT, bytearray(4))
        self.assert_refused("can be bf16 or f16", INVALID_ARGUMENT, array.array("H", [1]))
        self.assert_refused('tensor "w": param is an address.*numel=', INVALID_ARGUMENT, 4096, dtype="f32")
        self.assert_refused('tensor "w": param is an address.*dtype=', INVALID_ARGUMENT, 4096, numel=1)
        self.assert_refused("how many entries", INVALID_ARGUMENT)

    def test_wrong_sizes(self) -> None:
        self.assert_refused(
            'tensor "w": grad has 2 entries, but must have 3', INVALID_BUFFER, floats(1, 2, 3), floats(1, 2)
        )
        self.assert_refused(
            'tensor "w": param has 3 entries, but must have 4', INVALID_BUFFER, floats(1, 2, 3), numel=4
        )
        self.assert_refused(
            'tensor "w": param has 5 bytes, no multiple of 4', INVALID_BUFFER, bytearray(5), dtype="f32"
        )
        self.assert_refused('tensor "w": exp_avg has 1 entries', INVALID_BUFFER, floats(1, 2), exp_avg=floats(1))
        self.assert_refused("num_blocks", INVALID_ARGUMENT, floats(1, 2, 3), num_blocks=2)

    def test_wrong_shapes(self) -> None:
        def shaped(rows: int, columns: int) -> memoryview:
            return memoryview(bytearray(4 * rows * columns)).cast("f", (rows, columns))

        text = r'tensor "w": grad has shape \(3, 2\), but param has \(2, 3\)'
        self.assert_refused(text, INVALID_BUFFER, shaped(2, 3), shaped(3, 2))
        # A flat gradient is in nobody's order but the parameter's.
        self.assertEqual(self.optimizer.add("flat", shaped(2, 3), floats(*range(6))), 0)

    def test_read_only_parameters_and_state(self) -> None:
        text = 'tensor "w": param is read-only'
        self.assert_refused(text, INVALID_BUFFER, struct.pack("2f", 1, 2), dtype="f32")
        self.assert_refused(text, INVALID_BUFFER, memoryview(floats(1, 2)).toreadonly())
        self.assert_refused(
            'tensor "w": exp_avg is read-only', INVALID_BUFFER, floats(1), exp_avg=memoryview(floats(1)).toreadonly()
        )

    def test_what_is_not_contiguous(self) -> None:
        self.assert_refused('tensor "w": param is not contiguous', INVALID_BUFFER, memoryview(floats(1, 2, 3, 4))[::2])

    def test_what_is_misaligned_or_overlaps(self) -> None:
        memory = bytearray(64)
        view = memoryview(memory)
        self.assert_refused('tensor "w": param is 0x.* must be a multiple of 4', INVALID_BUFFER, view[1:9], dtype="f32")
        self.assert_refused('tensor "w": .*overlap', INVALID_BUFFER, view[0:8], view[4:12], dtype="f32")

    def test_address_0(self) -> None:
        self.assert_refused('tensor "w": param is at address 0', INVALID_BUFFER, 0, numel=1, dtype="f32")

    def test_what_is_no_buffer(self) -> None:
        for param in ([1.0, 2.0], "text", 1.5, True, object()):
            with self.subTest(param), self.assertRaisesRegex(TypeError, 'tensor "w": param'):
                self.optimizer.add("w", param, numel=1, dtype="f32")
        self.assertEqual(len(self.optimizer), 0)

    def test_names_that_c_would_cut_short_or_that_are_taken(self) -> None:
        for name, text in [("a\0b", "NUL"), ("", "name"), ("\ud800", "UTF-8")]:
            with self.subTest(name), self.assertRaisesRegex(mofo.Error, text) as raised:
                self.optimizer.add(name, floats(1))
            self.assertEqual(raised.exception.status_name, INVALID_ARGUMENT)
        self.optimizer.add("größe", floats(1))
        with self.assertRaisesRegex(mofo.Error, "größe"):
            self.optimizer.add("größe", floats(1))
        self.assertEqual(self.optimizer.tensors, {"größe": 0})

    def test_memory_of_a_gpu_for_an_optimizer_on_the_cpu(self) -> None:
        self.assert_refused("in the memory of a GPU, but the optimizer's device is 'cpu'", INVALID_BUFFER, OnGpu())


class OnGpu:
    """What CuPy's arrays tell of themselves."""

    def __init__(self, shape: tuple[int, ...] = (2, 3), typestr: str = "<f4", **more: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (4096, False),
            "version": 3,
            **more,
        }


class OnCuda(unittest.TestCase):
    """Arrays of a GPU are looked at where there is no GPU, too."""

    def look(self, array: Any, **need: Any) -> Any:
        from mofo._buffers import Need, look_at

        return look_at(array, Need('tensor "w": param', **{"device": "cuda", "writable": True, **need}))

    def test_arrays_tell_where_they_are(self) -> None:
        buffer = self.look(OnGpu())
        self.assertEqual((buffer.address, buffer.numel, buffer.dtype, buffer.shape), (4096, 6, 0, (2, 3)))
        self.assertEqual(self.look(OnGpu(typestr="<f2")).dtype, 1)
        self.assertEqual(self.look(OnGpu(typestr="<V2"), dtype=2).dtype, 2)
        self.assertEqual(self.look(OnGpu(strides=(12, 4))).numel, 6)
        self.assertEqual(self.look(OnGpu(data=(4096, True)), writable=False).numel, 6)

    def test_arrays_that_cannot_be_used_are_refused(self) -> None:
        for on_gpu, text in [
            (OnGpu(typestr="<f8"), "holds type '<f8'"),
            (OnGpu(strides=(4, 8)), "not contiguous"),
            (OnGpu(data=(4096, True)), "read-only"),
            (OnGpu(data=(0, False)), "has no memory"),
            (floats(1), "not in the memory of a GPU"),
        ]:
            with self.subTest(text), self.assertRaisesRegex(mofo.Error, text):
                self.look(on_gpu)
        with self.assertRaisesRegex(mofo.Error, "6 entries, but must have 7"):
            self.look(OnGpu(), numel=7)


class Lifetimes(unittest.TestCase):
    def test_buffers_live_as_long_as_they_are_bound(self) -> None:
        class Kept(bytearray):
            """A bytearray that can be watched."""

        with mofo.Optimizer(num_threads=1) as made:
            param, grad = Kept(8), Kept(8)
            watched = weakref.ref(param), weakref.ref(grad)
            made.add("w", param, grad, dtype="f32")
            del param, grad
            gc.collect()
            self.assertTrue(all(watch() is not None for watch in watched))
            made.bind("w", param=bytearray(8))
            self.assertEqual([watch() is None for watch in watched], [True, False])
            made.remove("w")
            self.assertIsNone(watched[1]())

    def test_buffers_cannot_be_resized_while_they_are_bound(self) -> None:
        made, params, grads = optimizer("w")
        for buffer in (params["w"], grads["w"]):
            with self.assertRaises(BufferError):
                buffer.append(1.0)
        made.close()
        params["w"].append(1.0)

    def test_a_refused_bind_leaves_everything_bound_as_it_was(self) -> None:
        made, params, grads = optimizer("w", update_fraction=1.0)
        with self.assertRaises(mofo.Error):
            made.bind("w", floats(1, 2), grads["w"])
        with self.assertRaises(mofo.Error):
            made.bind("w", params["w"], params["w"])
        before = list(params["w"])
        self.assertEqual(made.step().entries_selected, 8)
        self.assertTrue(all(old != new for old, new in zip(before, params["w"])))
        made.close()


@unittest.skipIf(numpy is None, NO_NUMPY)
class OfNumPy(BufferTest):
    def test_f32_f16_and_bf16(self) -> None:
        grad = numpy.ones((2, 3), dtype=numpy.float32)
        params = [numpy.ones((2, 3), dtype=dtype) for dtype in (numpy.float32, numpy.float16)]
        for number, param in enumerate(params):
            self.optimizer.add(str(number), param, grad)
        bf16 = numpy.full((2, 3), 0x3F80, dtype=numpy.uint16)
        self.optimizer.add("bf16", bf16, grad, dtype="bf16")
        self.optimizer.step()
        for param in params:
            self.assertTrue(numpy.allclose(param, 0.5, rtol=1e-2))
        self.assertTrue(numpy.all(bf16 <= 0x3F01) and numpy.all(bf16 >= 0x3EFF))
        types = [self.optimizer.state(index).param_dtype for index in range(3)]
        self.assertEqual(types, ["f32", "f16", "bf16"])

    def test_ml_dtypes_bfloat16(self) -> None:
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            self.skipTest("ml_dtypes is not installed")
        param = numpy.ones((2, 3), dtype=bfloat16)
        self.optimizer.add("w", param, numpy.ones((2, 3), dtype=bfloat16))
        self.optimizer.step()
        self.assertEqual(self.optimizer.state("w").grad_dtype, "bf16")
        self.assertTrue(numpy.all(param.astype(numpy.float32) <= 0.51))

    def test_views_scalars_and_numbers(self) -> None:
        whole = numpy.ones((4, 3), dtype=numpy.float32)
        self.optimizer.add("rows", whole[1:3], numpy.ones((2, 3), dtype=numpy.float32))
        self.optimizer.add("scalar", numpy.ones((), dtype=numpy.float32), numpy.ones((), dtype=numpy.float32))
        self.optimizer.step(learning_rate=numpy.float32(0.5), tensors=numpy.arange(2), grad_scale=numpy.float64(1))
        self.assertTrue(numpy.allclose(whole, [[1] * 3, [0.5] * 3, [0.5] * 3, [1] * 3]))
        address = numpy.uint64(whole.ctypes.data)
        self.optimizer.add("address", address, numel=numpy.int64(3), dtype="f32")

    def test_refused(self) -> None:
        f32 = numpy.ones((2, 3), dtype=numpy.float32)
        frozen = f32.copy()
        frozen.flags.writeable = False
        packed = numpy.zeros(2, dtype=[("a", "i1"), ("b", "<f4")])["b"]
        for param, text in [
            (f32.astype(numpy.float64), 'tensor "w": param holds float64'),
            (f32.astype(">f4"), 'tensor "w": param holds >f4'),
            (f32.astype(numpy.complex64), 'tensor "w": param holds complex64'),
            (f32.astype("M8[s]"), 'tensor "w": param gives no access to its memory'),
            (f32.T, 'tensor "w": param is not contiguous'),
            (f32[:, ::2], 'tensor "w": param is not contiguous'),
            (numpy.asfortranarray(f32), 'tensor "w": param is not contiguous'),
            (numpy.broadcast_to(f32[0], (2, 3)), 'tensor "w": param is not contiguous'),
            (frozen, 'tensor "w": param is read-only'),
            (packed, 'tensor "w": param is not contiguous'),
        ]:
            with self.subTest(text):
                self.assert_refused(text, INVALID_BUFFER, param)

    def test_arrays_that_were_moved_are_refused_and_nothing_is_lost(self) -> None:
        for what in ("param", "grad", "exp_avg", "the owner of param"):
            with self.subTest(what), mofo.Optimizer(update_fraction=1.0, num_threads=1) as made:
                arrays = {name: numpy.ones(1000, dtype=numpy.float32) for name in ("param", "grad", "exp_avg", "other")}
                owner = numpy.ones(2000, dtype=numpy.float32)
                param = owner[:1000] if what.startswith("the") else arrays["param"]
                made.add("w", param, arrays["grad"], exp_avg=arrays["exp_avg"])
                made.add("other", arrays["other"], numpy.ones(1000, dtype=numpy.float32))
                made.step()
                others = arrays["other"].copy()
                (owner if what.startswith("the") else arrays[what]).resize(5_000_000, refcheck=False)
                for call in (made.step, made.grad_norm):
                    name = what.split()[-1]
                    with self.assertRaisesRegex(
                        mofo.Error, f'tensor "w": the array that is bound as {name} was resized'
                    ) as raised:
                        call()
                    self.assertEqual(raised.exception.status_name, INVALID_BUFFER)
                self.assertTrue(numpy.array_equal(arrays["other"], others))
                if what == "exp_avg":
                    with self.assertRaisesRegex(mofo.Error, "remove the tensor"):
                        made.save_to_memory()
                    made.remove("w")
                else:
                    fresh = numpy.ones(1000, dtype=numpy.float32)
                    made.bind("w", **{what.split()[-1]: fresh})
                self.assertFalse(made.step().skipped)

    def test_arrays_that_became_read_only_or_of_another_type_are_refused(self) -> None:
        param, grad = numpy.ones(8, numpy.float32), numpy.ones(8, numpy.float32)
        self.optimizer.add("w", param, grad)
        self.optimizer.step()
        before = param.copy()
        param.setflags(write=False)
        with self.assertRaisesRegex(mofo.Error, "bound as param has become read-only"):
            self.optimizer.step()
        param.setflags(write=True)
        for changed in (param, grad):
            with warnings.catch_warnings():
                # Newer NumPys advise against it, and go on doing it.
                warnings.simplefilter("ignore")
                changed.dtype = numpy.int32
            with self.assertRaisesRegex(mofo.Error, "was resized, moved or given another type"):
                self.optimizer.step()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                changed.dtype = numpy.float32
        self.assertTrue(numpy.array_equal(param, before))
        # A gradient is only read.
        grad.setflags(write=False)
        self.optimizer.step()
        self.assertEqual(self.optimizer.state("w").step_count, 2)

    def test_masked_arrays_are_refused(self) -> None:
        masked = numpy.ma.masked_array(numpy.ones(4, numpy.float32), mask=[True, False, False, False])
        self.assert_refused("param is a masked array", INVALID_BUFFER, masked)
        self.assert_refused("grad is a masked array", INVALID_BUFFER, numpy.ones(4, numpy.float32), masked)
        self.optimizer.add("w", masked.data)

    def test_without_a_gradient_an_array_may_move(self) -> None:
        param = numpy.ones(1000, dtype=numpy.float32)
        self.optimizer.add("w", param)
        self.optimizer.add("other", floats(1), floats(1))
        param.resize(2000, refcheck=False)
        self.assertEqual(self.optimizer.step().entries, 1)


if __name__ == "__main__":
    unittest.main()
