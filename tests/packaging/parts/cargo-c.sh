# cargo cinstall, with the result of `make install` in essentials: no files for CMake, cargo's own static library,
# and a file that is called by the ABI, since cargo-c makes the name that programs ask for of the file's.

# Without a space: cargo-c does not quote one.
cargo=$(dirname "$scratch")/cargo

installed_by_cargo() {
    $CARGO cinstall --locked --release --prefix /opt/mofo --libdir /opt/mofo/lib --includedir /opt/mofo/include --destdir "$cargo" \
        --target-dir "${CARGO_TARGET_DIR:-target}/cargo-c"
    same "$(files_of "$cargo/opt/mofo")" "./include/mofo.h
./include/mofo.hpp
./lib/libmofo.a
./lib/libmofo.so
./lib/libmofo.so.$abi
./lib/libmofo.so.$abi.0.0
./lib/pkgconfig/mofo.pc"
    cmp include/mofo.h "$cargo/opt/mofo/include/mofo.h"
    cmp include/mofo.hpp "$cargo/opt/mofo/include/mofo.hpp"
    readelf -d "$cargo/opt/mofo/lib/libmofo.so" | grep -q "SONAME.*\[libmofo.so.$abi\]"
    same "$(nm -D --defined-only "$cargo/opt/mofo/lib/libmofo.so" | awk '{ print $NF }' | LC_ALL=C sort)" "$(functions)"
}

of_cargo() { PKG_CONFIG_SYSROOT_DIR=$cargo PKG_CONFIG_PATH=$cargo/opt/mofo/lib/pkgconfig pkg-config "$@" mofo; }

used_by_pkg_config() {
    same "$(of_cargo --modversion)" "$version"
    eval "c $(of_cargo --cflags) \"\$here/project/main.c\" $(of_cargo --libs) -o \"\$scratch/c-cargo\""
    asks_for_shared "$scratch/c-cargo"
    LD_LIBRARY_PATH=$cargo/opt/mofo/lib "$scratch/c-cargo" "$version"
}

# What docs/packaging.md says of it.
made_local() {
    packaging/static-library.sh "$cargo/opt/mofo/lib/libmofo.a" "$cargo/opt/mofo/lib/libmofo.a"
    same "$(nm -g --defined-only "$cargo/opt/mofo/lib/libmofo.a" | awk 'NF == 3 { print $3 }' | LC_ALL=C sort)" "$(functions)"
}

if needs "cargo cinstall" cargo-cinstall pkg-config; then
    quickly try "cargo cinstall" installed_by_cargo
    try "cargo cinstall, used by pkg-config" used_by_pkg_config
    try "cargo cinstall, the static library's symbols made local" made_local
fi
