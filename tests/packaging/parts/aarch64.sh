# The library for aarch64, by a cross compiler; programs run in an emulator.

aarch64=aarch64-unknown-linux-gnu

crossed() {
    $MAKE -s install CARGO_BUILD_TARGET=$aarch64 CC=aarch64-linux-gnu-gcc DESTDIR="$scratch/aarch64" PREFIX=/usr
    cd "$scratch/aarch64/usr/lib"
    aarch64-linux-gnu-gcc -std=c99 -I ../include "$here/project/main.c" -L . -lmofo -o shared
    aarch64-linux-gnu-gcc -std=c99 -I ../include "$here/project/main.c" libmofo.a -lpthread -ldl -lm -o static
    qemu-aarch64 -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=. ./shared "$version"
    qemu-aarch64 -L /usr/aarch64-linux-gnu ./static "$version"
}

if needs "aarch64" aarch64-linux-gnu-gcc qemu-aarch64 && needs_target "aarch64" $aarch64; then
    quickly try "make install for aarch64, run in an emulator" crossed
fi
