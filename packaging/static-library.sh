#!/bin/sh
# Makes of cargo's static library one that links beside other Rust libraries, and beside a second copy of itself.
#
#     packaging/static-library.sh INPUT OUTPUT [TARGET [PREFIX]]
#
# A static library of cargo's holds Rust's run time, and all its symbols are global: another Rust library in the same
# program defines them again. Here everything becomes one relocatable object, whose symbols are local but for the
# functions named PREFIX... (mofo_). What no function needs is left out.
#
# TARGET is Rust's name of the platform, the host's by default. CC is the compiler for it; OBJCOPY, READELF, NM and AR are
# the compiler's own where they are not set. KEEP_DEBUG=1 keeps the debug information.
set -eu

input=$1
output=$2
target=${3:-}
prefix=${4:-mofo_}
[ -n "$target" ] || target=$("${RUSTC:-rustc}" -vV | sed -n 's/^host: //p')
CC=${CC:-cc}

# What belongs to the compiler, cross compilers included; CC may hold options.
tool() {
    found=$($CC -print-prog-name="$1" 2>/dev/null) || found=
    if [ -z "$found" ] || ! command -v "$found" >/dev/null; then
        found=$1
        command -v "llvm-$1" >/dev/null && ! command -v "$1" >/dev/null && found=llvm-$1
    fi
    printf '%s\n' "$found"
}

die() {
    printf '%s\n' "static-library.sh: $*" >&2
    exit 1
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

elf() {
    # Not nm: it asks plug-ins about bitcode, and those of another LLVM than Rust's fail.
    "${READELF:-$(tool readelf)}" -sW "$input" 2>/dev/null >"$scratch/symbols" || true
    awk -v prefix="$prefix" '$4 == "FUNC" && $5 == "GLOBAL" && $7 != "UND" && index($8, prefix) == 1 { print $8 }' \
        "$scratch/symbols" | sort -u >"$scratch/exports"
    [ -s "$scratch/exports" ] || die "$input defines no $prefix function"

    set --
    while read -r name; do set -- "$@" "-Wl,-u,$name"; done <"$scratch/exports"
    # LLD does not do this in a relocatable link; there it is left to the engine's own --gc-sections.
    case $($CC -Wl,--version 2>/dev/null | head -n 1) in GNU\ ld*) set -- "$@" -Wl,--gc-sections ;; esac
    # With musl Rust unwinds by a library of its own; the compiler's may be meant for another C library.
    case $target in
    *-musl*)
        unwind=$("${RUSTC:-rustc}" --print sysroot)/lib/rustlib/$target/lib/self-contained/libunwind.a
        [ ! -f "$unwind" ] || set -- "$@" "$unwind"
        ;;
    esac
    # Without groups: of two of a name the linker keeps one, though the symbols of the other are local now.
    $CC -r -nostdlib -o "$scratch/linked.o" -Wl,--force-group-allocation "$input" "$@" ||
        die "the link failed; it needs GNU ld, or LLD 19 or newer"

    strip=--strip-debug
    [ "${KEEP_DEBUG:-0}" != 1 ] || strip=
    # The sections that go hold the bitcode that rustc leaves for link-time optimisation.
    # shellcheck disable=SC2086
    "${OBJCOPY:-$(tool objcopy)}" $strip --wildcard --keep-global-symbol="$prefix*" \
        --remove-section=.llvmbc --remove-section=.llvmcmd "$scratch/linked.o" "$scratch/mofo.o"
}

macho() {
    "${NM:-$(tool nm)}" -gjU "$input" 2>/dev/null | grep "^_$prefix" | sort -u >"$scratch/exports" || true
    [ -s "$scratch/exports" ] || die "$input defines no $prefix function"
    set --
    while read -r name; do set -- "$@" "-Wl,-u,$name"; done <"$scratch/exports"
    # ld makes local what is not on the list.
    $CC -r -nostdlib -o "$scratch/mofo.o" "$@" "-Wl,-exported_symbols_list,$scratch/exports" "$input"
    [ "${KEEP_DEBUG:-0}" = 1 ] || strip -S "$scratch/mofo.o"
}

case $target in
*-apple-*) macho ;;
*-windows-*)
    # Not done for COFF yet: the library is cargo's own.
    cmp -s "$input" "$output" || cp "$input" "$output"
    exit
    ;;
*) elf ;;
esac

"${AR:-$(tool ar)}" rcs "$scratch/library.a" "$scratch/mofo.o"
# One that is the same keeps its date, so that nothing is linked again.
cmp -s "$scratch/library.a" "$output" || cp "$scratch/library.a" "$output"
