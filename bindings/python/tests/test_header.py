"""The declarations for ctypes are those of include/mofo.h: all of them, and no others."""

from __future__ import annotations

import ctypes
import re
import unittest
from typing import Any

from mofo import _declarations as declarations
from support import header, header_structs

SCALARS: dict[str, Any] = {
    "void": None,
    "uint8_t": ctypes.c_uint8,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "double": ctypes.c_double,
    "float": ctypes.c_float,
}


def ctypes_of(declaration: str) -> Any:
    """What ctypes calls the type of "const uint64_t *tensors": the name at the end is left out."""
    words = re.findall(r"\w+|\*", declaration)
    words = [word for word in words if word not in ("const", "struct")]
    stars = words.count("*")
    kind = words[0]
    if kind in declarations.CALLBACKS and stars == 0:
        return declarations.CALLBACKS[kind]
    if kind == "void" and stars == 1:
        return ctypes.c_void_p
    if kind == "char" and stars == 1:
        return ctypes.c_char_p
    structs = {**declarations.STRUCTS, "mofo_optimizer": declarations.COptimizer}
    made = SCALARS[kind] if kind in SCALARS else structs[kind]
    for _ in range(stars):
        made = ctypes.POINTER(made)
    return made


class Header(unittest.TestCase):
    def test_constants_have_their_values(self) -> None:
        declared = {name: float(value) for name, value in re.findall(r"#define (MOFO_\w+) (-?[\d.]+)\n", header())}
        here = {name: float(value) for name, value in vars(declarations).items() if name.startswith("MOFO_")}
        self.assertEqual(here, declared)
        self.assertGreater(len(here), 30)

    def test_structs_have_their_fields_in_order(self) -> None:
        structs = header_structs()
        self.assertEqual(set(structs), set(declarations.STRUCTS))
        for name, fields in structs.items():
            with self.subTest(name):
                declared = [(re.findall(r"\w+", field)[-1], ctypes_of(field)) for field in fields]
                self.assertEqual(declarations.STRUCTS[name]._fields_, declared)

    def test_callbacks_take_their_arguments(self) -> None:
        found = re.findall(r"typedef void \(\*(\w+)\)\(([^)]*)\);", header())
        self.assertEqual({name for name, _ in found}, set(declarations.CALLBACKS))
        for name, arguments in found:
            with self.subTest(name):
                kinds = tuple(ctypes_of(argument) for argument in arguments.split(","))
                callback = declarations.CALLBACKS[name]
                self.assertEqual((callback._restype_, callback._argtypes_), (None, kinds))

    def test_functions_take_their_arguments_and_return_their_results(self) -> None:
        found = re.findall(r"^([\w ]+[ *])(mofo_\w+)\(([^;]*)\);", header(), flags=re.MULTILINE)
        self.assertEqual({name for _, name, _ in found}, set(declarations.FUNCTIONS))
        for result, name, arguments in found:
            with self.subTest(name):
                kinds = (
                    [] if arguments.strip() == "void" else [ctypes_of(argument) for argument in arguments.split(",")]
                )
                self.assertEqual(declarations.FUNCTIONS[name], (ctypes_of(result), kinds))

    def test_the_library_has_these_structs(self) -> None:
        # Each _init call compares the size with that of the struct that the library was compiled with.
        from mofo._library import library

        functions = library().functions
        for name in ("mofo_options", "mofo_tensor", "mofo_step_args"):
            struct = declarations.STRUCTS[name]()
            self.assertEqual(getattr(functions, f"{name}_init")(struct, ctypes.sizeof(struct)), 0, name)
            self.assertEqual(struct.struct_size, ctypes.sizeof(struct), name)

    def test_status_names_are_the_librarys(self) -> None:
        from mofo._library import library
        from mofo.errors import Error

        statuses = [value for name, value in vars(declarations).items() if name.startswith("MOFO_ERROR_")]
        for status in (*statuses, -55):
            self.assertEqual(Error(status, "").status_name, library().functions.mofo_status_name(status).decode())


if __name__ == "__main__":
    unittest.main()
