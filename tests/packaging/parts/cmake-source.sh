# CMake builds mofo itself: add_subdirectory, FetchContent, and cmake --install. Uses the functions of cmake-package.sh.

# Debug information is asked for, CUDA is not, and nothing is built twice.
as_subdirectory() {
    configured sub -DMOFO_TAKEN=subdirectory "-DMOFO_SOURCE=$root" -DCMAKE_BUILD_TYPE=Debug -DMOFO_CUDA=OFF -DBUILD_SHARED_LIBS=OFF
    built_and_run sub
    asks_for_shared "$scratch/sub/c_shared"
    not asks_for_shared "$scratch/sub/c_mofo"
    again=$(cmake --build "$scratch/sub")
    case $again in *Linking*) fail "linked again: $again" ;; esac
    readelf -SW "$scratch/sub/mofo/lib/libmofo.a" | grep -q '\.debug_info'
    c -I include "$here/cpu_alone.c" "$scratch/sub/mofo/lib/libmofo.a" -lpthread -ldl -lm -o "$scratch/sub/cpu_alone"
    "$scratch/sub/cpu_alone"
    # It is no part of what the project installs.
    (cd "$scratch/sub" && DESTDIR=$scratch/sub-installed cmake --install . && [ ! -e "$scratch/sub-installed" ])
}

with_many_configurations() {
    configured multi -G "Ninja Multi-Config" -DMOFO_TAKEN=subdirectory "-DMOFO_SOURCE=$root" -DMOFO_CUDA=OFF
    cmake --build "$scratch/multi" --config Release
    (cd "$scratch/multi" && ctest -C Release --output-on-failure && ctest -N -C Release | grep -q 'Total Tests: 6')
    asks_for_shared "$scratch/multi/Release/c_mofo"
}

# From an archive, as a release would be.
as_fetched() {
    tar -czf "$scratch/mofo.tar.gz" --exclude=./.git --exclude=./target --exclude=./build -C "$root" .
    configured fetched -DMOFO_TAKEN=fetched "-DMOFO_SOURCE=$scratch/mofo.tar.gz" -DCMAKE_BUILD_TYPE=Release
    built_and_run fetched
    asks_for_shared "$scratch/fetched/c_mofo"
}

# The same files as those of `make install`, the same texts among them.
on_its_own() {
    cmake -S "$root" -B "$scratch/own" "-DCMAKE_C_COMPILER=$CC" -DCMAKE_INSTALL_LIBDIR=$where -DCMAKE_INSTALL_INCLUDEDIR=include/there
    cmake --build "$scratch/own"
    DESTDIR=$scratch/own-destination cmake --install "$scratch/own" --prefix /usr
    same "$(files_of "$scratch/own-destination/usr")" "$(expected_files)"
    for file in $where/pkgconfig/mofo.pc $where/cmake/mofo/mofoConfig.cmake $where/cmake/mofo/mofoConfigVersion.cmake \
        share/licenses/mofo/LICENSE-THIRD-PARTY include/there/mofo.h; do
        diff "$scratch/own-destination/usr/$file" "$tree/$file"
    done
    same "$(readelf -d "$scratch/own-destination/usr/$where/libmofo.so" | grep SONAME)" "$(readelf -d "$tree/$where/libmofo.so" | grep SONAME)"
    configured own-found -DMOFO_TAKEN=package "-DCMAKE_PREFIX_PATH=$scratch/own-destination/usr"
    built_and_run own-found
}

if needs "CMake builds mofo" cmake; then
    quickly try "add_subdirectory" as_subdirectory
    quickly try "FetchContent" as_fetched
    quickly try "cmake --install" on_its_own
    if needs "a generator of many configurations" ninja; then
        quickly try "add_subdirectory, many configurations" with_many_configurations
    fi
fi
