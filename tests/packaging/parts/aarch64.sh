# The library for aarch64 compiles; where a cross compiler and an emulator are, it also runs.

aarch64=aarch64-unknown-linux-gnu

checked() { $CARGO check --quiet --lib --target $aarch64 --target-dir "${CARGO_TARGET_DIR:-target}/package"; }

crossed() {
    $MAKE -s install CARGO_BUILD_TARGET=$aarch64 CC=aarch64-linux-gnu-gcc DESTDIR="$scratch/aarch64" PREFIX=/usr
    cd "$scratch/aarch64/usr/lib"
    aarch64-linux-gnu-gcc -std=c99 -I ../include "$here/project/main.c" -L . -lmofo -o shared
    aarch64-linux-gnu-gcc -std=c99 -I ../include "$here/project/main.c" libmofo.a -lpthread -ldl -lm -o static
    qemu-aarch64 -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=. ./shared "$version"
    qemu-aarch64 -L /usr/aarch64-linux-gnu ./static "$version"
}

if [ -d "$(rustc --print sysroot)/lib/rustlib/$aarch64/lib" ]; then
    try "the library for aarch64 compiles" checked
    if command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64 >/dev/null; then
        try "make install for aarch64, run in an emulator" crossed
    else
        leave_out "aarch64 is not run: no aarch64-linux-gnu-gcc or no qemu-aarch64"
    fi
else
    leave_out "aarch64: rustup target add $aarch64"
fi
