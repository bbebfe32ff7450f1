/* Stream capture: what is captured runs later, from its graph; measuring it now would break the capture. */
#include "stream.h"

#include <string.h>

/* What is begun beyond so many is not counted, and need not be: others are. */
#define CAPTURES 256

uint32_t sair_captures_active;

static struct {
    uint32_t used; /* 0 free, 1 being filled, 2 valid */
    struct sair_stream_id id;
    CUcontext context;
} captures[CAPTURES];

void sair_capture_begins(CUstream handle, int per_thread) {
    struct sair_stream_id id = sair_stream_identify(handle, per_thread);
    CUcontext context = sair_stream_context(&id);
    for (int i = 0; i < CAPTURES; i++) {
        uint32_t used = 0;
        if (SAIR_LOAD(&captures[i].used) != 0 || !SAIR_CAS(&captures[i].used, &used, 1u)) continue;
        captures[i].id = id;
        captures[i].context = context;
        __atomic_fetch_add(&sair_captures_active, 1u, __ATOMIC_ACQ_REL);
        SAIR_STORE_RELEASE(&captures[i].used, 2u);
        return;
    }
}

static int end(int i) {
    uint32_t used = 2;
    if (!SAIR_CAS(&captures[i].used, &used, 0u)) return 0;
    __atomic_fetch_sub(&sair_captures_active, 1u, __ATOMIC_ACQ_REL);
    return 1;
}

void sair_capture_ends(CUstream handle, int per_thread) {
    if (__builtin_expect(SAIR_LOAD(&sair_captures_active) == 0, 1)) return;
    struct sair_stream_id id = sair_stream_identify(handle, per_thread);
    for (int i = 0; i < CAPTURES; i++) {
        if (SAIR_LOAD_ACQUIRE(&captures[i].used) != 2 || captures[i].id.handle != id.handle ||
            captures[i].id.context != id.context || captures[i].id.thread != id.thread)
            continue;
        if (end(i)) return;
    }
}

void sair_capture_context_gone(CUcontext context) {
    for (int i = 0; i < CAPTURES; i++)
        if (SAIR_LOAD_ACQUIRE(&captures[i].used) == 2 && (context == NULL || captures[i].context == context))
            (void)end(i);
}

void sair_capture_thread_gone(uint64_t thread) {
    for (int i = 0; i < CAPTURES; i++)
        if (SAIR_LOAD_ACQUIRE(&captures[i].used) == 2 && captures[i].id.thread == thread) (void)end(i);
}

void sair_captures_forget(void) {
    memset(captures, 0, sizeof captures);
    SAIR_STORE(&sair_captures_active, 0u);
}

static CUstreamCaptureMode exchange(CUstreamCaptureMode mode) {
    if (!sair_capture_can_relax() || sair_driver()->cuThreadExchangeStreamCaptureMode(&mode) != CUDA_SUCCESS)
        return CU_STREAM_CAPTURE_MODE_RELAXED;
    return mode;
}

int sair_capture_can_relax(void) {
    const struct sair_driver *driver = sair_driver();
    return driver != NULL && driver->cuThreadExchangeStreamCaptureMode != NULL;
}

CUstreamCaptureMode sair_capture_relax(void) {
    return exchange(CU_STREAM_CAPTURE_MODE_RELAXED);
}

void sair_capture_restore(CUstreamCaptureMode mode) {
    if (mode != CU_STREAM_CAPTURE_MODE_RELAXED) (void)exchange(mode);
}

int sair_stream_is_capturing(CUstream handle, int per_thread) {
    if (__builtin_expect(SAIR_LOAD_ACQUIRE(&sair_captures_active) == 0, 1)) return 0;
    const struct sair_driver *driver = sair_driver();
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUresult result = CUDA_ERROR_NOT_FOUND;
    if (per_thread && driver->cuStreamIsCapturing_ptsz != NULL)
        result = driver->cuStreamIsCapturing_ptsz(handle, &status);
    else if (driver->cuStreamIsCapturing != NULL)
        result = driver->cuStreamIsCapturing(handle, &status);
    /* Unknown counts as capturing: charging nothing once is harmless, breaking a capture is not. */
    return result != CUDA_SUCCESS || status != CU_STREAM_CAPTURE_STATUS_NONE;
}

int sair_stream_may_record(const struct sair_stream *stream) {
    if (__builtin_expect(SAIR_LOAD_ACQUIRE(&sair_captures_active) == 0, 1)) return 1;
    return stream->id.handle != NULL && !sair_stream_is_capturing(stream->id.handle, 0);
}
