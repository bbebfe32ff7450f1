/* Launching kernels and host functions, each in both default-stream twins. */
#include "driver.h"

#include <stdlib.h>
#include <unistd.h>

static CUresult launch(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                       CUstream stream, void **params, void **extra, bool per_thread, bool cooperative) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    struct sim_work work;
    CUresult result = sim_work_of(f, gx, gy, gz, bx * by * bz, params, extra, &work);
    if (result != CUDA_SUCCESS) return result;
    if (cooperative && (uint64_t)gx * gy * gz > SIMGPU_BLOCK_SLOTS) return SIM_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    stream = sim_stream(stream, per_thread);
    if (stream == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    if (sim_null_mode) {
        sim_null_ns += work.ns;
        return CUDA_SUCCESS;
    }
    bool captured;
    result = sim_capture_check(stream, &captured);
    if (result != CUDA_SUCCESS) return result;
    if (captured) {
        CUgraphNode node = sim_capture_add(stream, SIM_NODE_KERNEL);
        node->work = work;
        node->function = f;
        return CUDA_SUCCESS;
    }
    struct simgpu_op op = {.kind = SIMGPU_KERNEL, .remaining_ns = work.ns, .blocks = work.blocks};
    simgpu_submit(stream->slot, &op);
    return CUDA_SUCCESS;
}

#define LAUNCH_PARAMS                                                                                                  \
    CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,       \
        CUstream stream, void **params
SIM_EXPORT CUresult cuLaunchKernel(LAUNCH_PARAMS, void **extra) {
    (void)shared;
    return launch(f, gx, gy, gz, bx, by, bz, stream, params, extra, false, false);
}
SIM_EXPORT CUresult cuLaunchKernel_ptsz(LAUNCH_PARAMS, void **extra) {
    (void)shared;
    return launch(f, gx, gy, gz, bx, by, bz, stream, params, extra, true, false);
}
SIM_EXPORT CUresult cuLaunchCooperativeKernel(LAUNCH_PARAMS) {
    (void)shared;
    return launch(f, gx, gy, gz, bx, by, bz, stream, params, NULL, false, true);
}
SIM_EXPORT CUresult cuLaunchCooperativeKernel_ptsz(LAUNCH_PARAMS) {
    (void)shared;
    return launch(f, gx, gy, gz, bx, by, bz, stream, params, NULL, true, true);
}

static CUresult launch_configured(const CUlaunchConfig *c, CUfunction f, void **params, void **extra, bool per_thread) {
    if (c == NULL) return CUDA_ERROR_INVALID_VALUE;
    bool cooperative = false;
    for (unsigned i = 0; i < c->numAttrs; i++)
        if (c->attrs[i].id == 2) cooperative = c->attrs[i].value.cooperative != 0; /* CU_LAUNCH_ATTRIBUTE_COOPERATIVE */
    return launch(f, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ, c->hStream,
                  params, extra, per_thread, cooperative);
}
SIM_EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction f, void **params, void **extra) {
    return launch_configured(config, f, params, extra, false);
}
SIM_EXPORT CUresult cuLaunchKernelEx_ptsz(const CUlaunchConfig *config, CUfunction f, void **params, void **extra) {
    return launch_configured(config, f, params, extra, true);
}

SIM_EXPORT CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *list, unsigned count, unsigned flags) {
    (void)flags;
    if (list == NULL || count == 0) return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < count; i++) {
        const CUDA_LAUNCH_PARAMS *p = &list[i];
        if (p->hStream == NULL || p->hStream == CU_STREAM_LEGACY) return CUDA_ERROR_INVALID_VALUE;
        for (unsigned j = 0; j < i; j++)
            if (sim_stream(list[j].hStream, false)->context->device == sim_stream(p->hStream, false)->context->device)
                return CUDA_ERROR_INVALID_DEVICE;
    }
    for (unsigned i = 0; i < count; i++) {
        const CUDA_LAUNCH_PARAMS *p = &list[i];
        CUresult result = launch(p->function, p->gridDimX, p->gridDimY, p->gridDimZ, p->blockDimX, p->blockDimY,
                                 p->blockDimZ, p->hStream, p->kernelParams, NULL, false, true);
        if (result != CUDA_SUCCESS) return result;
    }
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuLaunch(CUfunction f) { return launch(f, 1, 1, 1, 1, 1, 1, NULL, NULL, NULL, false, false); }
SIM_EXPORT CUresult cuLaunchGrid(CUfunction f, int width, int height) {
    return launch(f, (unsigned)width, (unsigned)height, 1, 1, 1, 1, NULL, NULL, NULL, false, false);
}
SIM_EXPORT CUresult cuLaunchGridAsync(CUfunction f, int width, int height, CUstream stream) {
    return launch(f, (unsigned)width, (unsigned)height, 1, 1, 1, 1, stream, NULL, NULL, false, false);
}

/* ---- host functions: one thread calls them in the order in which they fall due ---- */

struct host_call {
    int stream;
    uint64_t seq;
    CUhostFn function;
    void *user_data;
    struct host_call *next;
};

static struct host_call *calls;
static bool worker_runs;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define HOST_IDLE_NS UINT64_C(5000000)
#define HOST_POLL_NS UINT64_C(100000)

/* One due call taken out of the list, or NULL and when to look again (0 = nothing queued). */
static struct host_call *take_due(uint64_t *look_again_ns) {
    *look_again_ns = 0;
    pthread_mutex_lock(&lock);
    struct host_call **at = &calls;
    while (*at != NULL) {
        struct host_call *call = *at;
        uint64_t earliest = 0;
        int state = simgpu_host_state(call->stream, call->seq, &earliest);
        if (state == 0) {
            if (*look_again_ns == 0 || earliest < *look_again_ns) *look_again_ns = earliest;
            at = &call->next;
            continue;
        }
        *at = call->next;
        if (state < 0) {
            free(call);
            continue;
        }
        pthread_mutex_unlock(&lock);
        return call;
    }
    if (calls == NULL) worker_runs = false;
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void *worker(void *unused) {
    (void)unused;
    for (;;) {
        uint64_t look_again;
        struct host_call *call = take_due(&look_again);
        if (call != NULL) {
            call->function(call->user_data);
            simgpu_host_done(call->stream, call->seq);
            free(call);
            continue;
        }
        if (look_again == 0) return NULL;
        uint64_t now = simgpu_clock_ns(), wait = look_again > now ? look_again - now : 0;
        usleep((useconds_t)((wait < HOST_POLL_NS ? HOST_POLL_NS : wait > HOST_IDLE_NS ? HOST_IDLE_NS : wait) / 1000));
    }
}

void sim_host_queue(CUstream stream, uint64_t seq, CUhostFn function, void *user_data) {
    struct host_call *call = malloc(sizeof *call);
    if (call == NULL) return;
    *call = (struct host_call){stream->slot, seq, function, user_data, NULL};
    pthread_mutex_lock(&lock);
    struct host_call **at = &calls;
    while (*at != NULL) at = &(*at)->next;
    *at = call;
    if (!worker_runs) {
        pthread_t thread;
        worker_runs = pthread_create(&thread, NULL, worker, NULL) == 0;
        if (worker_runs) pthread_detach(thread);
    }
    pthread_mutex_unlock(&lock);
}

CUresult sim_host_call(CUstream stream, CUhostFn function, void *user_data) {
    bool captured;
    CUresult result = sim_capture_check(stream, &captured);
    if (result != CUDA_SUCCESS) return result;
    if (captured) {
        CUgraphNode node = sim_capture_add(stream, SIM_NODE_HOST);
        node->host = function;
        node->user_data = user_data;
        return CUDA_SUCCESS;
    }
    struct simgpu_op op = {.kind = SIMGPU_HOST};
    sim_host_queue(stream, simgpu_submit(stream->slot, &op), function, user_data);
    return CUDA_SUCCESS;
}

static CUresult host_function(CUstream stream, CUhostFn function, void *user_data, bool per_thread) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (function == NULL) return CUDA_ERROR_INVALID_VALUE;
    stream = sim_stream(stream, per_thread);
    return stream == NULL ? CUDA_ERROR_INVALID_CONTEXT : sim_host_call(stream, function, user_data);
}
SIM_EXPORT CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void *user_data) {
    return host_function(stream, function, user_data, false);
}
SIM_EXPORT CUresult cuLaunchHostFunc_ptsz(CUstream stream, CUhostFn function, void *user_data) {
    return host_function(stream, function, user_data, true);
}

struct callback {
    CUstreamCallback function;
    CUstream stream;
    void *user_data;
};

static void run_callback(void *data) {
    struct callback callback = *(struct callback *)data;
    free(data);
    callback.function(callback.stream, CUDA_SUCCESS, callback.user_data);
}

static CUresult add_callback(CUstream stream, CUstreamCallback function, void *user_data, bool per_thread) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    CUstream target = sim_stream(stream, per_thread);
    if (target == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    if (target->capture != NULL) return sim_capture_refuse(target); /* only host functions can be captured */
    struct callback *callback = malloc(sizeof *callback);
    if (callback == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    *callback = (struct callback){function, stream, user_data};
    return sim_host_call(target, run_callback, callback);
}
SIM_EXPORT CUresult cuStreamAddCallback(CUstream stream, CUstreamCallback function, void *user_data, unsigned flags) {
    (void)flags;
    return add_callback(stream, function, user_data, false);
}
SIM_EXPORT CUresult cuStreamAddCallback_ptsz(CUstream stream, CUstreamCallback function, void *user_data,
                                             unsigned flags) {
    (void)flags;
    return add_callback(stream, function, user_data, true);
}
