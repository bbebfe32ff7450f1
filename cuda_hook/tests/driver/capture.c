/* Stream capture, with the legality rules of the real driver: what is refused, what invalidates, and for which thread.
 */
#include "driver.h"

#include <stdlib.h>

enum { ILLEGAL_STATE = 401 };

struct sim_capture {
    uint64_t id;
    CUgraph graph;
    CUstream origin;
    CUstreamCaptureMode mode;
    pthread_t thread;
    bool invalidated, ended;
    struct sim_capture *next;
};

/* Captures are kept for the life of the process: events go on naming the one they were recorded in. */
static struct sim_capture *captures;
static unsigned active;
static uint64_t next_id = 1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

CUresult sim_unsafe(void) {
    if (__atomic_load_n(&active, __ATOMIC_ACQUIRE) == 0 || thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_SUCCESS;
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&lock);
    for (struct sim_capture *c = captures; c != NULL; c = c->next) {
        if (c->ended || c->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
        bool own = pthread_equal(c->thread, pthread_self()) != 0;
        bool foreign = thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL && c->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (!own && !foreign) continue;
        c->invalidated = true;
        result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

/* A blocking stream of the context that captures; the legacy stream would have to wait for it. */
static struct sim_capture *implied(CUcontext context) {
    if (__atomic_load_n(&active, __ATOMIC_ACQUIRE) == 0) return NULL;
    for (CUstream s = context->streams; s != NULL; s = s->next)
        if (s->capture != NULL && (s->flags & CU_STREAM_NON_BLOCKING) == 0) return s->capture;
    return NULL;
}

CUresult sim_capture_check(CUstream stream, bool *captured) {
    *captured = stream->capture != NULL;
    if (stream->capture != NULL)
        return stream->capture->invalidated ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
    if (stream == stream->context->legacy) {
        struct sim_capture *capture = implied(stream->context);
        if (capture != NULL) {
            capture->invalidated = true;
            return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
    }
    return CUDA_SUCCESS;
}

CUresult sim_capture_refuse(CUstream stream) {
    if (stream->capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    stream->capture->invalidated = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

CUgraphNode sim_capture_add(CUstream stream, enum sim_node_kind kind) {
    CUgraphNode node = sim_graph_add(stream->capture->graph, kind);
    if (stream->last != NULL) stream->last->followed = true;
    stream->last = node;
    return node;
}

CUresult sim_capture_record(CUevent event, CUstream stream) {
    event->capture = stream->capture;
    event->node = stream->last;
    return CUDA_SUCCESS;
}

CUresult sim_capture_wait(CUstream stream, CUevent event) {
    struct sim_capture *from = event->capture;
    if (stream->capture != NULL && stream->capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (from == NULL) { /* a wait for work outside the capture cannot be put into the graph */
        stream->capture->invalidated = true;
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (from->ended) return CUDA_ERROR_CAPTURED_EVENT;
    if (stream->capture == NULL) {
        if (stream == stream->context->legacy) {
            from->invalidated = true;
            return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
        stream->capture = from;
        stream->last = event->node;
        return CUDA_SUCCESS;
    }
    if (stream->capture != from) {
        stream->capture->invalidated = from->invalidated = true;
        return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    if (event->node != NULL && event->node != stream->last) event->node->followed = true;
    if (stream->last == NULL) stream->last = event->node;
    return CUDA_SUCCESS;
}

static void end(struct sim_capture *capture) {
    for (CUstream s = capture->origin->context->streams; s != NULL; s = s->next) {
        if (s->capture != capture) continue;
        s->capture = NULL;
        s->last = NULL;
    }
    capture->ended = true;
    __atomic_sub_fetch(&active, 1, __ATOMIC_RELEASE);
}

void sim_capture_forget(CUstream stream) {
    if (stream->capture == NULL) return;
    if (stream->capture->origin == stream)
        end(stream->capture);
    else
        stream->capture->invalidated = true;
}

static CUresult begin(CUstream stream, bool per_thread, CUstreamCaptureMode mode, CUgraph graph) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    stream = sim_stream(stream, per_thread);
    if (stream == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    if (stream == stream->context->legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture != NULL) return ILLEGAL_STATE;
    struct sim_capture *capture = calloc(1, sizeof *capture);
    if (capture == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    capture->graph = graph != NULL ? graph : calloc(1, sizeof *capture->graph);
    capture->origin = stream;
    capture->mode = mode;
    capture->thread = pthread_self();
    pthread_mutex_lock(&lock);
    capture->id = next_id++;
    capture->next = captures;
    captures = capture;
    __atomic_add_fetch(&active, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&lock);
    stream->capture = capture;
    stream->last = NULL;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuStreamBeginCapture(CUstream stream) {
    return begin(stream, false, CU_STREAM_CAPTURE_MODE_GLOBAL, NULL);
}
SIM_EXPORT CUresult cuStreamBeginCapture_ptsz(CUstream stream) {
    return begin(stream, true, CU_STREAM_CAPTURE_MODE_GLOBAL, NULL);
}
SIM_EXPORT CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
    return begin(stream, false, mode, NULL);
}
SIM_EXPORT CUresult cuStreamBeginCapture_v2_ptsz(CUstream stream, CUstreamCaptureMode mode) {
    return begin(stream, true, mode, NULL);
}
SIM_EXPORT CUresult cuStreamBeginCaptureToGraph(CUstream stream, CUgraph graph, const CUgraphNode *dependencies,
                                                const void *edges, size_t count, CUstreamCaptureMode mode) {
    (void)dependencies, (void)edges, (void)count;
    return graph == NULL ? CUDA_ERROR_INVALID_VALUE : begin(stream, false, mode, graph);
}
SIM_EXPORT CUresult cuStreamBeginCaptureToGraph_ptsz(CUstream stream, CUgraph graph, const CUgraphNode *dependencies,
                                                     const void *edges, size_t count, CUstreamCaptureMode mode) {
    (void)dependencies, (void)edges, (void)count;
    return graph == NULL ? CUDA_ERROR_INVALID_VALUE : begin(stream, true, mode, graph);
}

/* The graph is captured anew, node for node; here as if it had been empty. */
static CUresult recapture(CUstream stream, CUstreamCaptureMode mode, CUgraph graph, bool per_thread) {
    if (graph == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUresult result = begin(stream, per_thread, mode, graph);
    if (result == CUDA_SUCCESS) graph->count = 0;
    return result;
}
SIM_EXPORT CUresult cuStreamBeginRecaptureToGraph(CUstream stream, CUstreamCaptureMode mode, CUgraph graph,
                                                  void *callback, void *user_data) {
    (void)callback, (void)user_data;
    return recapture(stream, mode, graph, false);
}
SIM_EXPORT CUresult cuStreamBeginRecaptureToGraph_ptsz(CUstream stream, CUstreamCaptureMode mode, CUgraph graph,
                                                       void *callback, void *user_data) {
    (void)callback, (void)user_data;
    return recapture(stream, mode, graph, true);
}

static bool is_joined(const struct sim_capture *capture) {
    for (CUstream s = capture->origin->context->streams; s != NULL; s = s->next) {
        if (s->capture != capture || s == capture->origin || s->last == NULL) continue;
        if (!s->last->followed && s->last != capture->origin->last) return false;
    }
    return true;
}

static CUresult finish(CUstream stream, CUgraph *graph, bool per_thread) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    stream = sim_stream(stream, per_thread);
    if (stream == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    struct sim_capture *capture = stream->capture;
    if (capture == NULL) return ILLEGAL_STATE;
    if (graph != NULL) *graph = NULL;
    if (capture->origin != stream) {
        capture->invalidated = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    }
    if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && !pthread_equal(capture->thread, pthread_self()))
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    CUresult result = CUDA_SUCCESS;
    if (capture->invalidated)
        result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    else if (!is_joined(capture))
        result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    end(capture);
    if (result == CUDA_SUCCESS && graph != NULL) *graph = capture->graph;
    return result;
}
SIM_EXPORT CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) { return finish(stream, graph, false); }
SIM_EXPORT CUresult cuStreamEndCapture_ptsz(CUstream stream, CUgraph *graph) { return finish(stream, graph, true); }

static CUresult status_of(CUstream stream, CUstreamCaptureStatus *status, unsigned long long *id, CUgraph *graph,
                          bool per_thread) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    stream = sim_stream(stream, per_thread);
    if (stream == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    /* Asked of the legacy stream beside a capture: refused, but the capture lives on. */
    if (stream == stream->context->legacy && implied(stream->context) != NULL)
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    const struct sim_capture *c = stream->capture;
    *status = c == NULL         ? CU_STREAM_CAPTURE_STATUS_NONE
              : c->invalidated ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                               : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    if (id != NULL && c != NULL) *id = c->id;
    if (graph != NULL) *graph = c == NULL ? NULL : c->graph;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    return status_of(stream, status, NULL, NULL, false);
}
SIM_EXPORT CUresult cuStreamIsCapturing_ptsz(CUstream stream, CUstreamCaptureStatus *status) {
    return status_of(stream, status, NULL, NULL, true);
}
SIM_EXPORT CUresult cuStreamGetCaptureInfo(CUstream stream, CUstreamCaptureStatus *status, unsigned long long *id) {
    return status_of(stream, status, id, NULL, false);
}
SIM_EXPORT CUresult cuStreamGetCaptureInfo_ptsz(CUstream stream, CUstreamCaptureStatus *status,
                                                unsigned long long *id) {
    return status_of(stream, status, id, NULL, true);
}
SIM_EXPORT CUresult cuStreamGetCaptureInfo_v2(CUstream stream, CUstreamCaptureStatus *status, unsigned long long *id,
                                              CUgraph *graph, const CUgraphNode **dependencies, size_t *count) {
    CUresult result = status_of(stream, status, id, graph, false);
    if (result == CUDA_SUCCESS && dependencies != NULL) *dependencies = NULL;
    if (result == CUDA_SUCCESS && count != NULL) *count = 0;
    return result;
}
SIM_EXPORT CUresult cuStreamGetCaptureInfo_v2_ptsz(CUstream stream, CUstreamCaptureStatus *status,
                                                   unsigned long long *id, CUgraph *graph,
                                                   const CUgraphNode **dependencies, size_t *count) {
    CUresult result = status_of(stream, status, id, graph, true);
    if (result == CUDA_SUCCESS && dependencies != NULL) *dependencies = NULL;
    if (result == CUDA_SUCCESS && count != NULL) *count = 0;
    return result;
}

SIM_EXPORT CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    if (mode == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUstreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}
