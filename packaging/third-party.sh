#!/bin/sh
# Prints what is linked into the library besides mofo, and the licences that must be handed on with it.
#
#     packaging/third-party.sh [TARGET [CARGO-OPTIONS]]
#
# TARGET is Rust's name of the platform, the host's by default; the options are those of the build that choose features. CARGO and RUSTC are used as usual.
set -eu
cd "$(dirname "$0")/.."

CARGO=${CARGO:-cargo}
target=${1:-$("${RUSTC:-rustc}" -vV | sed -n 's/^host: //p')}
[ $# = 0 ] || shift

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# In a file first: of a pipe the shell would look at the last command's status alone.
"$CARGO" tree --locked --target "$target" "$@" --edges normal,no-proc-macro --prefix none --format '{p}|{l}|{r}' >"$scratch/tree"
grep -v '^mofo ' "$scratch/tree" | sed 's/ (\*)$//; s/ *|/|/' | sort -u >"$scratch/packages"

# Where cargo has their sources: in its registry, or where it was told to take them from. Lines of "NAME vVERSION|FOLDER".
"$CARGO" metadata --locked --format-version 1 --filter-platform "$target" >"$scratch/metadata"
grep -o '"manifest_path":"[^"]*"' "$scratch/metadata" | sed 's/^"manifest_path":"//; s/"$//' | while read -r manifest; do
    awk -F '"' -v folder="${manifest%/Cargo.toml}" '/^\[/ { package = $0 == "[package]" } package && /^name *=/ { name = $2 }
        package && /^version *=/ { version = $2 } END { print name " v" version "|" folder }' "$manifest"
done >"$scratch/folders"

text_of() {
    folder=$(sed -n "s#^$1|##p" "$scratch/folders" | head -n 1)
    for name in LICENSE-MIT LICENSE-MIT.md LICENSE LICENSE-APACHE; do
        if [ -f "$folder/$name" ]; then cat "$folder/$name"; return; fi
    done
    echo "third-party.sh: the sources of $1 in $folder have no licence's text; hand it on yourself" >&2
    echo "$2: its sources came without the text. See $3"
}

echo "Linked into the library of mofo, beside mofo itself:"
echo
while IFS='|' read -r package licence repository; do
    printf '%s: %s, %s\n' "$package" "$licence" "$repository"
done <"$scratch/packages"
echo "Rust's standard library: MIT OR Apache-2.0, parts of it Unicode-3.0, https://github.com/rust-lang/rust"
echo
echo "The texts of the licences follow, of each package the first that it offers of MIT, its only one, and Apache-2.0."

while IFS='|' read -r package licence repository; do
    printf '\n---- %s\n\n' "$package"
    text_of "$package" "$licence" "$repository"
done <"$scratch/packages"

printf '\n---- %s\n\n' "Rust's standard library"
cat packaging/rust-license.txt
# The crates that it contains in turn, but for those of systems that this is not packaged for. The compiler brings their notices as
# HTML, but not everybody's package of the compiler does.
foreign='windows|r-efi|hermit|wasi|wit-bindgen|moto-rt|sgx|vex-sdk'
notices=$(find "$("${RUSTC:-rustc}" --print sysroot)/share/doc" -path '*/rust*/COPYRIGHT-library.html' 2>/dev/null | head -n 1)
if [ -n "$notices" ]; then
    printf '\n---- Crates in the standard library, of which each platform has some\n'
    awk -v foreign="$foreign" '/<h3>/ { package = $0 } /<summary>/ { wanted = package !~ foreign && !/APACHE/; if (wanted) print "\n" package " " $0 "\n" }
        /<\/pre>/ { text = 0 } text && wanted { print } /<pre>/ { text = 1 }' "$notices" |
        sed "s/<[^>]*>//g; s/^ *📦 *\([^ ]*\) */-- \1: /; s/&#34;/\"/g; s/&#39;/'/g; s/&#60;/</g; s/&#62;/>/g; s/&#38;/\&/g"
else
    echo "third-party.sh: this compiler came without COPYRIGHT-library.html, the notices of the crates in the standard library" >&2
    printf '\n%s\n' "The compiler came without the notices of the crates that the standard library contains. See
https://github.com/rust-lang/rust/blob/master/library/Cargo.lock"
fi
