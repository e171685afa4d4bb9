# A wholly static program with musl.

musl=x86_64-unknown-linux-musl

vendored_for_musl() {
    $MAKE -s vendor CARGO_BUILD_TARGET=$musl CC=musl-gcc VENDOR="$scratch/musl"
    # Not where a library to hand on is built.
    [ -f "$PACKAGES/$musl/libmofo.a" ]
    command="$(sed -n 's/^    cc engine.c -Imofo mofo\/libmofo.a //p' "$scratch/musl/README.md" | sed 's/ -o engine//')"
    echo "$command"
    # shellcheck disable=SC2086
    musl-gcc -std=c99 -static -I "$scratch/musl" "$here/project/main.c" "$scratch/musl/libmofo.a" $command -o "$scratch/c-musl"
    "$scratch/c-musl" "$version"
    # Unwinding works there too, by the library that the archive has brought.
    rustc --edition 2024 -O --target $musl --crate-type staticlib "$here/neighbour.rs" -o "$scratch/libmusl.a"
    CC=musl-gcc packaging/static-library.sh "$scratch/libmusl.a" "$scratch/libmusl-local.a" $musl neighbour_
    # shellcheck disable=SC2086
    musl-gcc -std=c99 -static -I "$scratch/musl" "$here/neighbours.c" "$scratch/musl/libmofo.a" "$scratch/libmusl-local.a" $command \
        -o "$scratch/neighbours-musl"
    "$scratch/neighbours-musl"
}

if needs "musl" musl-gcc && needs_target "musl" $musl; then quickly try "make vendor for musl" vendored_for_musl; fi
