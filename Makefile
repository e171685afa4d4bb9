# GNU make. Needs cargo and, for the examples, a C and a C++ compiler.
#
#   make            the library: target/release/libmofo.a and the shared library beside it
#   make demo       fine-tuning on handwritten digits, AdamW against MoFO (DEMO_ARGS="--help" shows its options)
#   make demo-cuda  the same with the optimizer on an NVIDIA GPU; needs CUDA's cuda.h
#   make engine     pre-trains and fine-tunes a small transformer, see examples/engine (ENGINE_ARGS="--help" shows its options)
#   make examples   builds every example and runs the small ones
#   make test       all tests, the examples included
#   make test-python  the tests of the Python package that need no more than Python 3.9 (part of make test)
#   make test-torch   all tests of the Python package, in a virtual environment in build/; needs PyPI, for PyTorch and more
#   make lint-python  formatting, lints and types of the Python package and the benchmarks, in the same environment
#   make wheel      build/wheel/mofo-*.whl, the Python package with the library in it; needs PyPI, for hatchling
#   make lint       formatting, clippy, rustdoc and compiler warnings, all of them errors
#   make fmt        formats the Rust code
#   make header     writes include/mofo.h from src/ffi
#   make api-reference  writes docs/api.md from include/mofo.h
#   make memory-table  writes the tables of docs/memory.md
#   make kernels    compiles the CUDA kernels into src/cuda/kernels/compiled; needs Python and PyPI, but neither CUDA nor a GPU
#   make kernels-check  whether the compiled kernels are what the compiler makes of the sources
#   make size       how large the shared library without CUDA is, stripped; fails above SIZE_LIMIT bytes (Linux)
#   make bench      times steps against AdamW's; needs Python 3.9 and PyPI, takes some minutes (BENCH_ARGS="--help" shows its options)
#   make bench-failing  steps whose estimated threshold is forced to be wrong
#   make bench-estimates  counts estimated thresholds that are wrong (BENCH_ARGS="--help" shows its options)
#   make bench-torch  a step against PyTorch's; needs PyPI, for PyTorch (BENCH_ARGS="--help" shows its options)
#   make bench-plots  draws what bench-torch wrote (BENCH_ARGS="FILE...")
#   make bench-cuda  a step on an NVIDIA GPU against PyTorch's; needs Python with NumPy, SciPy, tabulate and PyTorch (BENCH_ARGS="--help")
#   make emulated-cuda  the CUDA driver that the tests emulate: LD_LIBRARY_PATH=build/emulated-cuda runs programs on it
#   make cuda-headers  fetches cuda.h from PyPI into build/, for machines without a CUDA toolkit
#   make gpu-bundle  build/gpu-bundle/: tests and benchmark for a machine with an NVIDIA GPU, without Rust or network
#   make fuzz       random checkpoints and calls, FUZZ_SECONDS (60) each; needs a nightly Rust and cargo-fuzz (fuzz/README.md)
#   make sanitize   the demo and the engine under AddressSanitizer and UndefinedBehaviorSanitizer, a few steps
#   make thread-sanitizer   the C tests that use threads under ThreadSanitizer; needs a nightly Rust with rust-src
#   make valgrind   the demo and the engine under valgrind, a few steps
#   make install    the libraries, the headers, mofo.pc, CMake's files and the licences, into PREFIX (docs/packaging.md); DESTDIR, LIBDIR, INCLUDEDIR
#   make uninstall  removes them again
#   make package    builds what `make install` installs, so that the latter needs neither Rust nor a compiler
#   make vendor     build/vendor/mofo/ (VENDOR): the static library, the headers and the licences, to drop into an engine
#   make test-packaging  installs, links and runs programs in every way that is offered; says what it leaves out for want of a tool
#   make clean      removes build/ and cargo's target directory
#
# CUDA=0 builds the library for the CPU alone. CARGO_BUILD_TARGET names another platform, as Rust does; CC is the compiler for it then.
# CUDA_HOME or CUDA_PATH names the folder that has include/cuda.h, where it is neither /usr/local/cuda nor in CPATH.
# CC, CXX, CARGO, CFLAGS, CXXFLAGS, CPPFLAGS, LDFLAGS, LDLIBS and CARGO_TARGET_DIR can be set as usual.

CARGO ?= cargo
CFLAGS ?= -O3
CXXFLAGS ?= -O2
LDLIBS ?= -lpthread -ldl -lm
VALGRIND ?= valgrind
DEMO_ARGS ?=
ENGINE_ARGS ?=
PYTHON ?= python3
BENCH_ARGS ?=
STRIP ?= strip
# Bytes of the stripped shared library without CUDA.
SIZE_LIMIT ?= 1000000
# What the benchmark's plain C loop is compiled for.
NATIVE ?= -march=native
FUZZ_SECONDS ?= 60
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
VENDOR ?= build/vendor/mofo
# Where packages are built before they are laid somewhere; the tests, whose builds are not all optimised, have a folder of their own.
PACKAGES ?= build/package
CUDA ?= 1

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
LIBRARY := $(TARGET_DIR)/release/libmofo.a
SHARED_LIBRARY := $(TARGET_DIR)/release/$(if $(filter Darwin,$(shell uname)),libmofo.dylib,libmofo.so)
HEADERS := include/mofo.h include/mofo.hpp
FINETUNE_PARTS := $(wildcard examples/c/finetune/*.c)
FINETUNE := examples/c/finetune.c $(FINETUNE_PARTS)
FINETUNE_CUDA := examples/c/finetune_cuda.c $(FINETUNE_PARTS)
FINETUNE_HEADERS := $(wildcard examples/c/finetune/*.h)
ENGINE := $(wildcard examples/engine/*.cpp)
ENGINE_HEADERS := $(wildcard examples/engine/*.hpp)
BENCH := NATIVE="$(NATIVE)" CC="$(CC)" build/bench-venv/bin/python benches/run.py

# The version stands in Cargo.toml alone.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
PACKAGE_TARGET = $(or $(CARGO_BUILD_TARGET),$(HOST))
PACKAGE := $(PACKAGES)/$(or $(CARGO_BUILD_TARGET),host)$(if $(filter 0,$(CUDA)),-cpu)
# Dates, not cargo, say whether there is something to do: `sudo make install` may find no cargo.
PACKAGE_INPUTS := $(shell find src -type f) Cargo.toml Cargo.lock include/mofo.h \
    $(addprefix packaging/,build.sh platform.sh rust-license.txt static-library.sh third-party.sh)

# CUDA's header, and something to link with: NVIDIA's library or stub or, where there is none, the emulated driver.
CUDA_FOLDERS := $(CUDA_HOME) $(CUDA_PATH) /usr/local/cuda build/cuda-headers/nvidia/cuda_runtime
CUDA_INCLUDES := $(addsuffix /include,$(CUDA_FOLDERS)) $(subst :, ,$(CPATH)) /usr/include
CUDA_HEADER := $(firstword $(wildcard $(addsuffix /cuda.h,$(CUDA_INCLUDES))))
CUDA_LIBRARIES := $(addsuffix /lib64/stubs,$(CUDA_FOLDERS)) $(addsuffix /lib/stubs,$(CUDA_FOLDERS)) \
    /usr/lib/x86_64-linux-gnu /usr/lib/aarch64-linux-gnu /usr/lib64
CUDA_LIBRARY := $(firstword $(wildcard $(addsuffix /libcuda.so,$(CUDA_LIBRARIES))) build/emulated-cuda/libcuda.so)
NO_CUDA_HEADER := no cuda.h; CUDA_HOME can name the folder of a CUDA toolkit, or `make cuda-headers` fetches it

EMULATED := $(wildcard tests/cuda/driver/*.cpp)
EMULATED_INPUTS := $(EMULATED) $(wildcard tests/cuda/driver/*.h*) tests/c/cuda_driver.h $(wildcard src/cuda/kernels/*)
# Those of tests/harness/emulated_cuda.rs.
EMULATED_FLAGS := -std=c++17 -O2 -g -ffp-contract=off -fPIC -fvisibility=hidden -Wno-unknown-pragmas \
    -fsanitize=alignment -fsanitize-undefined-trap-on-error \
    -DMOFO_KERNELS_SOURCE='"$(CURDIR)/src/cuda/kernels/mofo.cu"' -Itests/cuda/driver -Itests/c

# No fused multiply-add in the demo and the engine, so that they print the same numbers with gcc and clang and with every -march.
C11 := -std=c11 -ffp-contract=off -Iinclude
C99 := -std=c99 -Iinclude
CPP17 := -std=c++17 -Iinclude
ENGINE_FLAGS := -ffp-contract=off
WARNINGS := -Wall -Wextra -Werror -pedantic
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

.PHONY: all library demo demo-cuda engine examples test lint fmt header kernels kernels-check bench bench-failing bench-estimates bench-torch
.PHONY: bench-plots bench-cuda
.PHONY: test-python test-torch lint-python python-venv wheel
.PHONY: fuzz size lint-cuda cuda-headers emulated-cuda finetune-cuda gpu-bundle sanitize thread-sanitizer valgrind clean FORCE
.PHONY: package install uninstall vendor test-packaging

all: library

library: $(LIBRARY)

# Cargo knows what has changed, and leaves the file alone if nothing has.
$(LIBRARY): FORCE
	$(CARGO) build --release $(if $(filter 0,$(CUDA)),--no-default-features)

build:
	mkdir -p build

build/finetune: $(FINETUNE) $(FINETUNE_HEADERS) $(HEADERS) $(LIBRARY) | build
	$(CC) $(C11) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(FINETUNE) $(LIBRARY) $(LDLIBS) -o $@

build/finetune-cuda: $(FINETUNE_CUDA) $(FINETUNE_HEADERS) $(HEADERS) $(LIBRARY) $(CUDA_HEADER) $(CUDA_LIBRARY) | build
	@test -n "$(CUDA_HEADER)" || { echo '$(NO_CUDA_HEADER)' >&2; exit 1; }
	$(CC) $(C11) $(CPPFLAGS) -isystem $(dir $(CUDA_HEADER)) $(CFLAGS) $(LDFLAGS) $(FINETUNE_CUDA) $(LIBRARY) \
	    -L$(dir $(CUDA_LIBRARY)) -lcuda $(LDLIBS) -o $@

build/emulated-cuda/libcuda.so.1: $(EMULATED_INPUTS)
	mkdir -p $(@D)
	$(CXX) $(EMULATED_FLAGS) $(WARNINGS) -shared -Wl,-soname,libcuda.so.1 $(EMULATED) -lpthread -o $@

build/emulated-cuda/libcuda.so: build/emulated-cuda/libcuda.so.1
	ln -sf libcuda.so.1 $@

emulated-cuda: build/emulated-cuda/libcuda.so

cuda-headers: | build
	$(PYTHON) -m venv build/cuda-venv
	build/cuda-venv/bin/pip install -q --no-deps --upgrade --target build/cuda-headers nvidia-cuda-runtime-cu12==12.4.127

build/finetune-sanitize: $(FINETUNE) $(FINETUNE_HEADERS) $(HEADERS) $(LIBRARY) | build
	$(CC) $(C11) $(CPPFLAGS) -O1 -g $(SANITIZERS) $(LDFLAGS) $(FINETUNE) $(LIBRARY) $(LDLIBS) -o $@

build/minimal-c: examples/c/minimal.c $(HEADERS) $(LIBRARY) | build
	$(CC) $(C99) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $< $(LIBRARY) $(LDLIBS) -o $@

build/memory: examples/c/memory.c $(HEADERS) $(LIBRARY) | build
	$(CC) $(C99) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $< $(LIBRARY) $(LDLIBS) -o $@

build/minimal-cpp: examples/cpp/minimal.cpp $(HEADERS) $(LIBRARY) | build
	$(CXX) $(CPP17) $(CPPFLAGS) $(CXXFLAGS) $(LDFLAGS) $< $(LIBRARY) $(LDLIBS) -o $@

build/engine: $(ENGINE) $(ENGINE_HEADERS) $(HEADERS) $(LIBRARY) | build
	$(CXX) $(CPP17) $(ENGINE_FLAGS) $(CPPFLAGS) $(CXXFLAGS) $(LDFLAGS) $(ENGINE) $(LIBRARY) $(LDLIBS) -o $@

build/engine-sanitize: $(ENGINE) $(ENGINE_HEADERS) $(HEADERS) $(LIBRARY) | build
	$(CXX) $(CPP17) $(ENGINE_FLAGS) $(CPPFLAGS) -O1 -g $(SANITIZERS) $(LDFLAGS) $(ENGINE) $(LIBRARY) $(LDLIBS) -o $@

demo: build/finetune
	build/finetune $(DEMO_ARGS)

engine: build/engine
	build/engine $(ENGINE_ARGS)

# Where the driver itself is missing, the program could not even start.
demo-cuda: build/finetune-cuda
	@LD_TRACE_LOADED_OBJECTS=1 $< | grep -q 'libcuda.so.1 => not found' && echo "skipped: no CUDA driver" || \
	    { echo $< $(DEMO_ARGS); $< $(DEMO_ARGS); }

# For `make examples`, which does without.
finetune-cuda: $(if $(CUDA_HEADER),build/finetune-cuda)
	@test -n "$(CUDA_HEADER)" || echo 'skipped: finetune_cuda.c: $(NO_CUDA_HEADER)'

examples: build/finetune build/engine build/minimal-c build/minimal-cpp finetune-cuda
	build/minimal-c
	build/minimal-cpp
	build/engine --smoke
	$(CARGO) run --release --example minimal

test: examples
	$(CARGO) test
	$(CARGO) test --features forced-paths --test paths
	build/finetune --smoke
	$(MAKE) test-packaging
	@$(MAKE) --no-print-directory test-python

# Whoever has no Python can do without its tests; that they were left out is said.
test-python: library
	@if ! command -v $(PYTHON) >/dev/null; then echo 'skipped: the tests of the Python package: no $(PYTHON)'; \
	elif ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))'; then \
	    echo 'skipped: the tests of the Python package: $(PYTHON) is older than 3.9'; \
	else MOFO_LIBRARY=$(SHARED_LIBRARY) $(PYTHON) bindings/python/tests/run.py; fi

python-venv: | build
	$(PYTHON) bindings/python/tests/make_venv.py build/python-venv

test-torch: library python-venv
	cd bindings/python && MOFO_LIBRARY=$(abspath $(SHARED_LIBRARY)) $(CURDIR)/build/python-venv/bin/python -m pytest -q -rs tests

lint-python: python-venv
	cd bindings/python && $(CURDIR)/build/python-venv/bin/ruff check && $(CURDIR)/build/python-venv/bin/ruff format --check
	cd bindings/python && $(CURDIR)/build/python-venv/bin/mypy
	cd benches && $(CURDIR)/build/python-venv/bin/ruff check && $(CURDIR)/build/python-venv/bin/ruff format --check
	cd benches && $(CURDIR)/build/python-venv/bin/mypy

wheel: library python-venv
	MOFO_LIBRARY=$(abspath $(SHARED_LIBRARY)) build/python-venv/bin/pip wheel -q --no-deps -w build/wheel bindings/python

lint: $(if $(CUDA_HEADER),lint-cuda)
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --no-default-features --lib -- -D warnings
	$(CARGO) clippy --features forced-paths --test paths -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps
	$(CARGO) rustdoc --lib -- --document-private-items -D warnings
	for file in $(FINETUNE); do $(CC) $(C11) $(CPPFLAGS) $(WARNINGS) -fsyntax-only $$file || exit 1; done
	@test -n "$(CUDA_HEADER)" || echo 'skipped: finetune_cuda.c: $(NO_CUDA_HEADER)'
	$(CC) $(C99) $(CPPFLAGS) $(WARNINGS) -fsyntax-only examples/c/minimal.c
	$(CC) $(C99) $(CPPFLAGS) $(WARNINGS) -fsyntax-only examples/c/memory.c
	$(CXX) $(CPP17) $(CPPFLAGS) $(WARNINGS) -fsyntax-only examples/cpp/minimal.cpp
	for file in $(ENGINE); do $(CXX) $(CPP17) $(CPPFLAGS) $(WARNINGS) -fsyntax-only $$file || exit 1; done
	$(CC) $(C99) $(CPPFLAGS) $(WARNINGS) -fsyntax-only benches/adamw.c

lint-cuda:
	$(CC) $(C11) $(CPPFLAGS) -isystem $(dir $(CUDA_HEADER)) $(WARNINGS) -fsyntax-only examples/c/finetune_cuda.c

fmt:
	$(CARGO) fmt

header:
	MOFO_WRITE_HEADER=1 $(CARGO) test --test header_current

.PHONY: api-reference memory-table
api-reference:
	MOFO_WRITE_API_REFERENCE=1 $(CARGO) test --test api_reference

memory-table:
	MOFO_WRITE_MEMORY_TABLE=1 $(CARGO) test --test memory_table

kernels:
	$(PYTHON) src/cuda/kernels/compile.py

kernels-check:
	$(PYTHON) src/cuda/kernels/compile.py --check

# The fuzzer asks for more memory than there is, and expects to be told. What it finds goes to the first folder.
fuzz:
	for target in checkpoint calls; do \
	    mkdir -p build/fuzz/$$target && \
	    ASAN_OPTIONS=allocator_may_return_null=1 $(CARGO) +nightly fuzz run --target-dir $(abspath $(TARGET_DIR))/fuzz $$target \
	        build/fuzz/$$target fuzz/corpus/$$target -- -dict=fuzz/checkpoint.dict -len_control=0 -max_len=2048 \
	        -timeout=60 -print_final_stats=1 -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

# In a target directory of its own: it must not replace the library that the rest is linked with.
size: | build
	$(CARGO) build --release --no-default-features --target-dir build/size
	$(STRIP) -o build/size/stripped.so build/size/release/libmofo.so
	@size=$$(wc -c <build/size/stripped.so) && \
	    echo "the stripped shared library without CUDA: $$size bytes, at most $(SIZE_LIMIT)" && \
	    test "$$size" -le "$(SIZE_LIMIT)"

build/bench-venv/installed: benches/requirements.txt | build
	$(PYTHON) -m venv --clear build/bench-venv
	build/bench-venv/bin/pip install -q -r benches/requirements.txt
	touch $@

bench: library build/bench-venv/installed
	$(BENCH) steps --library $(SHARED_LIBRARY) $(BENCH_ARGS)

bench-estimates: library build/bench-venv/installed
	$(BENCH) estimates --library $(SHARED_LIBRARY) $(BENCH_ARGS)

bench-failing: build/bench-venv/installed
	$(CARGO) build --release --features forced-paths --target-dir build/forced-paths
	$(BENCH) steps --cases failing --library build/forced-paths/release/$(notdir $(SHARED_LIBRARY)) $(BENCH_ARGS)

# The environment of the Python package's tests has PyTorch already.
bench-torch: library python-venv
	cmp -s benches/requirements.txt build/python-venv/benches.txt || { \
	    build/python-venv/bin/pip install -q -r benches/requirements.txt && cp benches/requirements.txt build/python-venv/benches.txt; }
	build/python-venv/bin/python benches/run.py torch --library $(SHARED_LIBRARY) $(BENCH_ARGS)

# For plots of what --json wrote: BENCH_ARGS="sizes.json fractions.json"
bench-plots: build/bench-venv/installed
	$(BENCH) plots $(BENCH_ARGS)

bench-cuda: library
	$(PYTHON) benches/run.py cuda --library $(SHARED_LIBRARY) $(BENCH_ARGS)

gpu-bundle: build/finetune build/finetune-cuda build/emulated-cuda/libcuda.so
	CC="$(CC)" CXX="$(CXX)" CARGO="$(CARGO)" TARGET_DIR="$(TARGET_DIR)" FINETUNE="build/finetune build/finetune-cuda" \
	    tests/bundle/make.sh build/gpu-bundle

$(PACKAGE)/libmofo.a: $(PACKAGE_INPUTS)
	CC="$(CC)" CARGO="$(CARGO)" CUDA="$(CUDA)" VERSION="$(VERSION)" TARGET="$(PACKAGE_TARGET)" TARGET_DIR="$(TARGET_DIR)" \
	    packaging/build.sh "$(PACKAGE)"

package: $(PACKAGE)/libmofo.a

install: package
	DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" LIBDIR="$(LIBDIR)" INCLUDEDIR="$(INCLUDEDIR)" VERSION="$(VERSION)" \
	    LIBRARIES="$(PACKAGE)" packaging/install.sh install

uninstall:
	DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" LIBDIR="$(LIBDIR)" INCLUDEDIR="$(INCLUDEDIR)" VERSION="$(VERSION)" \
	    LIBRARIES="$(PACKAGE)" packaging/install.sh uninstall

vendor: package
	VERSION="$(VERSION)" LIBRARIES="$(PACKAGE)" packaging/vendor.sh "$(VENDOR)"

test-packaging:
	CC="$(CC)" CXX="$(CXX)" CARGO="$(CARGO)" MAKE="$(MAKE)" tests/packaging/run.sh

sanitize: build/finetune-sanitize build/engine-sanitize
	build/finetune-sanitize --smoke
	build/finetune-sanitize --smoke --view permute --threads 2
	build/engine-sanitize --smoke --bf16 --threads 3 --save build/engine-sanitize.saved
	build/engine-sanitize --check-gradients

thread-sanitizer:
	CC="$(CC)" tests/c/thread_sanitizer.sh

VALGRIND_FLAGS := --quiet --leak-check=full --show-leak-kinds=all --error-exitcode=1

valgrind: build/finetune build/engine
	$(VALGRIND) $(VALGRIND_FLAGS) build/finetune --smoke
	$(VALGRIND) $(VALGRIND_FLAGS) build/engine --smoke --threads 3 --save build/engine-valgrind.saved

clean:
	rm -rf build
	$(CARGO) clean
