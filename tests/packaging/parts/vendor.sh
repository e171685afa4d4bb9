# `make vendor`: a folder to drop into an engine, used as its README says; and without CUDA.

vendored=$scratch/engine/mofo

# The README's own command, but for the names of the program and of the compiler.
as_the_readme_says() {
    $MAKE -s vendor VENDOR="$vendored"
    same "$(ls "$vendored" | LC_ALL=C sort | tr '\n' ' ')" "LICENSE-APACHE LICENSE-MIT LICENSE-THIRD-PARTY README.md libmofo.a mofo.h mofo.hpp "
    cp "$here/project/main.c" "$scratch/engine/engine.c"
    command=$(sed -n 's/^    cc /$CC /p' "$vendored/README.md")
    [ -n "$command" ]
    (cd "$scratch/engine" && eval "$command")
    "$scratch/engine/engine" "$version"
}

without_cuda() {
    $MAKE -s vendor CUDA=0 VENDOR="$scratch/cpu"
    c -I "$scratch/cpu" "$here/cpu_alone.c" "$scratch/cpu/libmofo.a" -lpthread -ldl -lm -o "$scratch/cpu_alone"
    "$scratch/cpu_alone"
    not grep -q cudarc "$scratch/cpu/LICENSE-THIRD-PARTY"
    grep -q cudarc "$vendored/LICENSE-THIRD-PARTY"
    [ "$(stat -c %s "$scratch/cpu/libmofo.a")" -lt "$(stat -c %s "$vendored/libmofo.a")" ]
}

try "make vendor, used as its README says" as_the_readme_says
try "make vendor CUDA=0" without_cuda
