/* Stream capture, waiting for the device, and the life of streams and contexts. */
#include "limiter.h"
#include "memory.h"

static int is_limiting(void) {
    return sair_mode() == SAIR_MODE_LIMIT;
}

static CUresult began(CUresult result, CUstream stream, int per_thread) {
    if (result != CUDA_SUCCESS) sair_capture_ends(stream, per_thread);
    return result;
}

/* Counted before the driver is asked: no event may follow the begin of a capture. */
static void begin(CUstream stream, int per_thread) {
    if (is_limiting()) sair_streams_close_batches();
    sair_capture_begins(stream, per_thread);
}

static CUresult ended(CUresult result, CUstream stream, int per_thread) {
    /* A refusal for being on the wrong thread leaves the capture going; any other end is an end. */
    if (result != CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD) sair_capture_ends(stream, per_thread);
    return result;
}

#define BEGIN_HOOK(symbol, params, args, per_thread)                                                                   \
    CUresult symbol params {                                                                                           \
        CUresult(*real) params = SAIR_REAL(symbol);                                                                    \
        begin(stream, per_thread);                                                                                     \
        return began(real args, stream, per_thread);                                                                   \
    }

BEGIN_HOOK(cuStreamBeginCapture, (CUstream stream), (stream), 0)
BEGIN_HOOK(cuStreamBeginCapture_ptsz, (CUstream stream), (stream), 1)
BEGIN_HOOK(cuStreamBeginCapture_v2, (CUstream stream, CUstreamCaptureMode mode), (stream, mode), 0)
BEGIN_HOOK(cuStreamBeginCapture_v2_ptsz, (CUstream stream, CUstreamCaptureMode mode), (stream, mode), 1)
BEGIN_HOOK(cuStreamBeginCaptureToGraph, SAIR_CAPTURE_TO_GRAPH_PARAMS, (stream, graph, dependencies, edges, count, mode),
           0)
BEGIN_HOOK(cuStreamBeginCaptureToGraph_ptsz, SAIR_CAPTURE_TO_GRAPH_PARAMS,
           (stream, graph, dependencies, edges, count, mode), 1)

BEGIN_HOOK(cuStreamBeginRecaptureToGraph, SAIR_RECAPTURE_PARAMS, (stream, mode, graph, callback, user_data), 0)
BEGIN_HOOK(cuStreamBeginRecaptureToGraph_ptsz, SAIR_RECAPTURE_PARAMS, (stream, mode, graph, callback, user_data), 1)

CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    return ended(SAIR_REAL(cuStreamEndCapture)(stream, graph), stream, 0);
}

CUresult cuStreamEndCapture_ptsz(CUstream stream, CUgraph *graph) {
    return ended(SAIR_REAL(cuStreamEndCapture_ptsz)(stream, graph), stream, 1);
}

/* No batch stays open across a wait: it would hold the time in which the program does something else. */
#define WAIT_HOOK(symbol, params, args)                                                                                \
    CUresult symbol params {                                                                                           \
        CUresult(*real) params = SAIR_REAL(symbol);                                                                    \
        if (!is_limiting()) return real args;                                                                          \
        sair_streams_close_batches();                                                                                  \
        CUresult result = real args;                                                                                   \
        sair_limit_after_wait();                                                                                       \
        return result;                                                                                                 \
    }

WAIT_HOOK(cuStreamSynchronize, (CUstream stream), (stream))
WAIT_HOOK(cuStreamSynchronize_ptsz, (CUstream stream), (stream))
WAIT_HOOK(cuCtxSynchronize, (void), ())
WAIT_HOOK(cuCtxSynchronize_v2, (CUcontext context), (context))
WAIT_HOOK(cuEventSynchronize, (CUevent event), (event))

#define COPY_HOOK(symbol, params, args)                                                                                \
    WAIT_HOOK(symbol, params, args)                                                                                    \
    WAIT_HOOK(symbol##_ptds, params, args)

COPY_HOOK(cuMemcpy, (CUdeviceptr to, CUdeviceptr from, size_t bytes), (to, from, bytes))
COPY_HOOK(cuMemcpyPeer,
          (CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context, size_t bytes),
          (to, to_context, from, from_context, bytes))
COPY_HOOK(cuMemcpyHtoD_v2, (CUdeviceptr to, const void *host, size_t bytes), (to, host, bytes))
COPY_HOOK(cuMemcpyDtoH_v2, (void *host, CUdeviceptr from, size_t bytes), (host, from, bytes))
COPY_HOOK(cuMemcpyDtoD_v2, (CUdeviceptr to, CUdeviceptr from, size_t bytes), (to, from, bytes))
COPY_HOOK(cuMemcpyHtoA_v2, (CUarray to, size_t offset, const void *host, size_t bytes), (to, offset, host, bytes))
COPY_HOOK(cuMemcpyAtoH_v2, (void *host, CUarray from, size_t offset, size_t bytes), (host, from, offset, bytes))
COPY_HOOK(cuMemcpy2D_v2, (const void *copy), (copy))
COPY_HOOK(cuMemcpy2DUnaligned_v2, (const void *copy), (copy))
COPY_HOOK(cuMemcpy3D_v2, (const void *copy), (copy))
COPY_HOOK(cuMemcpy3DPeer, (const void *copy), (copy))

#define QUERY_HOOK(symbol, params, args)                                                                               \
    CUresult symbol params {                                                                                           \
        CUresult(*real) params = SAIR_REAL(symbol);                                                                    \
        if (!is_limiting()) return real args;                                                                          \
        sair_streams_polled();                                                                                         \
        CUresult result = real args;                                                                                   \
        if (result != CUDA_ERROR_NOT_READY) sair_limit_after_wait();                                                   \
        return result;                                                                                                 \
    }

QUERY_HOOK(cuStreamQuery, (CUstream stream), (stream))
QUERY_HOOK(cuStreamQuery_ptsz, (CUstream stream), (stream))
QUERY_HOOK(cuEventQuery, (CUevent event), (event))

#define STREAM_DESTROY_HOOK(symbol)                                                                                    \
    CUresult symbol(CUstream stream) {                                                                                 \
        CUresult (*real)(CUstream) = SAIR_REAL(symbol);                                                                \
        if (sair_mode() != SAIR_MODE_OFF) sair_stream_gone(stream);                                                    \
        sair_capture_ends(stream, 0);                                                                                  \
        return real(stream);                                                                                           \
    }

STREAM_DESTROY_HOOK(cuStreamDestroy)
STREAM_DESTROY_HOOK(cuStreamDestroy_v2)

/* Memory of a context is refunded after the driver freed it, the batches settled before their events die. */
#define CONTEXT_DESTROY_HOOK(symbol)                                                                                   \
    CUresult symbol(CUcontext context) {                                                                               \
        CUresult (*real)(CUcontext) = SAIR_REAL(symbol);                                                               \
        if (sair_mode() != SAIR_MODE_OFF) sair_context_gone(context);                                                  \
        CUresult result = real(context);                                                                               \
        if (result == CUDA_SUCCESS) sair_memory_context_gone(context);                                                 \
        return result;                                                                                                 \
    }

CONTEXT_DESTROY_HOOK(cuCtxDestroy)
CONTEXT_DESTROY_HOOK(cuCtxDestroy_v2)

/* Of CUDA 2 to 10: a context that was never attached has one user, and dies when that one detaches. */
static uint32_t attached;

CUresult cuCtxAttach(CUcontext *context, unsigned flags) {
    CUresult result = SAIR_REAL(cuCtxAttach)(context, flags);
    if (result == CUDA_SUCCESS) SAIR_ADD(&attached, 1u);
    return result;
}

CUresult cuCtxDetach(CUcontext context) {
    CUresult (*real)(CUcontext) = SAIR_REAL(cuCtxDetach);
    uint32_t left = SAIR_LOAD(&attached);
    while (left > 0 && !SAIR_CAS(&attached, &left, left - 1)) {
    }
    if (left > 0) return real(context);
    if (sair_mode() != SAIR_MODE_OFF) sair_context_gone(context);
    CUresult result = real(context);
    if (result == CUDA_SUCCESS) sair_memory_context_gone(context);
    return result;
}

/* The primary context of a device is reference-counted by the driver; retains are counted here too, because only the
 * last release destroys it. */
#define PRIMARY_DEVICES 64
static struct {
    CUcontext context;
    uint32_t retains;
} primaries[PRIMARY_DEVICES];

int sair_context_primary_device(CUcontext context) {
    for (int i = 0; i < PRIMARY_DEVICES; i++)
        if (SAIR_LOAD(&primaries[i].context) == context) return i;
    return -1;
}

static int is_tracked(CUdevice device) {
    return device >= 0 && device < PRIMARY_DEVICES;
}

#define PRIMARY_RELEASE_HOOK(symbol)                                                                                   \
    CUresult symbol(CUdevice device) {                                                                                 \
        CUresult (*real)(CUdevice) = SAIR_REAL(symbol);                                                                \
        int is_last = is_tracked(device) && SAIR_LOAD(&primaries[device].retains) == 1;                                \
        CUcontext context = is_last ? SAIR_LOAD(&primaries[device].context) : NULL;                                    \
        if (is_last && context != NULL && sair_mode() != SAIR_MODE_OFF) sair_context_gone(context);                    \
        CUresult result = real(device);                                                                                \
        if (result == CUDA_SUCCESS && is_tracked(device) && SAIR_LOAD(&primaries[device].retains) > 0)                 \
            SAIR_SUB(&primaries[device].retains, 1u);                                                                  \
        if (result == CUDA_SUCCESS && is_last && context != NULL) sair_memory_context_gone(context);                   \
        return result;                                                                                                 \
    }

PRIMARY_RELEASE_HOOK(cuDevicePrimaryCtxRelease)
PRIMARY_RELEASE_HOOK(cuDevicePrimaryCtxRelease_v2)

#define PRIMARY_RESET_HOOK(symbol)                                                                                     \
    CUresult symbol(CUdevice device) {                                                                                 \
        CUresult (*real)(CUdevice) = SAIR_REAL(symbol);                                                                \
        CUcontext context = is_tracked(device) ? SAIR_LOAD(&primaries[device].context) : NULL;                         \
        if (context != NULL && sair_mode() != SAIR_MODE_OFF) sair_context_gone(context);                               \
        CUresult result = real(device);                                                                                \
        if (result == CUDA_SUCCESS && context != NULL) sair_memory_context_gone(context);                              \
        return result;                                                                                                 \
    }

PRIMARY_RESET_HOOK(cuDevicePrimaryCtxReset)
PRIMARY_RESET_HOOK(cuDevicePrimaryCtxReset_v2)

static CUresult created(CUresult result, CUcontext *context) {
    if (result == CUDA_SUCCESS && context != NULL) sair_context_born(*context);
    return result;
}

CUresult cuCtxCreate(CUcontext *context, unsigned flags, CUdevice device) {
    return created(SAIR_REAL(cuCtxCreate)(context, flags, device), context);
}

CUresult cuCtxCreate_v2(CUcontext *context, unsigned flags, CUdevice device) {
    return created(SAIR_REAL(cuCtxCreate_v2)(context, flags, device), context);
}

CUresult cuCtxCreate_v3(CUcontext *context, void *affinity, int count, unsigned flags, CUdevice device) {
    return created(SAIR_REAL(cuCtxCreate_v3)(context, affinity, count, flags, device), context);
}

CUresult cuCtxCreate_v4(CUcontext *context, void *params, unsigned flags, CUdevice device) {
    return created(SAIR_REAL(cuCtxCreate_v4)(context, params, flags, device), context);
}

/* The contexts that stand for green ones, which die with them. */
#define GREENS 64
static struct {
    void *green;
    CUcontext context;
} greens[GREENS];

CUresult cuCtxFromGreenCtx(CUcontext *context, void *green) {
    CUresult result = created(SAIR_REAL(cuCtxFromGreenCtx)(context, green), context);
    if (result != CUDA_SUCCESS || context == NULL) return result;
    for (int i = 0; i < GREENS; i++) {
        void *none = NULL;
        if (SAIR_LOAD(&greens[i].green) != green && !SAIR_CAS(&greens[i].green, &none, green)) continue;
        SAIR_STORE(&greens[i].context, *context);
        break;
    }
    return result;
}

CUresult cuGreenCtxDestroy(void *green) {
    CUresult (*real)(void *) = SAIR_REAL(cuGreenCtxDestroy);
    CUcontext context = NULL;
    for (int i = 0; i < GREENS && green != NULL; i++) {
        if (SAIR_LOAD(&greens[i].green) != green) continue;
        context = SAIR_SWAP(&greens[i].context, NULL);
        SAIR_STORE_RELEASE(&greens[i].green, NULL);
    }
    if (context != NULL && sair_mode() != SAIR_MODE_OFF) sair_context_gone(context);
    CUresult result = real(green);
    if (result == CUDA_SUCCESS && context != NULL) sair_memory_context_gone(context);
    return result;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    CUresult result = SAIR_REAL(cuDevicePrimaryCtxRetain)(context, device);
    if (result != CUDA_SUCCESS || !is_tracked(device) || context == NULL) return result;
    if (SAIR_LOAD(&primaries[device].context) != *context) {
        SAIR_STORE(&primaries[device].context, *context);
        sair_context_born(*context);
    }
    SAIR_ADD(&primaries[device].retains, 1u);
    return result;
}
