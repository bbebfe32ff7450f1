/* Streams and events. */
#include "driver.h"

#include <stdlib.h>

#define THREAD_STREAMS 8

struct thread_stream {
    uint64_t context_id;
    CUstream stream;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t next_stream_id = 1;
static _Thread_local struct thread_stream mine[THREAD_STREAMS];
static pthread_key_t thread_exit;
static pthread_once_t thread_exit_once = PTHREAD_ONCE_INIT;

CUstream sim_stream_new(CUcontext context, unsigned flags, int priority, bool legacy) {
    CUstream stream = calloc(1, sizeof *stream);
    if (stream == NULL) return NULL;
    stream->slot = simgpu_stream_open(context->slot, (flags & CU_STREAM_NON_BLOCKING) == 0, legacy);
    if (stream->slot < 0) {
        free(stream);
        return NULL;
    }
    stream->context = context;
    stream->flags = flags;
    stream->priority = priority;
    pthread_mutex_lock(&lock);
    stream->id = next_stream_id++;
    stream->next = context->streams;
    context->streams = stream;
    pthread_mutex_unlock(&lock);
    return stream;
}

static void unlink_stream(CUstream stream) {
    pthread_mutex_lock(&lock);
    for (CUstream *at = &stream->context->streams; *at != NULL; at = &(*at)->next) {
        if (*at != stream) continue;
        *at = stream->next;
        break;
    }
    pthread_mutex_unlock(&lock);
}

void sim_context_streams_free(CUcontext context) {
    while (context->streams != NULL) {
        CUstream stream = context->streams;
        sim_capture_forget(stream);
        unlink_stream(stream);
        free(stream); /* its ring goes with the context */
    }
    context->legacy = NULL;
}

static void on_thread_exit(void *unused) {
    (void)unused;
    for (int i = 0; i < THREAD_STREAMS; i++) mine[i].context_id = 0; /* drained and freed with the context */
}

static void make_key(void) {
    pthread_key_create(&thread_exit, on_thread_exit);
}

static CUstream per_thread_stream(CUcontext context) {
    int unused = -1;
    for (int i = 0; i < THREAD_STREAMS; i++) {
        if (mine[i].context_id == context->id) return mine[i].stream;
        if (mine[i].context_id == 0) unused = i;
    }
    if (unused < 0) unused = (int)(context->id % THREAD_STREAMS);
    pthread_once(&thread_exit_once, make_key);
    pthread_setspecific(thread_exit, mine);
    CUstream stream = sim_stream_new(context, CU_STREAM_DEFAULT, 0, false);
    if (stream != NULL) mine[unused] = (struct thread_stream){context->id, stream};
    return stream;
}

CUstream sim_stream(CUstream stream, bool per_thread) {
    if (stream != NULL && stream != CU_STREAM_LEGACY && stream != CU_STREAM_PER_THREAD) return stream;
    CUcontext context = sim_current();
    if (context == NULL) return NULL;
    if (stream == CU_STREAM_PER_THREAD || (stream == NULL && per_thread)) return per_thread_stream(context);
    return context->legacy;
}

SIM_EXPORT CUresult cuStreamCreateWithPriority(CUstream *out, unsigned flags, int priority) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    CUcontext context = sim_current();
    if (context == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    if (out == NULL || flags > CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
    *out = sim_stream_new(context, flags, priority, false);
    return *out == NULL ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuStreamCreate(CUstream *out, unsigned flags) { return cuStreamCreateWithPriority(out, flags, 0); }

SIM_EXPORT CUresult cuStreamDestroy_v2(CUstream stream) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (stream == NULL || stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD)
        return CUDA_ERROR_INVALID_HANDLE;
    sim_capture_forget(stream);
    unlink_stream(stream);
    simgpu_stream_close(stream->slot);
    free(stream);
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuStreamDestroy(CUstream stream) { return cuStreamDestroy_v2(stream); }

/* A call that waits on or asks about a stream. */
static CUresult stream_for_host(CUstream *stream, bool per_thread) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    *stream = sim_stream(*stream, per_thread);
    if (*stream == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    if ((*stream)->capture != NULL) return sim_capture_refuse(*stream);
    return sim_unsafe();
}

static CUresult synchronize(CUstream stream, bool per_thread) {
    CUresult result = stream_for_host(&stream, per_thread);
    if (result != CUDA_SUCCESS || sim_null_mode) return result;
    simgpu_stream_wait(stream->slot, simgpu_stream_last(stream->slot));
    sim_memory_synchronized();
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuStreamSynchronize(CUstream stream) { return synchronize(stream, false); }
SIM_EXPORT CUresult cuStreamSynchronize_ptsz(CUstream stream) { return synchronize(stream, true); }

static CUresult query(CUstream stream, bool per_thread) {
    CUresult result = stream_for_host(&stream, per_thread);
    if (result != CUDA_SUCCESS || sim_null_mode) return result;
    return simgpu_stream_done(stream->slot, simgpu_stream_last(stream->slot)) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
SIM_EXPORT CUresult cuStreamQuery(CUstream stream) { return query(stream, false); }
SIM_EXPORT CUresult cuStreamQuery_ptsz(CUstream stream) { return query(stream, true); }

#define STREAM_GETTER(symbol, type, expression)                                                                        \
    static CUresult symbol##_of(CUstream stream, type *out, bool per_thread) {                                         \
        if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;                                                            \
        stream = sim_stream(stream, per_thread);                                                                       \
        if (stream == NULL) return CUDA_ERROR_INVALID_CONTEXT;                                                         \
        *out = expression;                                                                                             \
        return CUDA_SUCCESS;                                                                                           \
    }                                                                                                                  \
    SIM_EXPORT CUresult symbol(CUstream stream, type *out) { return symbol##_of(stream, out, false); }                 \
    SIM_EXPORT CUresult symbol##_ptsz(CUstream stream, type *out) { return symbol##_of(stream, out, true); }
STREAM_GETTER(cuStreamGetCtx, CUcontext, stream->context)
STREAM_GETTER(cuStreamGetFlags, unsigned, stream->flags)
STREAM_GETTER(cuStreamGetPriority, int, stream->priority)
STREAM_GETTER(cuStreamGetId, unsigned long long, stream->id)

static CUresult wait_event(CUstream stream, CUevent event, unsigned flags, bool per_thread) {
    (void)flags;
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    stream = sim_stream(stream, per_thread);
    if (stream == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    if (event->capture != NULL || stream->capture != NULL) return sim_capture_wait(stream, event);
    uint64_t recorded = sim_null_mode ? 0 : simgpu_event_recorded(event->slot);
    if (recorded == 0) return CUDA_SUCCESS;
    struct simgpu_op op = {.kind = SIMGPU_WAIT, .event = (uint32_t)event->slot, .event_seq = recorded};
    simgpu_submit(stream->slot, &op);
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
    return wait_event(stream, event, flags, false);
}
SIM_EXPORT CUresult cuStreamWaitEvent_ptsz(CUstream stream, CUevent event, unsigned flags) {
    return wait_event(stream, event, flags, true);
}

/* ---- events ---- */

SIM_EXPORT CUresult cuEventCreate(CUevent *out, unsigned flags) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    CUcontext context = sim_current();
    if (context == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    CUevent event = calloc(1, sizeof *event);
    if (event == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    event->context = context;
    event->flags = flags;
    event->slot = simgpu_event_open();
    if (event->slot < 0) {
        free(event);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = event;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuEventDestroy_v2(CUevent event) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    simgpu_event_close(event->slot);
    free(event);
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuEventDestroy(CUevent event) { return cuEventDestroy_v2(event); }

static CUresult record(CUevent event, CUstream stream, bool per_thread) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    if (sim_null_mode) {
        event->null_ns = sim_null_ns;
        event->null_recorded = true;
        return CUDA_SUCCESS;
    }
    stream = sim_stream(stream, per_thread);
    if (stream == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    if (stream->context != event->context) return CUDA_ERROR_INVALID_HANDLE;
    bool captured;
    CUresult result = sim_capture_check(stream, &captured);
    if (result != CUDA_SUCCESS) return result;
    if (captured) return sim_capture_record(event, stream);
    event->capture = NULL;
    struct simgpu_op op = {.kind = SIMGPU_RECORD, .event = (uint32_t)event->slot};
    simgpu_submit(stream->slot, &op);
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuEventRecord(CUevent event, CUstream stream) { return record(event, stream, false); }
SIM_EXPORT CUresult cuEventRecord_ptsz(CUevent event, CUstream stream) { return record(event, stream, true); }
SIM_EXPORT CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags) {
    (void)flags;
    return record(event, stream, false);
}
SIM_EXPORT CUresult cuEventRecordWithFlags_ptsz(CUevent event, CUstream stream, unsigned flags) {
    (void)flags;
    return record(event, stream, true);
}

/* A question about an event from the host: illegal for one recorded in a capture, unsafe beside a global one. */
static CUresult event_for_host(CUevent event) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    if (event->capture != NULL) return CUDA_ERROR_CAPTURED_EVENT;
    return sim_unsafe();
}

SIM_EXPORT CUresult cuEventQuery(CUevent event) {
    CUresult result = event_for_host(event);
    if (result != CUDA_SUCCESS || sim_null_mode) return result;
    uint64_t done_ns;
    return simgpu_event_state(event->slot, &done_ns) == 1 ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuEventSynchronize(CUevent event) {
    CUresult result = event_for_host(event);
    if (result != CUDA_SUCCESS || sim_null_mode) return result;
    simgpu_event_wait(event->slot);
    sim_memory_synchronized();
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (start == NULL || end == NULL) return CUDA_ERROR_INVALID_HANDLE;
    if ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING) return CUDA_ERROR_INVALID_HANDLE;
    if (start->capture != NULL || end->capture != NULL) return CUDA_ERROR_CAPTURED_EVENT;
    if (sim_null_mode) {
        if (!start->null_recorded || !end->null_recorded) return CUDA_ERROR_INVALID_HANDLE;
        *milliseconds = (float)((double)(end->null_ns - start->null_ns) / 1e6);
        return CUDA_SUCCESS;
    }
    uint64_t from = 0, until = 0;
    int first = simgpu_event_state(start->slot, &from), second = simgpu_event_state(end->slot, &until);
    if (first == 2 || second == 2) return CUDA_ERROR_INVALID_HANDLE;
    if (first == 1 || second == 1) return CUDA_ERROR_NOT_READY;
    /* The device's clock for events resolves about half a microsecond. */
    double ns = (double)until - (double)from;
    *milliseconds = (float)((double)(int64_t)(ns / 512.0) * 512.0 / 1e6);
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end) {
    return cuEventElapsedTime(milliseconds, start, end);
}
