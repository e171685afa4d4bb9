#!/usr/bin/env bash
# Tests and measures the CUDA backend on this machine's GPU, with what lies in this folder.
#
#     ./run.sh [--quick] [PART...]
#
# Parts: suite, programs, demo, sanitizer, benchmark; all if none is named. --quick runs a part of each, with small
# sizes. A part that fails does not keep the others from running; the table at the end tells, and the exit status is 1 if
# anything failed. Logs and the benchmark's results go to $OUT (./results).
#
#   MOFO_REQUIRE_CUDA=0  without a GPU, exit with 0. Otherwise its lack is a failure.
#   PYTHON               the Python that has NumPy, SciPy, tabulate and PyTorch (python3)
#   TIME_LIMIT           seconds for each program (1200)
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export MOFO_ROOT=$here MOFO_REQUIRE_CUDA=${MOFO_REQUIRE_CUDA:-1}
out=${OUT:-./results}
python=${PYTHON:-python3}
time_limit=${TIME_LIMIT:-1200}
quick=0
parts=()
for argument in "$@"; do
    case $argument in
    --quick) quick=1 ;;
    suite | programs | demo | sanitizer | benchmark) parts+=("$argument") ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
    esac
done
[ ${#parts[@]} -gt 0 ] || parts=(suite programs demo sanitizer benchmark)
mkdir -p "$out"
out=$(cd "$out" && pwd)
# Whatever a program writes beside itself, it writes there.
cd "$out"
rm -f ./*.log
: >"$out/table"
any_failed=0

wanted() { case " ${parts[*]} " in *" $1 "*) ;; *) return 1 ;; esac; }

# A line of the table: part, passed, failed, skipped, seconds, remark.
row() {
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$@" >>"$out/table"
    [ "$3" = 0 ] || any_failed=1
}

skip() {
    echo "skipped: $1: $2"
    row "$1" 0 0 1 0 "$2"
}

# Runs a program into a log, and counts what the log says: by the lines of Rust's tests, by those of the C programs, or,
# if it has neither, by the exit status.
run() {
    local name=$1 log=$out/$1.log start=$SECONDS status passed failed skipped remark=""
    shift
    printf '%s ... ' "$name"
    timeout -k 10 "$time_limit" "$@" >"$log" 2>&1
    status=$?
    read -r passed failed skipped < <(awk '
        /^test result:/ { passed += $4; failed += $6; skipped += $8; counted = 1 }
        /^skipped: / { skipped++ }
        END { if (counted) print passed + 0, failed + 0, skipped + 0; else print -1, 0, skipped + 0 }' "$log")
    if [ "$passed" -lt 0 ]; then
        passed=0
        if [ $status -eq 0 ]; then passed=1; else failed=1; fi
    fi
    if [ $status -eq 124 ] || [ $status -eq 137 ]; then remark="longer than $time_limit s"; fi
    if [ $status -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1; fi
    if [ $status -ne 0 ] && [ -z "$remark" ]; then remark="exit status $status, see $name.log"; fi
    echo "$passed passed, $failed failed, $skipped skipped, $((SECONDS - start)) s"
    row "$name" "$passed" "$failed" "$skipped" $((SECONDS - start)) "$remark"
    return $status
}

result() {
    echo
    awk -F '\t' 'BEGIN { printf "%-32s %7s %7s %8s %8s\n", "part", "passed", "failed", "skipped", "seconds" }
        { printf "%-32s %7d %7d %8d %8d  %s\n", $1, $2, $3, $4, $5, $6; p += $2; f += $3; s += $4; t += $5 }
        END { printf "%-32s %7d %7d %8d %8d\n", "all", p, f, s, t }' "$out/table"
    exit $any_failed
}

# Without its driver the first program does not start; without a GPU it says so.
"$here/bin/finetune-cuda" --smoke --data "$here/data/digits.csv" >device.log 2>&1
if grep -q -e 'libcuda.so.1: cannot open' -e '^skipped: no CUDA device' device.log; then
    if [ "$MOFO_REQUIRE_CUDA" = 1 ]; then row device 0 1 0 0 "no CUDA device"; else skip device "no CUDA device"; fi
    result
fi
if command -v nvidia-smi >/dev/null; then timeout 60 nvidia-smi >nvidia-smi.log 2>&1; fi

# Of these tests, some in each program run on the device; --quick takes those that do so soon.
suite() {
    local only=()
    if [ $quick = 1 ]; then
        case $1 in
        equality) only=(a_hundred_steps) ;;
        paths) only=(on_cuda) ;;
        reference) only=(cuda norms) ;;
        golden) only=(ten_percent) ;;
        esac
    fi
    run "$1" "$here/bin/$1" "${only[@]}"
}

if wanted suite; then for name in lib reference golden equality paths optimizer properties; do suite $name; done; fi

if wanted programs; then
    if [ $quick = 1 ]; then export MOFO_TEST_QUICK=1; fi
    for program in "$here"/programs/*; do
        name=$(basename "$program")
        run "$name" "$program"
    done
    unset MOFO_TEST_QUICK
fi

# The last column of the demo's table is a time.
without_times() { awk '/^(AdamW|MoFO|gradient|update|random) /{ $NF = "" } { print }' "$1"; }
same_demo() {
    local options=(--smoke --data "$here/data/digits.csv")
    "$here/bin/finetune" "${options[@]}" >cpu.txt && "$here/bin/finetune-cuda" "${options[@]}" >cuda.txt || return 1
    diff <(without_times cpu.txt) <(without_times cuda.txt)
}
if wanted demo; then
    export -f same_demo without_times
    export here
    run demo bash -c same_demo
fi

# Few steps, but on all ways of them: the demo has small blocks, the test large ones and estimates that are wrong.
if wanted sanitizer; then
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
    if [ -z "$sanitizer" ]; then
        skip sanitizer "there is no compute-sanitizer"
    else
        for tool in memcheck racecheck initcheck synccheck; do
            check=("$sanitizer" --tool "$tool" --error-exitcode 9)
            run "$tool-demo" "${check[@]}" "$here/bin/finetune-cuda" --smoke --data "$here/data/digits.csv"
            run "$tool-paths" "${check[@]}" "$here/bin/paths" --test-threads 1 on_cuda
        done
    fi
fi

if wanted benchmark; then
    benchmark=("$python" -B "$here/benches/run.py" cuda --library "$here/lib/libmofo.so" --json benchmark.json)
    [ $quick = 0 ] || benchmark+=(--quick)
    if ! "$python" -c 'import numpy, scipy, tabulate' 2>/dev/null; then
        skip benchmark "$python lacks NumPy, SciPy or tabulate"
    elif "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        run benchmark "${benchmark[@]}"
    else
        skip "benchmark with PyTorch" "$python has no PyTorch with CUDA"
        run benchmark "${benchmark[@]}" --parts host
    fi
    sed -n '/^processor: /,$p' benchmark.log 2>/dev/null
fi
result
