# find_package(mofo), with the tree moved.

# configured FOLDER OPTIONS...: a copy of the project, elsewhere.
configured() {
    build=$scratch/$1
    shift
    [ -d "$scratch/project" ] || cp -R "$here/project" "$scratch/project"
    cmake -S "$scratch/project" -B "$build" "-DCMAKE_C_COMPILER=$CC" "-DCMAKE_CXX_COMPILER=$CXX" \
        "-DMOFO_EXPECTED_VERSION=$version" "$@"
}

# built_and_run FOLDER [CTEST-OPTIONS]
built_and_run() {
    build=$scratch/$1
    shift
    cmake --build "$build"
    (cd "$build" && ctest --output-on-failure "$@" && ctest -N "$@" | grep -q 'Total Tests: 6')
}

package() { configured "$@" -DMOFO_TAKEN=package "-DCMAKE_PREFIX_PATH=$tree"; }

shared_by_default() {
    package found
    built_and_run found
    for language in c cpp; do
        asks_for_shared "$scratch/found/${language}_mofo"
        asks_for_shared "$scratch/found/${language}_shared"
        not asks_for_shared "$scratch/found/${language}_static"
    done
}

# as_picked shared|static OPTION...
as_picked() {
    kind=$1
    shift
    rm -rf "$scratch/picked"
    package picked "$@"
    cmake --build "$scratch/picked" --target c_mofo
    "$scratch/picked/c_mofo" "$version"
    case $kind in
    shared) asks_for_shared "$scratch/picked/c_mofo" ;;
    static) not asks_for_shared "$scratch/picked/c_mofo" ;;
    esac
}

refused() {
    for other in 999.0 "${version%.*}.999"; do
        rm -rf "$scratch/refused"
        not package refused "-DMOFO_EXPECTED_VERSION=$other" >"$scratch/refusal" 2>&1
        grep -q 'considered but not accepted' "$scratch/refusal"
    done
}

# served INSTALLED ASKED...: whether find_package takes the installed version for each that is asked for.
served() {
    sed "s/@VERSION@/$1/" packaging/mofoConfigVersion.cmake.in >"$scratch/series/mofoConfigVersion.cmake"
    shift
    for asked; do
        echo "find_package(mofo $asked CONFIG REQUIRED PATHS \"$scratch/series\" NO_DEFAULT_PATH)" >"$scratch/series/asks.cmake"
        cmake -P "$scratch/series/asks.cmake" >"$scratch/refusal" 2>&1 || return 1
    done
}

# Each alone is refused, for its version.
not_served() {
    installed=$1
    shift
    for asked; do
        not served "$installed" "$asked"
        grep -q 'considered but not accepted' "$scratch/refusal"
    done
}

# As in Rust: before 1.0 the second number is that of the series, then the first.
series() {
    mkdir "$scratch/series"
    : >"$scratch/series/mofoConfig.cmake"
    served 0.1.3 "" 0.1 0.1.0 0.1.3 "0.1.3 EXACT" 0.1...0.2 0.1...1
    not_served 0.1.3 0.1.4 0.2 0.0 1.0 "0.1.0 EXACT" 0.2...1
    not_served 0.9.0 0.1 0.8 1
    not_served 0.10.0 0.1 0.9
    served 0.10.1 0.10 0.10.0
    served 1.4.2 1 1.0 1.4 1.4.2 0.9...1.9
    not_served 1.4.2 0.1 0.9 1.5 2 10 "1...<1.4"
    served 12.0.0 12
    not_served 12.0.0 1 2
}

# A tree without the static library says what it lacks.
lacking() {
    cp -R "$tree" "$scratch/lacking"
    rm "$scratch/lacking/$where/libmofo.a"
    not configured without -DMOFO_TAKEN=package "-DCMAKE_PREFIX_PATH=$scratch/lacking" -Dmofo_USE_STATIC_LIBS=ON >"$scratch/refusal" 2>&1
    grep -q 'the static library of mofo is not in' "$scratch/refusal"
}

if needs "find_package" cmake; then
    try "find_package: shared by default" shared_by_default
    try "find_package: mofo_USE_STATIC_LIBS" as_picked static -Dmofo_USE_STATIC_LIBS=ON -DBUILD_SHARED_LIBS=ON
    try "find_package: BUILD_SHARED_LIBS=OFF" as_picked static -DBUILD_SHARED_LIBS=OFF
    try "find_package: BUILD_SHARED_LIBS=ON" as_picked shared -DBUILD_SHARED_LIBS=ON
    try "find_package: another version is refused" refused
    try "find_package: the versions of a series serve each other" series
    try "find_package: a library that is not installed" lacking
fi
