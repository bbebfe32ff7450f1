#!/bin/sh
# Instructions that one uncontended launch executes: in the driver's null mode alone, with the hook passing through,
# at rate 1, and limited. The difference to the first line is the hook's.
set -eu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
printf 1 >"$scratch/whole"
printf 0.5 >"$scratch/half"
export SAIR_SIMGPU_PATH="$scratch/gpu" SAIR_SIMGPU_NULL=1 LD_LIBRARY_PATH="$BUILD/driver"
launches=20000
count() { # label, then the environment of the run
    label=$1
    shift
    for n in 0 1; do
        total=$((launches + n * launches))
        env "$@" valgrind --tool=callgrind --callgrind-out-file="$scratch/out.$n" "$BUILD/driver/sair-overhead" \
            launches=$total rounds=1 >/dev/null 2>"$scratch/log"
    done
    first=$(awk '/^summary:|^totals:/{print $2; exit}' "$scratch/out.0")
    second=$(awk '/^summary:|^totals:/{print $2; exit}' "$scratch/out.1")
    echo "$label $(((second - first) / launches)) instructions"
}
hook="LD_PRELOAD=$BUILD/libsair_cuda.so"
count "driver alone" SAIR_NONE=1
count "pass-through" "$hook"
count "rate 1      " "$hook" SAIR_GRANT_FILE="$scratch/whole" SAIR_STATS_PATH="$scratch/page1"
count "limited     " "$hook" SAIR_GRANT_FILE="$scratch/half" SAIR_STATS_PATH="$scratch/page2"
