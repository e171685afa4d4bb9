#!/bin/sh
# Installs what `make package` has built, or removes it again: `make install` and `make uninstall` call this.
#
#     packaging/install.sh install|uninstall
#
# The environment says what and where: VERSION, LIBRARIES (the folder of what was built),
# PREFIX, LIBDIR, INCLUDEDIR and DESTDIR. What is installed can be moved as a whole, if LIBDIR and INCLUDEDIR are under PREFIX.
set -eu
cd "$(dirname "$0")/.."

case $PREFIX$LIBDIR$INCLUDEDIR in
*[\|\&\"\;]* | *\\*) echo "install.sh: a folder's name with one of | & \" ; \\ is not supported" >&2; exit 1 ;;
esac
for folder in "$PREFIX" "$LIBDIR" "$INCLUDEDIR"; do
    case $folder in
    /*) ;;
    *) echo "install.sh: $folder must be an absolute path" >&2; exit 1 ;;
    esac
done
PREFIX=${PREFIX%/} LIBDIR=${LIBDIR%/} INCLUDEDIR=${INCLUDEDIR%/}

LICENCES=$PREFIX/share/licenses/mofo
# For `make uninstall` in a folder where nothing was built.
case $(uname -s) in Darwin) host=host-apple-darwin ;; *) host=host-unknown-linux-gnu ;; esac
TARGET=$(cat "$LIBRARIES/target" 2>/dev/null || echo $host)

. packaging/platform.sh

# a/b -> ../..
up() { printf '%s' "$1" | sed 's|[^/][^/]*|..|g'; }

# PATH, as it is seen from PREFIX; nothing, if it is not in there.
under_prefix() { case $1/ in "$PREFIX"/*) printf '%s' "${1#"$PREFIX"/}" ;; esac; }

fill_in() {
    sed -e "s|@VERSION@|$VERSION|g" -e "s|@PC_PREFIX@|$pc_prefix|" \
        -e "s|@PC_LIBDIR@|$pc_libdir|" -e "s|@PC_INCLUDEDIR@|$pc_includedir|" \
        -e "s|@PC_SYSTEM_LIBRARIES@|$system|" -e "s|@CONFIG_INCLUDEDIR@|$config_includedir|" \
        -e "s|@CONFIG_SHARED@|\${_mofo_libdir}/$file|" -e "s|@SONAME@|$config_soname|" -e "s|@STATIC@|libmofo.a|" \
        -e "s|@CONFIG_IMPLIB@||" -e "s|@CONFIG_SYSTEM_LIBRARIES@|$config_system|" "packaging/$1"
}

install_all() {
    lib=$(under_prefix "$LIBDIR")
    include=$(under_prefix "$INCLUDEDIR")
    pc_prefix=$PREFIX pc_libdir=$LIBDIR pc_includedir=$INCLUDEDIR config_includedir=$INCLUDEDIR
    if [ -n "$lib" ]; then
        pc_prefix="\${pcfiledir}/$(up "$lib/pkgconfig")"
        pc_libdir="\${prefix}/$lib"
    fi
    if [ -n "$include" ]; then pc_includedir="\${prefix}/$include"; fi
    if [ -n "$lib" ] && [ -n "$include" ]; then config_includedir="\${_mofo_libdir}/$(up "$lib")/$include"; fi
    case $TARGET in *-apple-*) config_soname=@rpath/$soname ;; *) config_soname=$soname ;; esac
    config_system=$(printf '%s' "$system" | tr ' ' ';')

    mkdir -p "$DESTDIR$LIBDIR/pkgconfig" "$DESTDIR$LIBDIR/cmake/mofo" "$DESTDIR$INCLUDEDIR" "$DESTDIR$LICENCES"
    install -m 644 include/mofo.h include/mofo.hpp "$DESTDIR$INCLUDEDIR"
    install -m 644 "$LIBRARIES/libmofo.a" "$DESTDIR$LIBDIR"
    # There is none where Rust makes no shared libraries, with a static musl for one.
    if [ -e "$LIBRARIES/$file" ]; then
        install -m 755 "$LIBRARIES/$file" "$DESTDIR$LIBDIR"
        [ "$soname" = "$file" ] || ln -sf "$file" "$DESTDIR$LIBDIR/$soname"
        [ "$link" = "$file" ] || ln -sf "$soname" "$DESTDIR$LIBDIR/$link"
    fi
    fill_in mofo.pc.in >"$DESTDIR$LIBDIR/pkgconfig/mofo.pc"
    for name in mofoConfig.cmake mofoConfigVersion.cmake; do
        fill_in "$name.in" >"$DESTDIR$LIBDIR/cmake/mofo/$name"
        chmod 644 "$DESTDIR$LIBDIR/cmake/mofo/$name"
    done
    chmod 644 "$DESTDIR$LIBDIR/pkgconfig/mofo.pc"
    install -m 644 LICENSE-MIT LICENSE-APACHE "$LIBRARIES/LICENSE-THIRD-PARTY" "$DESTDIR$LICENCES"
}

uninstall_all() {
    for path in $file $soname $link libmofo.a pkgconfig/mofo.pc; do rm -f "$DESTDIR$LIBDIR/$path"; done
    rm -f "$DESTDIR$INCLUDEDIR/mofo.h" "$DESTDIR$INCLUDEDIR/mofo.hpp"
    for path in mofoConfig.cmake mofoConfigVersion.cmake; do rm -f "$DESTDIR$LIBDIR/cmake/mofo/$path"; done
    for path in LICENSE-MIT LICENSE-APACHE LICENSE-THIRD-PARTY; do rm -f "$DESTDIR$LICENCES/$path"; done
    # Folders that are mofo's own; the others may be other libraries' too.
    rmdir "$DESTDIR$LIBDIR/cmake/mofo" "$DESTDIR$LICENCES" 2>/dev/null || true
}

case ${1:-} in
install) install_all ;;
uninstall) uninstall_all ;;
*) echo "usage: install.sh install|uninstall" >&2; exit 1 ;;
esac
