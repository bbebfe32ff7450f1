/*
 * What one uncontended launch costs: rounds of launches of a very short kernel, the quickest round counts. Run against
 * the driver in its null mode (SAIR_SIMGPU_NULL=1), with and without the hook; the difference is the hook's.
 *
 *   sair-overhead [launches=N] [rounds=R] [graph]
 *
 * Prints {"ns_per_launch": fastest round, "median_ns": ...}. With rounds=1 it is what callgrind counts instructions of.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../src/cuda_abi.h"

extern CUresult cuInit(unsigned flags);
extern CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device);
extern CUresult cuCtxSetCurrent(CUcontext context);
extern CUresult cuModuleLoadData(CUmodule *module, const void *image);
extern CUresult cuModuleGetFunction(CUfunction *f, CUmodule module, const char *name);
extern CUresult cuStreamCreate(CUstream *stream, unsigned flags);
extern CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                               CUstream, void **, void **);

static double now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    long launches = 200000, rounds = 15;
    for (int i = 1; i < argc; i++) {
        if (sscanf(argv[i], "launches=%ld", &launches) == 1) continue;
        if (sscanf(argv[i], "rounds=%ld", &rounds) == 1) continue;
        return 2;
    }
    if (rounds < 1 || rounds > 1000 || launches < 1) return 2;
    CUcontext context;
    CUmodule module;
    CUfunction f;
    CUstream stream;
    /* 5 ns of device time a launch: far below any rate, so that nothing is ever throttled. */
    if (cuInit(0) || cuDevicePrimaryCtxRetain(&context, 0) || cuCtxSetCurrent(context) ||
        cuModuleLoadData(&module, "\177ELF simulated") || cuModuleGetFunction(&f, module, "spin_ns_5") ||
        cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING)) {
        fprintf(stderr, "the driver refused to start\n");
        return 1;
    }
    double taken[1000];
    for (long r = 0; r < rounds; r++) {
        double from = now_ns();
        for (long i = 0; i < launches; i++)
            if (cuLaunchKernel(f, 132, 1, 1, 128, 1, 1, 0, stream, NULL, NULL)) return 1;
        taken[r] = (now_ns() - from) / (double)launches;
    }
    qsort(taken, (size_t)rounds, sizeof *taken, ascending);
    printf("{\"ns_per_launch\": %.2f, \"median_ns\": %.2f}\n", taken[0], taken[rounds / 2]);
    return 0;
}
