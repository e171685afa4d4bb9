# `make install`, which the other parts use, and `make uninstall`. Needs a compiler alone.

# Under folders that are not the defaults, and a DESTDIR that no file may know of.
destination=$scratch/destination
installing() { $MAKE -s "$1" DESTDIR="$destination" PREFIX=/opt/mofo LIBDIR=/opt/mofo/$where INCLUDEDIR=/opt/mofo/include/there; }

files_of() { (cd "$1" && find . ! -type d | LC_ALL=C sort); }

expected_files() {
    LC_ALL=C sort <<END
./include/there/mofo.h
./include/there/mofo.hpp
./$where/cmake/mofo/mofoConfig.cmake
./$where/cmake/mofo/mofoConfigVersion.cmake
./$where/libmofo.a
./$where/libmofo.so
./$where/libmofo.so.$abi
./$where/libmofo.so.$version
./$where/pkgconfig/mofo.pc
./share/licenses/mofo/LICENSE-APACHE
./share/licenses/mofo/LICENSE-MIT
./share/licenses/mofo/LICENSE-THIRD-PARTY
END
}

files_and_names() {
    installed=$destination/opt/mofo
    same "$(files_of "$installed")" "$(expected_files)"
    same "$(readlink "$installed/$where/libmofo.so")" "libmofo.so.$abi"
    same "$(readlink "$installed/$where/libmofo.so.$abi")" "libmofo.so.$version"
    same "$(readelf -d "$installed/$where/libmofo.so" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')" "libmofo.so.$abi"
    cmp include/mofo.h "$installed/include/there/mofo.h"
    cmp include/mofo.hpp "$installed/include/there/mofo.hpp"
    # Each crate of the build, with the text of a licence, and Rust's standard library.
    grep -q '^half v.*: MIT OR Apache-2.0' "$installed/share/licenses/mofo/LICENSE-THIRD-PARTY"
    licences=$installed/share/licenses/mofo/LICENSE-THIRD-PARTY
    same "$(sed -n 's/^---- \(.* v[0-9].*\)/\1/p' "$licences")" "$(sed -n 's/^\([^ ]* v[0-9][^:]*\): .*/\1/p' "$licences")"
    for holder in 'The Rust Project Developers' 'Unicode, Inc'; do grep -q "Copyright .*$holder" "$licences"; done
    not grep 'its sources came without' "$licences"
}

nothing_names_its_folder() {
    found=$(grep -rlF -e "$destination" -e /opt/mofo "$destination/opt/mofo/$where/pkgconfig" "$destination/opt/mofo/$where/cmake" || true)
    same "$found" ""
    # No placeholder was forgotten.
    found=$(grep -rE '@[A-Z_]+@' "$destination/opt/mofo/$where/pkgconfig" "$destination/opt/mofo/$where/cmake" || true)
    same "$found" ""
}

uninstalled() {
    cp -R "$destination" "$scratch/kept"
    touch "$destination/opt/mofo/$where/other.so"
    installing uninstall
    same "$(files_of "$destination")" ./opt/mofo/$where/other.so
    [ ! -d "$destination/opt/mofo/$where/cmake/mofo" ]
}

# Programs in C and C++ that are told where the library is by hand.
linked_by_hand() {
    flags="-I include/there"
    for kind in shared static; do
        case $kind in
        shared) libraries="-L $where -lmofo -Wl,-rpath,\$ORIGIN/$where" ;;
        static) libraries="$where/libmofo.a -lpthread -ldl -lm" ;;
        esac
        (
            cd "$tree"
            # shellcheck disable=SC2086
            c $flags "$here/project/main.c" $libraries -o c-$kind
            # shellcheck disable=SC2086
            cpp $flags "$here/project/main.cpp" $libraries -o cpp-$kind
        )
        "$tree/c-$kind" "$version"
        "$tree/cpp-$kind" "$version"
    done
    asks_for_shared "$tree/c-shared"
    not asks_for_shared "$tree/c-static"
    not asks_for_shared "$tree/cpp-static"
    # The program can tell one version from another.
    not "$tree/c-shared" 999.0.0
}

try "make install" installing install
try "the installed files and their names" files_and_names
try "no installed file names the folder that it is in" nothing_names_its_folder
try "make uninstall leaves other files alone" uninstalled
mv "$scratch/kept/opt/mofo" "$tree"
rm -rf "$destination" "$scratch/kept"
try "programs linked by hand" linked_by_hand
