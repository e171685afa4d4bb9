# The static library beside another Rust library. The other is built by rustc alone.

mofo=$tree/$where/libmofo.a
include=$tree/include/there
neighbour=$scratch/libneighbour.a

building_the_neighbour() { rustc --edition 2024 -O -C panic=unwind --crate-type staticlib "$here/neighbour.rs" -o "$neighbour"; }

beside() {
    c -I "$include" "$here/neighbours.c" "$@" -lpthread -ldl -lm -o "$scratch/neighbours"
    "$scratch/neighbours"
}

# Both are one object with local symbols now; that it still unwinds shows that the object is sound.
beside_one_made_local() {
    packaging/static-library.sh "$neighbour" "$scratch/liblocal.a" "" neighbour_
    beside "$mofo" "$scratch/liblocal.a"
}

# A program is not larger than with cargo's own library; in bytes, without debug information.
size_of() {
    c -I "$include" -s "$here/project/main.c" "$@" -lpthread -ldl -lm -o "$scratch/sized"
    stat -c %s "$scratch/sized"
}
not_larger() {
    plain=$(plain_library)
    for flag in -Wl,--no-gc-sections -Wl,--gc-sections; do
        local_size=$(size_of "$flag" "$mofo")
        plain_size=$(size_of "$flag" "$plain")
        echo "$flag: $local_size bytes, with cargo's library $plain_size"
        [ "$local_size" -le $((plain_size + 4096)) ]
    done
}
plain_library() { ls "${CARGO_TARGET_DIR:-target}"/package/"$(rustc -vV | sed -n 's/^host: //p')"/release/libmofo.a; }

# Else the tests above would show nothing.
plain_ones_clash() { not beside "$(plain_library)" "$neighbour"; }

under_valgrind() {
    beside "$mofo" "$neighbour"
    valgrind --quiet --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite "$scratch/neighbours"
}

try "another Rust library" building_the_neighbour
try "mofo before another Rust library" beside "$mofo" "$neighbour"
try "mofo after another Rust library" beside "$neighbour" "$mofo"
try "mofo beside another Rust library, unused sections dropped" beside -Wl,--gc-sections "$mofo" "$neighbour"
try "mofo beside another Rust library, the C library static too" beside -Wl,--no-fatal-warnings -static "$mofo" "$neighbour"
try "mofo beside a library that was made local in the same way" beside_one_made_local
try "cargo's own static libraries clash" plain_ones_clash
try "a program is no larger than with cargo's own static library" not_larger
if needs "two Rust libraries under valgrind" valgrind; then
    try "two Rust libraries under valgrind" under_valgrind
fi
