#!/bin/sh
# Installs mofo in every way that is offered, and builds and runs programs of somebody else's with it. `make test-packaging` calls this.
#
# A part whose tools are missing is left out, out loud; MOFO_REQUIRE_PACKAGING=1 makes that a failure. PARTS names some of the parts
# below, to run those alone.
set -u
cd "$(dirname "$0")/../.."

if [ "$(uname -s)" != Linux ]; then
    echo "skipped: packaging: tested on Linux only"
    exit 0
fi

CC=${CC:-cc}
CXX=${CXX:-c++}
CARGO=${CARGO:-cargo}
MAKE=${MAKE:-make}
export CC CXX CARGO MAKE
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
abi=$(sed -n 's/^#define MOFO_ABI_VERSION //p' include/mofo.h)
root=$PWD
here=$root/tests/packaging
# A space, since folders have them.
scratch=$(mktemp -d)/"a folder"
mkdir "$scratch"
trap 'rm -rf "$(dirname "$scratch")"' EXIT
# `make package` works here, and not where `make install` and `make vendor` would take its result for one to hand on. Anew each time:
# what the tests build is as optimised as they need it.
PACKAGES=build/test-packaging
export PACKAGES
rm -rf "$PACKAGES"
# The tree that most parts use: installed by `make install`, then moved.
tree=$scratch/moved
# The folder of libraries in it: where a distribution would have it, which is not always lib.
multiarch=$($CC -print-multiarch 2>/dev/null || true)
where=lib${multiarch:+/$multiarch}
passed=0 failed=0 skipped=0

# try WHAT COMMAND...: one test. What the command says is shown if it fails.
try() {
    what=$1
    shift
    # Not in the condition itself, where `set -e` would do nothing.
    (set -eu; "$@") >"$scratch/log" 2>&1
    status=$?
    if [ $status -eq 0 ]; then
        passed=$((passed + 1))
        printf 'packaging: %s ... ok\n' "$what"
    else
        failed=$((failed + 1))
        printf 'packaging: %s ... FAILED\n' "$what"
        tail -n 40 "$scratch/log"
    fi
}

# needs PART TOOL...: whether all the tools are there.
needs() {
    what=$1
    shift
    for tool; do
        command -v "$tool" >/dev/null && continue
        skip "$what: no $tool"
        return 1
    done
}

# needs_target PART TARGET: whether Rust's standard library for the platform is there.
needs_target() {
    [ -d "$(rustc --print target-libdir --target "$2")" ] && return
    skip "$1: no standard library, which rustup target add $2 installs"
    return 1
}

skip() {
    if [ "${MOFO_REQUIRE_PACKAGING:-0}" = 1 ]; then
        failed=$((failed + 1))
        printf 'packaging: %s, and MOFO_REQUIRE_PACKAGING is 1 ... FAILED\n' "$1"
    else
        skipped=$((skipped + 1))
        printf 'skipped: packaging: %s\n' "$1"
    fi
}

fail() {
    printf '%s\n' "$*"
    return 1
}

# `!` alone would not end a test.
not() { if "$@"; then fail "succeeded: $*"; fi; }

same() { [ "$1" = "$2" ] || fail "got:" "$1" "instead of:" "$2"; }

c() { $CC -std=c99 -Wall -Wextra -Werror -pedantic -Wl,--fatal-warnings "$@"; }
cpp() { $CXX -std=c++17 -Wall -Wextra -Werror -pedantic -Wl,--fatal-warnings "$@"; }

# Whether a program asks for the shared library when it is started.
asks_for_shared() { readelf -d "$1" | grep -q "NEEDED.*\[libmofo.so.$abi\]"; }

# quickly TRY...: what is tested is how something is put together; that goes faster without link-time optimisation.
quickly() {
    export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
    "$@"
    unset CARGO_PROFILE_RELEASE_LTO CARGO_PROFILE_RELEASE_CODEGEN_UNITS
}

for part in ${PARTS:-platforms licences install symbols neighbours plugin vendor pkg-config cmake-package cmake-source documents cargo-c musl aarch64}; do
    . "$here/parts/$part.sh"
done

result=ok
[ $failed -eq 0 ] || result=FAILED
printf 'test result: %s. %d passed; %d failed; %d ignored\n' "$result" $passed $failed $skipped
[ $failed -eq 0 ]
