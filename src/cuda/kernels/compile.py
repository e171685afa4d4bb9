#!/usr/bin/env python3
"""Compiles mofo.cu for every architecture of ARCHITECTURES into compiled/, with NVRTC from PyPI; needs no GPU and no CUDA.

With no arguments: compiles, and writes what has changed (`make kernels`).
"""

import argparse
import ctypes
import hashlib
import importlib.util
import json
import multiprocessing
import os
import re
import struct
import subprocess
import sys
import tempfile
import venv
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = "nvidia-cuda-nvrtc-cu12"
# Versions of NVRTC and what each compiles: the oldest that knows an architecture well, for the sake of old drivers.
# A cubin runs on its architecture and on later ones of the same major version; the PTX is for those to come.
ARCHITECTURES = {
    "12.4.127": ["sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "compute_70"],
    "12.9.86": ["sm_100", "sm_120"],
}
# Architectures for which the compiler makes the same code as for another one, whose cubin they take. If it no longer does,
# compiling fails.
SAME_CODE = {"sm_89": "sm_86"}
# Every operation of the arithmetic is an IEEE operation on its own: docs/numerics.md.
OPTIONS = ["--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"]
# Says what each kernel takes of registers and memory.
VERBOSE = "--ptxas-options=-v"
RESOURCES = ["registers", "shared", "stack", "spill_stores", "spill_loads"]


class Failure(Exception):
    """Something to report without a traceback."""


def sha256(data):
    return hashlib.sha256(data).hexdigest()


# The sources.


def read_sources(folder):
    """The content of every source by name, in the order of the names."""
    paths = [path for path in folder.iterdir() if path.suffix in (".cu", ".cuh")]
    return {path.name: path.read_bytes() for path in sorted(paths, key=lambda path: path.name)}


def hash_of_sources(sources):
    """tests/kernels.rs computes the same."""
    hasher = hashlib.sha256()
    for name, content in sources.items():
        hasher.update(b"%s\0%d\0" % (name.encode(), len(content)))
        hasher.update(content)
    return hasher.hexdigest()


def kernels_of(sources):
    """The names in `#define MOFO_KERNELS(X) X(…) X(…)`."""
    if "mofo.cu" not in sources:
        raise Failure("there is no mofo.cu")
    text = sources["mofo.cu"].decode().replace("\\\n", " ")
    definition = re.search(r"^#define MOFO_KERNELS\(X\)(.*)$", text, re.MULTILINE)
    names = re.findall(r"\bX\((\w+)\)", definition.group(1)) if definition else []
    if not names:
        raise Failure("mofo.cu has no list of kernels: #define MOFO_KERNELS(X)")
    return names


# The compiler.


def pip_command(folder):
    """How to run pip; where Python has none, from a virtual environment made in `folder`."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    venv.create(folder, with_pip=True)
    return [str(folder / "bin" / "python"), "-m", "pip"]


def fetch_nvrtc(version, cache):
    """The folder with that version of NVRTC, which is downloaded if it is not there yet."""
    target = cache / f"nvrtc-{version}"
    if target.is_dir():
        return target
    print(f"fetching {PACKAGE} {version}", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        temporary = Path(temporary)
        command = pip_command(temporary / "venv")
        command += ["install", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--no-compile"]
        command += ["--target", str(temporary / "nvrtc"), "-r", str(HERE / f"nvrtc-{version}.txt")]
        # In a container everybody is root, and nothing is installed outside of the target.
        environment = dict(os.environ, PIP_ROOT_USER_ACTION="ignore")
        if subprocess.run(command, env=environment).returncode != 0:
            raise Failure(f"pip cannot install {PACKAGE} {version}")
        # Complete or not there at all.
        os.replace(temporary / "nvrtc", target)
    return target


class Nvrtc:
    """One version of the compiler. A process must not load two of them."""

    def __init__(self, folder, version):
        found = list(folder.glob("nvidia/cuda_nvrtc/lib/libnvrtc.so.*"))
        if len(found) != 1:
            raise Failure(f"no libnvrtc.so in {folder}: only the packages for Linux are known here")
        self.library = ctypes.CDLL(str(found[0]))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        if version.split(".")[:2] != [str(major.value), str(minor.value)]:
            raise Failure(f"{found[0]} is version {major.value}.{minor.value}, not {version}")

    def call(self, name, *arguments):
        result = getattr(self.library, name)(*arguments)
        if result != 0:
            text = self.library.nvrtcGetErrorString
            text.restype = ctypes.c_char_p
            raise Failure(f"{name}: {text(result).decode()}")

    def get(self, program, what):
        """An output of the compiler: its size, then itself."""
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{what}", program, data)
        return data.raw

    def compile(self, sources, architecture):
        """The image and the compiler's log. All sources are given in memory: no path can get into the output."""
        headers = {name: content for name, content in sources.items() if name != "mofo.cu"}
        strings = ctypes.c_char_p * len(headers)
        program = ctypes.c_void_p()
        self.call(
            "nvrtcCreateProgram",
            ctypes.byref(program),
            sources["mofo.cu"],
            b"mofo.cu",
            len(headers),
            strings(*headers.values()),
            strings(*(name.encode() for name in headers)),
        )
        try:
            options = [*OPTIONS, f"--gpu-architecture={architecture}"]
            is_ptx = architecture.startswith("compute_")
            if not is_ptx:
                options.append(VERBOSE)
            array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            try:
                self.call("nvrtcCompileProgram", program, len(options), array)
            except Failure as failure:
                log = self.get(program, "ProgramLog").rstrip(b"\0").decode()
                raise Failure(f"{architecture}: {failure}\n{log}") from None
            image = self.get(program, "PTX" if is_ptx else "CUBIN")
            return image, self.get(program, "ProgramLog").rstrip(b"\0").decode()
        finally:
            self.call("nvrtcDestroyProgram", ctypes.byref(program))


def compile_one(job):
    """In a process of its own, and in an empty folder, where no other file could be included by mistake."""
    folder, version, sources, architecture = job
    try:
        with tempfile.TemporaryDirectory() as empty:
            os.chdir(empty)
            try:
                return Nvrtc(folder, version).compile(sources, architecture)
            finally:
                os.chdir(folder)
    except Failure as failure:
        return failure


def compile_all(sources, architectures, cache):
    """Image and log of each of the architectures."""
    jobs = {
        architecture: (fetch_nvrtc(version, cache).resolve(), version, sources, architecture)
        for version, known in ARCHITECTURES.items()
        for architecture in known
        if architecture in architectures
    }
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        results = pool.map(compile_one, jobs.values(), chunksize=1)
    failures = [str(result) for result in results if isinstance(result, Failure)]
    if failures:
        # Most errors are the same for all architectures.
        raise Failure(failures[0])
    return dict(zip(jobs, results))


# What is in an image.


def kernels_in_cubin(image):
    """Names of the kernels in the symbol table of an ELF file."""
    (offset,) = struct.unpack_from("<Q", image, 0x28)
    size, count = struct.unpack_from("<HH", image, 0x3A)
    # name, type, flags, address, offset, size, link, …
    sections = [struct.unpack_from("<IIQQQQI", image, offset + i * size) for i in range(count)]
    names = []
    for section in sections:
        if section[1] != 2:
            continue
        strings = sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], 24):
            name, info, other = struct.unpack_from("<IBB", image, at)
            # A function that can be launched.
            if info & 0xF == 2 and other & 0x10:
                start = strings + name
                names.append(image[start : image.index(b"\0", start)].decode())
    return names


def code_in_cubin(image):
    """The code of an ELF file, by the names of the sections."""
    (offset,) = struct.unpack_from("<Q", image, 0x28)
    size, count, names = struct.unpack_from("<HHH", image, 0x3A)
    sections = [struct.unpack_from("<IIQQQQI", image, offset + i * size) for i in range(count)]
    code = {}
    for section in sections:
        start = sections[names][4] + section[0]
        name = image[start : image.index(b"\0", start)].decode()
        if name.startswith((".text.", ".nv.constant")):
            code[name] = image[section[4] : section[4] + section[5]]
    return code


def kernels_in_ptx(image):
    return re.findall(r"\.visible \.entry (\w+)\(", image.decode("ascii", "replace"))


def unrounded_in_ptx(image):
    """Operations that a driver's compiler might contract, or that are not IEEE ones: all but those that say `.rn`."""
    operations = re.findall(r"\b((?:add|sub|mul|mad|fma|div|rcp|sqrt)[.\w]*\.f(?:32|64))\b", image.decode("ascii", "replace"))
    return sorted({name for name in operations if ".rn" not in name or name.startswith(("mad", "fma"))})


def resources_of(log):
    """What each kernel takes, by its name, from the assembler's messages."""
    found = {}
    for part in re.split(r"Compiling entry function ", log)[1:]:
        name = re.match(r"'(\w+)'", part).group(1)

        def number(pattern):
            match = re.search(pattern, part)
            return int(match.group(1)) if match else 0

        found[name] = {
            "registers": number(r"Used (\d+) registers"),
            "shared": number(r"(\d+) bytes smem"),
            "stack": number(rf"Function properties for {name}\n.*?(\d+) bytes stack frame"),
            "spill_stores": number(rf"Function properties for {name}\n.*?(\d+) bytes spill stores"),
            "spill_loads": number(rf"Function properties for {name}\n.*?(\d+) bytes spill loads"),
        }
    return found


def print_log(architecture, log):
    """Warnings, that is all but the assembler's list of resources."""
    for line in log.splitlines():
        if line.strip() and not re.match(r"ptxas (info|  +\.)", line):
            print(f"{architecture}: {line}")


def print_table(kernels, resources):
    width = max(len(name) for name in kernels)
    print("registers, bytes of stack + of spills (stored and loaded), of each thread; largest shared memory of a block")
    print(f"{'':{width}}" + "".join(f"{architecture:>11}" for architecture in resources) + f"{'shared':>11}")
    for kernel in kernels:
        line = f"{kernel:{width}}"
        for of_kernel in resources.values():
            r = of_kernel[kernel]
            spills = r["spill_stores"] + r["spill_loads"]
            line += f"{r['registers']:>4}{r['stack']:>3}+{spills:<3}"
        shared = max(of_kernel[kernel]["shared"] for of_kernel in resources.values())
        print(line + f"{shared:>11}")
    for architecture, of_kernel in resources.items():
        spilling = [name for name in kernels if of_kernel[name]["spill_stores"] or of_kernel[name]["spill_loads"]]
        if spilling:
            print(f"warning: {architecture} spills registers in {', '.join(spilling)}")


# What is written.


def file_of(architecture):
    return f"{architecture}.{'ptx' if architecture.startswith('compute_') else 'cubin'}.gz"


def pack(image):
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31, 9)
    return compressor.compress(image) + compressor.flush()


def unpack(data):
    """The image in a file, or None if it is damaged."""
    decompressor = zlib.decompressobj(31)
    try:
        image = decompressor.decompress(data)
    except zlib.error:
        return None
    return image if decompressor.eof and not decompressor.unused_data else None


def to_json(value, indent=""):
    """JSON with a line for each record that has no others in it."""
    if not isinstance(value, dict) or not any(isinstance(item, (dict, list)) for item in value.values()):
        return json.dumps(value)
    inner = indent + "  "
    items = [f"{inner}{json.dumps(key)}: {to_json(item, inner)}" for key, item in value.items()]
    return "{\n" + ",\n".join(items) + f"\n{indent}}}"


def build(sources, architectures, cache, packed_already):
    """Compiles; returns the manifest and the files by name.

    Where an image is the same as before its file is kept: libraries differ in how they compress.
    """
    kernels = kernels_of(sources)
    toolchains = {a: version for version, known in ARCHITECTURES.items() for a in known}
    images, files, resources = {}, {}, {}
    compiled = compile_all(sources, architectures, cache)
    for architecture, other in SAME_CODE.items():
        if {architecture, other} <= compiled.keys():
            if code_in_cubin(compiled[architecture][0]) != code_in_cubin(compiled[other][0]):
                raise Failure(f"the code of {architecture} is not that of {other}: take it out of SAME_CODE, and embed it")
            del compiled[architecture]
    for architecture, (image, log) in compiled.items():
        print_log(architecture, log)
        is_ptx = architecture.startswith("compute_")
        found = kernels_in_ptx(image) if is_ptx else kernels_in_cubin(image)
        if sorted(found) != sorted(kernels):
            raise Failure(f"{architecture} has {sorted(set(found) - set(kernels))}, which MOFO_KERNELS does not list, "
                          f"or lacks {sorted(set(kernels) - set(found))}, which it does")
        if is_ptx and image[-1] != 0:
            raise Failure("the driver expects a NUL at the end of a PTX")
        if is_ptx and unrounded_in_ptx(image):
            raise Failure(f"{architecture} has operations that are not rounded on their own: {unrounded_in_ptx(image)}")
        name = file_of(architecture)
        old = packed_already.get(name)
        files[name] = old if old and unpack(old) == image else pack(image)
        images[architecture] = {
            "file": {"name": name, "size": len(files[name]), "sha256": sha256(files[name])},
            "image": {"size": len(image), "sha256": sha256(image)},
            "toolchain": f"{PACKAGE} {toolchains[architecture]}",
        }
        if not is_ptx:
            of_kernel = resources_of(log)
            resources[architecture] = {kernel: of_kernel[kernel] for kernel in kernels}
            images[architecture]["resources"] = resources[architecture]
    manifest = {
        "made_by": "make kernels",
        "sources_sha256": hash_of_sources(sources),
        "options": OPTIONS,
        "kernels": kernels,
        "same_code": SAME_CODE,
        "images": images,
    }
    if resources:
        print_table(kernels, resources)
    for architecture, about in images.items():
        print(f"{architecture:>10} {about['image']['size']:>9} bytes, {about['file']['size']:>7} in the library")
    print(f"{'all':>10} {sum(a['image']['size'] for a in images.values()):>9} bytes, "
          f"{sum(a['file']['size'] for a in images.values()):>7} in the library")
    return manifest, files


def read_compiled(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.gz")}


def differences(sources, folder, manifest):
    """What is not current in the folder, as far as can be told without compiling."""
    found = []
    if manifest["sources_sha256"] != hash_of_sources(sources):
        found.append("the sources have changed")
    if manifest["options"] != OPTIONS or manifest["kernels"] != kernels_of(sources):
        found.append("options or kernels have changed")
    toolchains = {a: f"{PACKAGE} {version}" for version, known in ARCHITECTURES.items() for a in known}
    expected = {a: toolchain for a, toolchain in toolchains.items() if a not in SAME_CODE}
    if {a: about["toolchain"] for a, about in manifest["images"].items()} != expected:
        found.append("architectures or toolchains have changed")
    files = read_compiled(folder)
    if sorted(files) != sorted(about["file"]["name"] for about in manifest["images"].values()):
        found.append(f"the files in {folder} are not those of the manifest")
        return found
    for about in manifest["images"].values():
        data = files[about["file"]["name"]]
        if sha256(data) != about["file"]["sha256"] or sha256(unpack(data) or b"") != about["image"]["sha256"]:
            found.append(f"{about['file']['name']} is not that of the manifest")
    return found


def write(folder, manifest, files):
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.gz"):
        if path.name not in files:
            path.unlink()
    everything = dict(files, **{"manifest.json": (to_json(manifest) + "\n").encode()})
    for name, data in everything.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)
            print(f"wrote {path}")


def main():
    every = [architecture for known in ARCHITECTURES.values() for architecture in known]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compile, write nothing, fail if anything differs")
    mode.add_argument("--check-sources", action="store_true", help="compare hashes only: no compiler, no network")
    mode.add_argument("--try", dest="only", nargs="+", choices=every, metavar="ARCHITECTURE",
                      help="compile for these, print the table, write nothing")
    parser.add_argument("--sources", type=Path, default=HERE, help="the folder with mofo.cu")
    parser.add_argument("--compiled", type=Path, help="the folder for the outputs (default: compiled in the sources)")
    parser.add_argument("--cache", type=Path, default=HERE.parents[2] / "build", help="where NVRTC is kept")
    arguments = parser.parse_args()
    folder = arguments.compiled or arguments.sources / "compiled"
    sources = read_sources(arguments.sources)

    if arguments.check or arguments.check_sources:
        if not (folder / "manifest.json").exists():
            raise Failure(f"there is no {folder / 'manifest.json'}: make kernels")
        text = (folder / "manifest.json").read_text()
        there = json.loads(text)
        found = differences(sources, folder, there)
        if not found and arguments.check:
            manifest, _ = build(sources, every, arguments.cache, read_compiled(folder))
            for architecture, about in manifest["images"].items():
                if about != there["images"][architecture]:
                    found.append(f"{architecture} is not what the compiler makes of the sources")
            if not found and to_json(manifest) + "\n" != text:
                found.append("manifest.json is not as it would be written")
        if found:
            raise Failure("\n".join(found) + "\nafter a change of the kernels: make kernels")
    elif arguments.only:
        build(sources, arguments.only, arguments.cache, {})
    else:
        old = read_compiled(folder) if folder.is_dir() else {}
        write(folder, *build(sources, every, arguments.cache, old))


if __name__ == "__main__":
    try:
        main()
    except Failure as error:
        sys.exit(f"compile.py: {error}")
