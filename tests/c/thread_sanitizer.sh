#!/bin/sh
# The C programs that use threads, and the library with all of Rust's standard library, under ThreadSanitizer.
# Needs a nightly Rust with its sources: rustup toolchain install nightly --profile minimal --component rust-src
set -eu
cd "$(dirname "$0")/../.."
target=x86_64-unknown-linux-gnu
out=build/thread-sanitizer
runtime=$(rustc +nightly --print target-libdir 2>/dev/null || true)/librustc-nightly_rt.tsan.a
sources=$(rustc +nightly --print sysroot 2>/dev/null || true)/lib/rustlib/src/rust/library
if [ ! -f "$runtime" ] || [ ! -d "$sources" ]; then
    echo "skipped: ThreadSanitizer: no nightly Rust for $target with its sources"
    exit "${MOFO_REQUIRE_NIGHTLY:-0}"
fi
RUSTFLAGS=-Zsanitizer=thread cargo +nightly build --lib --no-default-features -Zbuild-std --target $target --target-dir $out
for program in threads parallel_for shared_threads; do
    flags=
    [ $program != shared_threads ] || flags=-Wl,--wrap=pthread_create
    "${CC:-cc}" -std=c11 -g -O1 -fsanitize=thread -Iinclude -c tests/c/$program.c -o $out/$program.o
    # The runtime is the one that Rust's compiler knows, whatever the C compiler has.
    "${CC:-cc}" $out/$program.o $out/$target/debug/libmofo.a -Wl,--whole-archive "$runtime" -Wl,--no-whole-archive \
        -Wl,--export-dynamic -lpthread -ldl -lm -lrt $flags -o $out/$program
    MOFO_TEST_QUICK=1 $out/$program
done
