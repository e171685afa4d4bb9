#!/bin/sh
# Builds what is handed on: the shared library with its name in it, the static library with local symbols, and the licences
# of what is linked into them. `make package` calls this.
#
#     packaging/build.sh FOLDER
#
# The environment says what: VERSION, TARGET (Rust's name of the platform), TARGET_DIR (cargo's), CUDA=0 for a library without CUDA,
# CC, the compiler for the platform. The kinds of the library are built on their own, away from those of `cargo build`: a library that
# knows its installed name would not be found by the tests.
set -eu
cd "$(dirname "$0")/.."

folder=$1
CARGO=${CARGO:-cargo}
CC=${CC:-cc}
. packaging/platform.sh
host=$("${RUSTC:-rustc}" -vV | sed -n 's/^host: //p')

features=
cargo_folder=$TARGET_DIR/package
if [ "${CUDA:-1}" = 0 ]; then
    features=--no-default-features
    cargo_folder=$cargo_folder-cpu
fi

# Rust makes no shared library that brings its own musl, and iOS wants none.
kinds=cdylib,staticlib
case $TARGET in *-apple-ios*) kinds=staticlib ;; esac
if "${RUSTC:-rustc}" --print cfg --target "$TARGET" | grep -q 'target_feature="crt-static"'; then
    case $TARGET in *-musl*) kinds=staticlib ;; esac
fi

# Cargo links with the compiler for the platform, where it has not been told otherwise.
linker=CARGO_TARGET_$(printf '%s' "$TARGET" | tr 'a-z-' 'A-Z_')_LINKER
case $CC in
cc | *\ *) ;;
*) [ "$TARGET" = "$host" ] || eval "export $linker=\"\${$linker:-\$CC}\"" ;;
esac

# Locked: what is handed on has the dependencies that were tested.
build() {
    # shellcheck disable=SC2086
    "$CARGO" rustc --locked --release --lib --crate-type "$kinds" --target "$TARGET" $features --target-dir "$cargo_folder" "$@"
}
if [ "$kinds" = staticlib ]; then build; else build -- -C link-arg="$name_argument"; fi

built_in=$cargo_folder/$TARGET/release
mkdir -p "$folder"
printf '%s\n' "$TARGET" >"$folder/target"
rm -f "$folder/$file"
[ "$kinds" = staticlib ] || cp "$built_in/$built" "$folder/$file"
# shellcheck disable=SC2086
packaging/third-party.sh "$TARGET" $features >"$folder/LICENSE-THIRD-PARTY"
packaging/static-library.sh "$built_in/libmofo.a" "$folder/libmofo.a" "$TARGET"
# Make looks at its date.
touch "$folder/libmofo.a"
