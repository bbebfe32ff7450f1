#!/bin/sh
# Run the load generator for a moment in several shapes with the instrumented hook preloaded behind its runtime.
# BUILD: where the instrumented hook is; DRIVER: the simulated driver; RUNTIME: the sanitizer's library; and the
# sanitizers' options.
set -eu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
printf 0.5 >"$scratch/granted"
export SAIR_GRANT_FILE="$scratch/granted" SAIR_STATS_PATH="$scratch/stats" SAIR_SIMGPU_PATH="$scratch/gpu"
export SAIR_GPU_MEMORY_MIB=1024 LD_LIBRARY_PATH="$DRIVER"
for load in 'kernel:20:132' 'kernel:200:132:sync' 'mix:20:132' 'graph:1000:8192:nodes=10' 'ptsz:100:132' \
    'cooperative:1000:132'; do
    for threads in 1 4; do
        # Threads that capture in global mode forbid each other to synchronise.
        case $load$threads in graph*4) continue ;; esac
        LD_PRELOAD="$RUNTIME $BUILD/libsair_cuda.so" \
            "$DRIVER/sair-load" "$load" seconds=0.5 threads=$threads resolve=dlsym
    done
done
