# The names of the files on each platform: those of the scripts and those of CMake are the same, and the one that programs ask for has
# the ABI's number. With another ABI and another version than today's, so that none of them can stand for the other.

copy=$scratch/platforms

copied() {
    mkdir -p "$copy/include"
    cp -R packaging cmake "$copy"
    sed 's/^#define MOFO_ABI_VERSION .*/#define MOFO_ABI_VERSION 7/' include/mofo.h >"$copy/include/mofo.h"
    grep -q '^#define MOFO_ABI_VERSION 7$' "$copy/include/mofo.h"
    cat >"$copy/platform.cmake" <<'END'
# set_property knows no directory in a script.
function(set_property)
endfunction()
include(cmake/platform.cmake)
list(JOIN MOFO_SYSTEM_LIBRARIES " " system)
string(REPLACE "@rpath/" "" soname "${MOFO_SONAME}")
# The first link is the name that programs ask for. Where there are none, the file has all names.
set(link ${MOFO_SHARED})
if(MOFO_LINKS)
  list(GET MOFO_LINKS 0 first)
  list(GET MOFO_LINKS 1 link)
  if(NOT first STREQUAL soname)
    message(FATAL_ERROR "${MOFO_LINKS} and ${soname}")
  endif()
endif()
file(WRITE answer "${MOFO_SHARED} ${soname} ${link} ${MOFO_SHARED_BUILT} ${MOFO_NAME_ARGUMENT} ${system}\n")
END
}

of_the_scripts() {
    (cd "$copy" && TARGET=$1 VERSION=2.3.4 && . packaging/platform.sh && echo "$file $soname $link $built $name_argument $system")
}

of_cmake() {
    (cd "$copy" && cmake -DPROJECT_VERSION=2.3.4 -DPROJECT_VERSION_MAJOR=2 "-DMOFO_RUST_TARGET=$1" "-DMOFO_CARGO=$(command -v "$CARGO")" \
        -P platform.cmake && cat answer)
}

# named PLATFORM FILE SONAME
named() {
    answer=$(of_the_scripts "$1")
    case $answer in "$2 $3 "*) ;; *) fail "$1: $answer" ;; esac
}

names() {
    named x86_64-unknown-linux-gnu libmofo.so.2.3.4 libmofo.so.7
    named aarch64-unknown-linux-musl libmofo.so.2.3.4 libmofo.so.7
    named aarch64-apple-darwin libmofo.2.3.4.dylib libmofo.7.dylib
    # Android's packages take no files with a version.
    named aarch64-linux-android libmofo.so libmofo.so
}

names_in_cmake() {
    for platform in x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu x86_64-unknown-linux-musl aarch64-apple-darwin aarch64-apple-ios \
        aarch64-linux-android; do
        same "$(of_cmake $platform)" "$(of_the_scripts $platform)"
    done
}

# cargo-c takes the name that programs ask for from a version of the library in Cargo.toml.
in_cargo_toml() {
    same "$(sed -n 's/^library = { version = "\([^"]*\)".*/\1/p' Cargo.toml)" "$abi.0.0"
    # Makefile and CMakeLists.txt take the package's version from the only line that begins so.
    same "$(grep -c '^version = ' Cargo.toml)" 1
}

try "a copy of the rules for platforms" copied
try "the names of the files, by the ABI and the version" names
try "cargo-c's version of the library is the ABI's" in_cargo_toml
if needs "the names of the files in CMake" cmake; then
    try "the names of the files in CMake are those of the scripts" names_in_cmake
fi
