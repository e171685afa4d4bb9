#!/bin/sh
# Lays one folder to be dropped into an engine: `make vendor` calls this.
#
#     packaging/vendor.sh FOLDER
#
# The environment says what: VERSION, and LIBRARIES, the folder of what was built.
set -eu
cd "$(dirname "$0")/.."

folder=$1
TARGET=$(cat "$LIBRARIES/target")
case $TARGET in
*-apple-*) os=darwin ;;
*-android*) os=android ;;
*-windows-*) os=windows ;;
*) os=linux ;;
esac
link=
for library in $(sed -n "s/^$os *//p" packaging/system-libraries.txt); do link="$link${link:+ }-l$library"; done

mkdir -p "$folder"
install -m 644 "$LIBRARIES/libmofo.a" "$LIBRARIES/LICENSE-THIRD-PARTY" include/mofo.h include/mofo.hpp \
    LICENSE-MIT LICENSE-APACHE "$folder"
sed -e "s|@VERSION@|$VERSION|" -e "s|@TARGET@|$TARGET|" -e "s| @LINK@|${link:+ }$link|" packaging/vendor.md >"$folder/README.md"
