#!/bin/sh
# Prints what is linked into the library besides mofo, and the licences that must be handed on with it.
#
#     packaging/third-party.sh [CARGO-OPTIONS]
#
# The options are those of the build that choose features and the platform. CARGO and CARGO_HOME are used as usual.
set -eu
cd "$(dirname "$0")/.."

list=$("${CARGO:-cargo}" tree "$@" --edges normal,no-proc-macro --prefix none --format '{p}|{l}|{r}' | grep -v '^mofo ' |
    sed 's/ (\*)$//; s/ *|/|/' | sort -u)

echo "Linked into the library of mofo, beside mofo itself:"
echo
printf '%s\n' "$list" | while IFS='|' read -r package licence repository; do
    printf '%s: %s, %s\n' "$package" "$licence" "$repository"
done
echo "Rust's standard library: MIT OR Apache-2.0, https://github.com/rust-lang/rust"
echo
echo "The texts of the licences follow, of each package the first that it offers of MIT, its only one, and Apache-2.0."

printf '%s\n' "$list" | while IFS='|' read -r package licence repository; do
    folder=${package%% v*}-${package##* v}
    text=
    for path in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$folder"; do
        for name in LICENSE-MIT LICENSE-MIT.md LICENSE LICENSE-APACHE; do
            if [ -z "$text" ] && [ -f "$path/$name" ]; then text=$path/$name; fi
        done
    done
    printf '\n---- %s\n\n' "$package"
    # Cargo may have been told to take its sources from elsewhere.
    if [ -n "$text" ]; then cat "$text"; else echo "$licence: see $repository"; fi
done
