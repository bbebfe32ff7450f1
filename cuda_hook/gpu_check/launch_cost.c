/*
 * What a launch and an event cost on this GPU. Loads the PTX given as a file; builds with any C compiler, no toolkit.
 *
 *   launch-cost PTX [events_every=N]
 *
 * Prints {"ns_per_launch": ...}: the fastest of many rounds of 512 launches of an empty-as-can-be kernel.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FIND(name) (*(void **)&name = dlsym(library, #name))

static int (*cuInit)(unsigned);
static int (*cuDevicePrimaryCtxRetain)(void **, int);
static int (*cuCtxSetCurrent)(void *);
static int (*cuModuleLoadData)(void **, const void *);
static int (*cuModuleGetFunction)(void **, void *, const char *);
static int (*cuStreamCreate)(void **, unsigned);
static int (*cuStreamSynchronize)(void *);
static int (*cuEventCreate)(void **, unsigned);
static int (*cuEventRecord)(void *, void *);
static int (*cuLaunchKernel)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *,
                             void **, void **);

static double now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(int argc, char **argv) {
    static char ptx[1 << 16];
    long every = 0;
    FILE *file = argc > 1 ? fopen(argv[1], "r") : NULL;
    if (file == NULL || fread(ptx, 1, sizeof ptx - 1, file) == 0) return 2;
    fclose(file);
    if (argc > 2 && sscanf(argv[2], "events_every=%ld", &every) != 1) return 2;
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == NULL) {
        fprintf(stderr, "no CUDA driver: %s\n", dlerror());
        return 1;
    }
    FIND(cuInit), FIND(cuDevicePrimaryCtxRetain), FIND(cuCtxSetCurrent), FIND(cuModuleLoadData),
        FIND(cuModuleGetFunction);
    FIND(cuStreamCreate), FIND(cuStreamSynchronize), FIND(cuEventCreate), FIND(cuEventRecord), FIND(cuLaunchKernel);
    void *context, *module, *function, *stream, *events[16];
    if (cuInit(0) || cuDevicePrimaryCtxRetain(&context, 0) || cuCtxSetCurrent(context) ||
        cuModuleLoadData(&module, ptx) || cuModuleGetFunction(&function, module, "spin_arg") ||
        cuStreamCreate(&stream, 1)) {
        fprintf(stderr, "the CUDA driver refused to start or to compile the kernel\n");
        return 1;
    }
    for (int i = 0; i < 16; i++)
        if (cuEventCreate(&events[i], 0)) return 1;
    unsigned long long ns = 0, stamps = 0;
    void *parameters[] = {&ns, &stamps};
    double fastest = 1e18;
    long launched = 0;
    for (int round = 0; round < 300; round++) {
        double from = now_ns();
        for (int i = 0; i < 512; i++, launched++) {
            if (cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, parameters, NULL)) return 1;
            if (every > 0 && launched % every == 0 &&
                (cuEventRecord(events[launched / every % 16], stream) ||
                 cuEventRecord(events[(launched / every + 8) % 16], stream)))
                return 1;
        }
        double took = (now_ns() - from) / 512;
        if (took < fastest) fastest = took;
        if (cuStreamSynchronize(stream)) return 1;
    }
    printf("{\"ns_per_launch\": %.1f}\n", fastest);
    return 0;
}
