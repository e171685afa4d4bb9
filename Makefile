# GNU make. Needs cargo and, for the examples, a C and a C++ compiler.
#
#   make            the library: target/release/libmofo.a and the shared library beside it
#   make demo       fine-tuning on handwritten digits, AdamW against MoFO (DEMO_ARGS="--help" shows its options)
#   make examples   builds every example and runs the small ones
#   make test       all tests, the examples included
#   make lint       formatting, clippy, rustdoc and compiler warnings, all of them errors
#   make fmt        formats the Rust code
#   make header     writes include/mofo.h from src/ffi
#   make bench      times the steps of many tensors; takes some minutes (BENCH_ARGS="--help" shows its options, --full measures more)
#   make bench-failing  steps whose estimated threshold is wrong (BENCH_ARGS="ENTRIES ROUNDS")
#   make bench-torch  a step against PyTorch's; needs Python with PyTorch (BENCH_ARGS="--help" shows its options)
#   make sanitize   the demo under AddressSanitizer and UndefinedBehaviorSanitizer, a few steps
#   make valgrind   the demo under valgrind, a few steps
#   make clean      removes build/ and cargo's target directory
#
# CC, CXX, CARGO, CFLAGS, CXXFLAGS, CPPFLAGS, LDFLAGS, LDLIBS and CARGO_TARGET_DIR can be set as usual.

CARGO ?= cargo
CFLAGS ?= -O3
CXXFLAGS ?= -O2
LDLIBS ?= -lpthread -ldl -lm
VALGRIND ?= valgrind
DEMO_ARGS ?=
PYTHON ?= python3
BENCH_ARGS ?=
# What the benchmark's plain C loop is compiled for.
NATIVE ?= -march=native

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
LIBRARY := $(TARGET_DIR)/release/libmofo.a
HEADERS := include/mofo.h include/mofo.hpp
FINETUNE := examples/c/finetune.c $(wildcard examples/c/finetune/*.c)
FINETUNE_HEADERS := $(wildcard examples/c/finetune/*.h)
BENCH := benches/bench.cpp $(wildcard benches/bench/*.cpp)
BENCH_HEADERS := benches/adamw.h $(wildcard benches/bench/*.hpp)

# No fused multiply-add in the demo, so that it prints the same numbers with gcc and clang and with every -march.
C11 := -std=c11 -ffp-contract=off -Iinclude
C99 := -std=c99 -Iinclude
CPP17 := -std=c++17 -Iinclude
WARNINGS := -Wall -Wextra -Werror -pedantic
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

.PHONY: all library demo examples test lint fmt header bench bench-failing bench-torch sanitize valgrind clean FORCE

all: library

library: $(LIBRARY)

# Cargo knows what has changed, and leaves the file alone if nothing has.
$(LIBRARY): FORCE
	$(CARGO) build --release

build:
	mkdir -p build

build/finetune: $(FINETUNE) $(FINETUNE_HEADERS) $(HEADERS) $(LIBRARY) | build
	$(CC) $(C11) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(FINETUNE) $(LIBRARY) $(LDLIBS) -o $@

build/finetune-sanitize: $(FINETUNE) $(FINETUNE_HEADERS) $(HEADERS) $(LIBRARY) | build
	$(CC) $(C11) $(CPPFLAGS) -O1 -g $(SANITIZERS) $(LDFLAGS) $(FINETUNE) $(LIBRARY) $(LDLIBS) -o $@

build/minimal-c: examples/c/minimal.c $(HEADERS) $(LIBRARY) | build
	$(CC) $(C99) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $< $(LIBRARY) $(LDLIBS) -o $@

build/minimal-cpp: examples/cpp/minimal.cpp $(HEADERS) $(LIBRARY) | build
	$(CXX) $(CPP17) $(CPPFLAGS) $(CXXFLAGS) $(LDFLAGS) $< $(LIBRARY) $(LDLIBS) -o $@

build/adamw-as-is.o: benches/adamw.c benches/adamw.h | build
	$(CC) $(CPPFLAGS) -O3 $(NATIVE) -DADAMW_STEP=adamw_step_as_is -c $< -o $@

build/adamw-no-math-errno.o: benches/adamw.c benches/adamw.h | build
	$(CC) $(CPPFLAGS) -O3 $(NATIVE) -fno-math-errno -DADAMW_STEP=adamw_step_no_math_errno -c $< -o $@

build/bench: $(BENCH) $(BENCH_HEADERS) build/adamw-as-is.o build/adamw-no-math-errno.o $(HEADERS) $(LIBRARY) | build
	$(CXX) $(CPP17) $(CPPFLAGS) $(CXXFLAGS) $(LDFLAGS) $(BENCH) $(filter %.o,$^) $(LIBRARY) $(LDLIBS) -o $@

demo: build/finetune
	build/finetune $(DEMO_ARGS)

examples: build/finetune build/minimal-c build/minimal-cpp
	build/minimal-c
	build/minimal-cpp
	$(CARGO) run --release --example minimal

test: examples
	$(CARGO) test
	$(CARGO) test --features forced-paths --test paths
	build/finetune --smoke

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --features forced-paths --test paths --bench failing -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps
	for file in $(FINETUNE); do $(CC) $(C11) $(CPPFLAGS) $(WARNINGS) -fsyntax-only $$file || exit 1; done
	$(CC) $(C99) $(CPPFLAGS) $(WARNINGS) -fsyntax-only examples/c/minimal.c
	$(CXX) $(CPP17) $(CPPFLAGS) $(WARNINGS) -fsyntax-only examples/cpp/minimal.cpp
	$(CC) $(C99) $(CPPFLAGS) $(WARNINGS) -fsyntax-only benches/adamw.c
	for file in $(BENCH); do $(CXX) $(CPP17) $(CPPFLAGS) $(WARNINGS) -fsyntax-only $$file || exit 1; done

fmt:
	$(CARGO) fmt

header:
	MOFO_WRITE_HEADER=1 $(CARGO) test --test header

bench: build/bench
	build/bench $(BENCH_ARGS)

bench-failing:
	$(CARGO) bench --features forced-paths --bench failing -- $(BENCH_ARGS)

bench-torch: library
	$(PYTHON) benches/compare_torch.py --library $(TARGET_DIR)/release/libmofo.so $(BENCH_ARGS)

sanitize: build/finetune-sanitize
	build/finetune-sanitize --smoke
	build/finetune-sanitize --smoke --view permute --threads 2

valgrind: build/finetune
	$(VALGRIND) --quiet --leak-check=full --show-leak-kinds=all --error-exitcode=1 build/finetune --smoke

clean:
	rm -rf build
	$(CARGO) clean
