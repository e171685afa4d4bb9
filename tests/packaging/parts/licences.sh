# LICENSE-THIRD-PARTY where a text is missing: that is said in it, and to whoever builds; and builds take the locked dependencies.

host=$(rustc -vV | sed -n 's/^host: //p')
printed() { packaging/third-party.sh "$host" >"$scratch/licences" 2>"$scratch/said"; }

# A compiler as some distributions package it, without its documents.
without_documents() {
    mkdir "$scratch/empty"
    cat >"$scratch/rustc" <<END
#!/bin/sh
if [ "\$*" = "--print sysroot" ]; then echo "$scratch/empty"; else exec rustc "\$@"; fi
END
    chmod +x "$scratch/rustc"
    export RUSTC="$scratch/rustc"
    printed
    grep -q 'came without COPYRIGHT-library.html' "$scratch/said"
    grep -q '^The compiler came without the notices' "$scratch/licences"
    # Its own licence is there all the same.
    grep -q '^Copyright .*The Rust Project Developers' "$scratch/licences"
    grep -q '^Copyright .*Unicode, Inc' "$scratch/licences"
}

# Sources of which somebody has removed the licences, where cargo alone knows to find them.
without_a_text() {
    mkdir -p "$scratch/sources/half"
    cat >"$scratch/cargo" <<END
#!/bin/sh
"$CARGO" "\$@" >"$scratch/answer" || exit
[ "\$1" != metadata ] || sed -i 's#"manifest_path":"[^"]*/half-[^"]*"#"manifest_path":"$scratch/sources/half/Cargo.toml"#' "$scratch/answer"
cat "$scratch/answer"
END
    chmod +x "$scratch/cargo"
    manifest=$("$CARGO" metadata --locked --format-version 1 | grep -o '"manifest_path":"[^"]*/half-[^"]*"' | cut -d '"' -f 4)
    cp "$manifest" "$scratch/sources/half"
    export CARGO="$scratch/cargo"
    printed
    grep -q 'half v.* have no licence' "$scratch/said"
    same "$(grep -c 'its sources came without the text' "$scratch/licences")" 1
    # Sources that have one are found in the same place.
    echo "the text of elsewhere" >"$scratch/sources/half/LICENSE-MIT"
    printed
    grep -qx 'the text of elsewhere' "$scratch/licences"
    not grep 'no licence' "$scratch/said"
}

# Neither way of building writes into the sources.
locked() {
    mkdir "$scratch/unlocked"
    cp -R Cargo.toml CMakeLists.txt cmake packaging include src "$scratch/unlocked"
    for folder in tests benches examples; do ln -s "$root/$folder" "$scratch/unlocked"; done
    # As it would be before a dependency was added.
    awk -v RS= -v ORS='\n\n' '!/name = "half"/' Cargo.lock >"$scratch/unlocked/Cargo.lock"
    cp "$scratch/unlocked/Cargo.lock" "$scratch/Cargo.lock"
    export VERSION="$version" TARGET="$host" TARGET_DIR="$scratch/target" CARGO_NET_OFFLINE=true
    not "$scratch/unlocked/packaging/build.sh" "$scratch/unlocked-package" >"$scratch/said" 2>&1
    cat "$scratch/said"
    grep -q -e --locked "$scratch/said"
    cmp "$scratch/unlocked/Cargo.lock" "$scratch/Cargo.lock"
    if command -v cmake >/dev/null; then
        cmake -S "$scratch/unlocked" -B "$scratch/unlocked-build" "-DCMAKE_C_COMPILER=$CC"
        not cmake --build "$scratch/unlocked-build" >"$scratch/said" 2>&1
        grep -q -e --locked "$scratch/said"
        cmp "$scratch/unlocked/Cargo.lock" "$scratch/Cargo.lock"
    fi
}

try "the licences, with a compiler without documents" without_documents
try "the licences, with sources without a text" without_a_text
try "a lock file that does not fit is an error, and stays as it is" locked
