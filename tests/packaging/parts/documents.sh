# The blocks of CMake in docs/packaging.md, in a project as they stand. Uses the functions of cmake-package.sh.

# block NUMBER: the text of the document's block of CMake.
block() { awk -v number="$1" '/^```cmake$/ { count++; inside = count == number; next } /^```$/ { inside = 0 } inside' docs/packaging.md; }

# documented NUMBER WORD OPTION...: a project around the block, which has the word, so that it is the right one.
documented() {
    number=$1
    project=$scratch/documented-$number
    block "$number" | grep -q "$2"
    shift 2
    mkdir -p "$project"
    cp "$here/project/main.c" "$project"
    {
        printf 'cmake_minimum_required(VERSION 3.20)\nproject(documented LANGUAGES C)\nadd_executable(engine main.c)\n'
        block "$number"
    } >"$project/CMakeLists.txt"
    # Where the block has it.
    mkdir "$project/third_party"
    ln -s "$root" "$project/third_party/mofo"
    cmake -S "$project" -B "$project/build" "-DCMAKE_C_COMPILER=$CC" "$@"
    cmake --build "$project/build"
    "$project/build/engine" "$version"
}

of_an_installed_one() {
    documented 1 find_package "-DCMAKE_PREFIX_PATH=$tree"
    asks_for_shared "$scratch/documented-1/build/engine"
}

of_the_sources() {
    # Crates that are compiled already.
    mkdir -p "$scratch/documented-2/build/third_party/mofo"
    [ ! -d "$scratch/sub/mofo/cargo" ] || mv "$scratch/sub/mofo/cargo" "$scratch/documented-2/build/third_party/mofo"
    documented 2 add_subdirectory -DCMAKE_BUILD_TYPE=Debug -DMOFO_CUDA=OFF
    not asks_for_shared "$scratch/documented-2/build/engine"
}

no_others() { same "$(block 3)" ""; }

if needs "the documented blocks of CMake" cmake; then
    try "docs/packaging.md: find_package" of_an_installed_one
    try "docs/packaging.md: add_subdirectory" of_the_sources
    try "docs/packaging.md has no other block of CMake" no_others
fi
