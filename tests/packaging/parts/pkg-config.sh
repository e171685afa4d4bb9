# pkg-config, with the tree moved.

pkg() { PKG_CONFIG_PATH=$tree/$where/pkgconfig pkg-config "$@"; }

# compiled PROGRAM FLAGS...: from C and C++, with what pkg-config says, which may quote a folder with a space.
compiled() {
    program=$1
    shift
    eval "c $(pkg --cflags mofo) \"\$here/project/main.c\" $* -o \"\$scratch/c-$program\""
    eval "cpp $(pkg --cflags mofo) \"\$here/project/main.cpp\" $* -o \"\$scratch/cpp-$program\""
}

of_the_version() {
    same "$(pkg --modversion mofo)" "$version"
    pkg --exists "mofo >= $version"
    not pkg --exists "mofo > $version"
}

shared() {
    compiled shared "$(pkg --libs mofo)"
    asks_for_shared "$scratch/c-shared"
    LD_LIBRARY_PATH=$tree/$where "$scratch/c-shared" "$version"
    LD_LIBRARY_PATH=$tree/$where "$scratch/cpp-shared" "$version"
}

# A program all of whose libraries are static.
all_static() {
    # The linker warns of the C library's dlopen, which needs the C library's files at run time.
    compiled static "-static -Wl,--no-fatal-warnings" "$(pkg --static --libs mofo)"
    "$scratch/c-static" "$version"
    "$scratch/cpp-static" "$version"
}

# mofo alone is static.
mofo_static() {
    libraries=$(pkg --static --libs mofo | sed 's/-lmofo/-Wl,-Bstatic -lmofo -Wl,-Bdynamic/')
    compiled half "$libraries"
    not asks_for_shared "$scratch/c-half"
    "$scratch/c-half" "$version"
    "$scratch/cpp-half" "$version"
}

if needs "pkg-config" pkg-config; then
    try "pkg-config: the version" of_the_version
    try "pkg-config: shared" shared
    try "pkg-config --static: all libraries static" all_static
    try "pkg-config --static: mofo static" mofo_static
fi
