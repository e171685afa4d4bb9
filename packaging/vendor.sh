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
. packaging/platform.sh

mkdir -p "$folder"
install -m 644 "$LIBRARIES/libmofo.a" "$LIBRARIES/LICENSE-THIRD-PARTY" include/mofo.h include/mofo.hpp \
    LICENSE-MIT LICENSE-APACHE "$folder"
sed -e "s|@VERSION@|$VERSION|" -e "s|@TARGET@|$TARGET|" -e "s| @LINK@|${system:+ }$system|" packaging/vendor.md >"$folder/README.md"
