/*
 * The load generator of the accuracy suite: one process that keeps the device busy in one shape until told to stop.
 *
 *   sair-load SHAPE [seconds=S] [iterations=N] [resolve=link|dlsym|proc] [threads=T] [start_ns=MONOTONIC]
 *
 * SHAPE is kind:kernel:grid[:option...]; see `shapes` below. It prints one line of JSON when it ends: what it launched
 * and how long that took by CLOCK_MONOTONIC.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../../src/cuda_abi.h"

typedef CUresult (*launch_fn)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                              CUstream, void **, void **);
typedef CUresult (*cooperative_fn)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                   CUstream, void **);
typedef CUresult (*stream_fn)(CUstream);

extern CUresult cuInit(unsigned flags);
extern CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device);
extern CUresult cuCtxSetCurrent(CUcontext context);
extern CUresult cuCtxSynchronize(void);
extern CUresult cuModuleLoadData(CUmodule *module, const void *image);
extern CUresult cuModuleGetFunction(CUfunction *f, CUmodule module, const char *name);
extern CUresult cuStreamCreate(CUstream *stream, unsigned flags);
extern CUresult cuStreamSynchronize(CUstream stream);
extern CUresult cuStreamSynchronize_ptsz(CUstream stream);
extern CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode);
extern CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph);
extern CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags);
extern CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream);
extern CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                               CUstream, void **, void **);
extern CUresult cuLaunchKernel_ptsz(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                    CUstream, void **, void **);
extern CUresult cuLaunchCooperativeKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                          unsigned, CUstream, void **);
extern CUresult cuGetProcAddress_v2(const char *name, void **pfn, int version, cuuint64_t flags,
                                    CUdriverProcAddressQueryResult *status);

#define MAX_STREAMS 16

enum kind { KERNEL, PER_THREAD, COOPERATIVE, GRAPH, MIX };

struct shape {
    enum kind kind;
    uint64_t kernel_ns;
    unsigned grid;
    bool sync;           /* wait for each */
    unsigned burst;      /* launches before the wait and the pause */
    uint64_t pause_ns;   /* host time between bursts */
    unsigned nodes;      /* GRAPH: kernels of kernel_ns / nodes each */
    unsigned streams;    /* KERNEL: launched into so many in turn */
};

struct load {
    struct shape shape;
    uint64_t until_ns, iterations;
    CUcontext context;
    CUmodule module;
    launch_fn launch, launch_per_thread;
    cooperative_fn cooperative;
    uint64_t launches, done_iterations, slowest_ns;
    int error;
};

static volatile sig_atomic_t stopped;

static void on_signal(int number) {
    (void)number;
    stopped = 1;
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static void sleep_until(uint64_t ns) {
    struct timespec t = {(time_t)(ns / UINT64_C(1000000000)), (long)(ns % UINT64_C(1000000000))};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR && !stopped) {}
}

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        CUresult check_result = (call);                                                                                \
        if (check_result != CUDA_SUCCESS) {                                                                            \
            fprintf(stderr, "%s: CUDA error %d\n", #call, check_result);                                               \
            return check_result;                                                                                       \
        }                                                                                                              \
    } while (0)

static int function_of(struct load *load, uint64_t ns, CUfunction *f) {
    char name[64];
    snprintf(name, sizeof name, "spin_ns_%llu", (unsigned long long)ns);
    CHECK(cuModuleGetFunction(f, load->module, name));
    return 0;
}

static int make_graph(struct load *load, CUstream stream, CUgraphExec *exec) {
    CUgraph graph;
    CUfunction f;
    if (function_of(load, load->shape.kernel_ns / load->shape.nodes, &f) != 0) return 1;
    CHECK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    for (unsigned i = 0; i < load->shape.nodes; i++)
        CHECK(load->launch(f, load->shape.grid, 1, 1, 128, 1, 1, 0, stream, NULL, NULL));
    CHECK(cuStreamEndCapture(stream, &graph));
    CHECK(cuGraphInstantiateWithFlags(exec, graph, 0));
    return 0;
}

/* Twenty short kernels to one long, on streams in turn. */
static int launch_mix(struct load *load, uint64_t i, CUfunction quick, CUfunction slow, CUstream *streams) {
    CUfunction f = i % 21 == 20 ? slow : quick;
    CHECK(load->launch(f, f == slow ? 4096 : 132, 1, 1, 128, 1, 1, 0, streams[i % 4], NULL, NULL));
    return 0;
}

static int run(struct load *load) {
    const struct shape *s = &load->shape;
    CUfunction f, quick = NULL, slow = NULL;
    CUstream stream, streams[MAX_STREAMS] = {0};
    CUgraphExec exec = NULL;
    CHECK(cuCtxSetCurrent(load->context));
    CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    if (function_of(load, s->kernel_ns, &f) != 0) return 1;
    if (s->kind == MIX) {
        if (function_of(load, 20000, &quick) != 0 || function_of(load, 10000000, &slow) != 0) return 1;
        for (int i = 0; i < 4; i++) CHECK(cuStreamCreate(&streams[i], CU_STREAM_NON_BLOCKING));
    }
    for (unsigned k = 0; s->kind == KERNEL && k < s->streams; k++)
        CHECK(cuStreamCreate(&streams[k], CU_STREAM_NON_BLOCKING));
    if (s->kind == GRAPH && make_graph(load, stream, &exec) != 0) return 1;
    for (uint64_t i = 0; !stopped && i < load->iterations; i++) {
        uint64_t from = now_ns();
        if (from >= load->until_ns) break;
        for (unsigned b = 0; b < s->burst; b++) {
            if (s->kind == KERNEL)
                CHECK(load->launch(f, s->grid, 1, 1, 128, 1, 1, 0, streams[load->launches % s->streams], NULL, NULL));
            if (s->kind == PER_THREAD) CHECK(load->launch_per_thread(f, s->grid, 1, 1, 128, 1, 1, 0, NULL, NULL, NULL));
            if (s->kind == COOPERATIVE) CHECK(load->cooperative(f, s->grid, 1, 1, 128, 1, 1, 0, stream, NULL));
            if (s->kind == GRAPH) CHECK(cuGraphLaunch(exec, stream));
            if (s->kind == MIX && launch_mix(load, load->launches, quick, slow, streams) != 0) return 1;
            load->launches++;
        }
        if (s->sync) {
            if (s->kind == PER_THREAD)
                CHECK(cuStreamSynchronize_ptsz(NULL));
            else if (s->kind == MIX || s->streams > 1)
                CHECK(cuCtxSynchronize());
            else
                CHECK(cuStreamSynchronize(s->kind == KERNEL ? streams[0] : stream));
        }
        load->done_iterations = i + 1;
        uint64_t took = now_ns() - from;
        if (took > load->slowest_ns) load->slowest_ns = took;
        if (s->pause_ns > 0) sleep_until(from + took + s->pause_ns);
    }
    if (!stopped) CHECK(cuCtxSynchronize());
    return 0;
}

static void *thread_main(void *arg) {
    struct load *load = arg;
    load->error = run(load);
    return NULL;
}

static bool option(const char *text, const char *name, const char **value) {
    size_t length = strlen(name);
    if (strncmp(text, name, length) != 0 || text[length] != '=') return false;
    *value = text + length + 1;
    return true;
}

/* kind:kernel_us:grid[:sync][:burst=N][:pause=US][:nodes=N][:streams=K] */
static bool parse_shape(char *text, struct shape *s) {
    static const char *const kinds[] = {"kernel", "ptsz", "cooperative", "graph", "mix"};
    *s = (struct shape){.burst = 1, .nodes = 1, .streams = 1};
    char *save = NULL, *field = strtok_r(text, ":", &save);
    int kind = -1;
    for (int i = 0; field != NULL && i < 5; i++)
        if (strcmp(field, kinds[i]) == 0) kind = i;
    if (kind < 0) return false;
    s->kind = (enum kind)kind;
    if ((field = strtok_r(NULL, ":", &save)) == NULL) return false;
    s->kernel_ns = (uint64_t)(atof(field) * 1000.0 + 0.5);
    if ((field = strtok_r(NULL, ":", &save)) == NULL) return false;
    s->grid = (unsigned)atoi(field);
    while ((field = strtok_r(NULL, ":", &save)) != NULL) {
        const char *value;
        if (strcmp(field, "sync") == 0)
            s->sync = true;
        else if (option(field, "burst", &value))
            s->burst = (unsigned)atoi(value);
        else if (option(field, "pause", &value))
            s->pause_ns = (uint64_t)(atof(value) * 1000.0);
        else if (option(field, "nodes", &value))
            s->nodes = (unsigned)atoi(value);
        else if (option(field, "streams", &value))
            s->streams = (unsigned)atoi(value);
        else
            return false;
    }
    return s->grid > 0 && s->burst > 0 && s->nodes > 0 && s->streams > 0 && s->streams <= MAX_STREAMS;
}

static bool resolve(struct load *load, const char *how) {
    load->launch = cuLaunchKernel;
    load->launch_per_thread = cuLaunchKernel_ptsz;
    load->cooperative = cuLaunchCooperativeKernel;
    void *launch = NULL, *per_thread = NULL, *cooperative = NULL;
    if (strcmp(how, "link") == 0) return true;
    if (strcmp(how, "dlsym") == 0) {
        void *handle = dlopen("libcuda.so.1", RTLD_NOW);
        if (handle == NULL) return false;
        launch = dlsym(handle, "cuLaunchKernel");
        per_thread = dlsym(handle, "cuLaunchKernel_ptsz");
        cooperative = dlsym(handle, "cuLaunchCooperativeKernel");
    } else if (strcmp(how, "proc") == 0) {
        CUdriverProcAddressQueryResult status;
        cuGetProcAddress_v2("cuLaunchKernel", &launch, 12000, CU_GET_PROC_ADDRESS_LEGACY_STREAM, &status);
        cuGetProcAddress_v2("cuLaunchKernel", &per_thread, 12000, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM,
                            &status);
        cuGetProcAddress_v2("cuLaunchCooperativeKernel", &cooperative, 12000, 0, &status);
    }
    if (launch == NULL || per_thread == NULL || cooperative == NULL) return false;
    memcpy(&load->launch, &launch, sizeof launch);
    memcpy(&load->launch_per_thread, &per_thread, sizeof per_thread);
    memcpy(&load->cooperative, &cooperative, sizeof cooperative);
    return true;
}

int main(int argc, char **argv) {
    struct load base = {.iterations = UINT64_MAX, .until_ns = UINT64_MAX};
    const char *how = "link", *value;
    double seconds = 0;
    uint64_t start = 0;
    unsigned threads = 1;
    if (argc < 2 || !parse_shape(argv[1], &base.shape)) {
        fprintf(stderr, "usage: sair-load kind:kernel_us:grid[:sync][:burst=N][:pause=US][:nodes=N] "
                        "[:streams=K] [seconds=S] [iterations=N] [resolve=link|dlsym|proc] [threads=T] [start_ns=N]\n");
        return 2;
    }
    for (int i = 2; i < argc; i++) {
        if (option(argv[i], "seconds", &value))
            seconds = atof(value);
        else if (option(argv[i], "iterations", &value))
            base.iterations = strtoull(value, NULL, 10);
        else if (option(argv[i], "resolve", &value))
            how = value;
        else if (option(argv[i], "threads", &value))
            threads = (unsigned)atoi(value);
        else if (option(argv[i], "start_ns", &value))
            start = strtoull(value, NULL, 10);
        else
            return 2;
    }
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    CHECK(cuInit(0));
    CHECK(cuDevicePrimaryCtxRetain(&base.context, 0));
    CHECK(cuCtxSetCurrent(base.context));
    CHECK(cuModuleLoadData(&base.module, "\177ELF simulated"));
    if (!resolve(&base, how)) {
        fprintf(stderr, "cannot resolve the driver by %s\n", how);
        return 1;
    }
    if (start > now_ns()) sleep_until(start);
    uint64_t from = now_ns();
    if (seconds > 0) base.until_ns = from + (uint64_t)(seconds * 1e9);
    struct load loads[64];
    pthread_t workers[64];
    if (threads < 1 || threads > 64) return 2;
    for (unsigned t = 0; t < threads; t++) {
        loads[t] = base;
        if (t > 0 && pthread_create(&workers[t], NULL, thread_main, &loads[t]) != 0) return 1;
    }
    thread_main(&loads[0]);
    uint64_t launches = 0, iterations = 0, slowest = 0;
    int error = 0;
    for (unsigned t = 0; t < threads; t++) {
        if (t > 0) pthread_join(workers[t], NULL);
        launches += loads[t].launches;
        iterations += loads[t].done_iterations;
        if (loads[t].slowest_ns > slowest) slowest = loads[t].slowest_ns;
        error |= loads[t].error;
    }
    uint64_t until = now_ns();
    struct timespec cpu;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    printf("{\"launches\": %llu, \"iterations\": %llu, \"from_ns\": %llu, \"until_ns\": %llu, \"slowest_ns\": %llu, "
           "\"cpu_s\": %.6f}\n",
           (unsigned long long)launches, (unsigned long long)iterations, (unsigned long long)from,
           (unsigned long long)until, (unsigned long long)slowest, (double)cpu.tv_sec + (double)cpu.tv_nsec / 1e9);
    return error;
}
