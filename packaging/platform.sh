# For the scripts beside it: what the files of the library are called on TARGET (Rust's name of a platform), and what a static link
# needs besides. Reads TARGET and VERSION; sets system, and of the shared library: file, soname (the name that programs ask for),
# link (the name that linkers look for), built (as cargo calls it), name_argument (for the linker).
# cmake/platform.cmake has the same rules; a test compares the two (tests/packaging/parts/platforms.sh).

# Programs ask for the ABI that they were compiled for, whatever the version is.
abi=$(sed -n 's/^#define MOFO_ABI_VERSION //p' include/mofo.h)
case $TARGET in
*-apple-*)
    os=darwin file=libmofo.$VERSION.dylib soname=libmofo.$abi.dylib link=libmofo.dylib built=libmofo.dylib
    name_argument=-Wl,-install_name,@rpath/$soname
    ;;
*-android*)
    os=android file=libmofo.so soname=libmofo.so link=libmofo.so built=libmofo.so
    name_argument=-Wl,-soname,$soname
    ;;
*-linux-*)
    case $TARGET in *-musl*) os=musl ;; *) os=linux ;; esac
    file=libmofo.so.$VERSION soname=libmofo.so.$abi link=libmofo.so built=libmofo.so
    name_argument=-Wl,-soname,$soname
    ;;
*)
    echo "mofo: $TARGET has no rules here; CMakeLists.txt has some for Windows" >&2
    exit 1
    ;;
esac
system=$(sed -n "s/^$os *//p" packaging/system-libraries.txt)
