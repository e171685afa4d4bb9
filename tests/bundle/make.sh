#!/usr/bin/env bash
# Builds a folder with all that a machine with an NVIDIA GPU needs to test and measure the CUDA backend: programs,
# the data that they read, the benchmark, and run.sh, which runs everything. That machine needs neither Rust, nor a
# compiler, nor network, nor this repository; for the benchmark it needs Python with NumPy, SciPy and tabulate and, for
# most of it, PyTorch.
#
#     tests/bundle/make.sh FOLDER
#
# `make gpu-bundle` calls it, with CC, CXX, CARGO, TARGET_DIR and FINETUNE (programs of the demo) set.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$1
limit_mib=60
tests=(equality golden optimizer paths properties reference)
# These need more than a shared library and a device: a wrapped allocator, a path, a machine without a driver.
left_out="c/out_of_memory.c c/dlopen.c c/cuda_absent.c"

rm -rf "$folder"
mkdir -p "$folder"/{bin,programs,lib,tests,benches,bindings/python/src,data}

"$CARGO" build --release
cp "$TARGET_DIR/release/libmofo.so" "$folder/lib/"

# The name and the program of each test, from what cargo says about itself.
messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
"$CARGO" test --no-run --features forced-paths --lib "${tests[@]/#/--test=}" --message-format=json >"$messages"
python3 - "$messages" >"$messages.list" <<'PYTHON'
import json, sys

for line in open(sys.argv[1]):
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"]:
        name = message["target"]["name"]
        print("lib" if "lib" in message["target"]["kind"] else name, message["executable"])
PYTHON
while read -r name program; do cp "$program" "$folder/bin/$name"; done <"$messages.list"
rm "$messages.list"
for name in lib "${tests[@]}"; do test -x "$folder/bin/$name" || { echo "no test program $name" >&2; exit 1; }; done

for source in tests/c/*.c tests/cpp/*.cpp; do
    file=${source#tests/}
    case " $left_out " in *" $file "*) continue ;; esac
    name=$(basename "${file%.*}")
    flags=(-O1 -ffp-contract=off -Iinclude)
    case $file in
    c/*) compiler=$CC; flags+=(-std=c99) ;;
    *) compiler=$CXX; flags+=(-std=c++17); name=cpp_$name ;;
    esac
    case $file in */no_exceptions.cpp) flags+=(-fno-exceptions -fno-rtti) ;; esac
    libraries=(-L"$folder/lib" -lmofo '-Wl,-rpath,$ORIGIN/../lib')
    case $file in */cuda_*) libraries+=(-Lbuild/emulated-cuda -lcuda) ;; esac
    "$compiler" "${flags[@]}" "$source" "${libraries[@]}" -lpthread -ldl -lm -o "$folder/programs/$name"
done

for program in $FINETUNE; do cp "$program" "$folder/bin/"; done
strip "$folder"/bin/* "$folder"/programs/* "$folder"/lib/*

cp -r tests/golden tests/reference "$folder/tests/"
cp examples/data/digits.csv "$folder/data/"
cp -r benches/run.py benches/harness "$folder/benches/"
cp -r bindings/python/src/mofo "$folder/bindings/python/src/"
find "$folder/benches" "$folder/bindings" \( -name __pycache__ -o -name '*.so' \) -prune -exec rm -r {} +
cp tests/bundle/run.sh "$folder/"

glibc=$(objdump -T "$folder"/bin/* "$folder"/programs/* "$folder"/lib/* | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
size=$(du -sm "$folder" | cut -f 1)
echo "$folder: $size MiB, for Linux on $(uname -m) with ${glibc/_/ } or newer"
if [ "$size" -gt $limit_mib ]; then echo "more than $limit_mib MiB" >&2; exit 1; fi
