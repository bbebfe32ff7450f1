/* Stream capture: what is captured runs later, from its graph; measuring it now would break the capture. */
#include "stream.h"

#define CAPTURES 64

uint32_t sair_captures_active;

static struct {
    uint32_t used;
    CUstream handle;
    int per_thread;
} captures[CAPTURES];

void sair_capture_begins(CUstream handle, int per_thread) {
    for (int i = 0; i < CAPTURES; i++) {
        uint32_t used = 0;
        if (!SAIR_CAS(&captures[i].used, &used, 1u)) continue;
        captures[i].handle = handle;
        captures[i].per_thread = per_thread;
        SAIR_STORE_RELEASE(&captures[i].used, 2u);
        break;
    }
    __atomic_fetch_add(&sair_captures_active, 1u, __ATOMIC_ACQ_REL);
}

void sair_capture_ends(CUstream handle, int per_thread) {
    for (int i = 0; i < CAPTURES; i++) {
        uint32_t used = 2;
        if (SAIR_LOAD_ACQUIRE(&captures[i].used) != 2 || captures[i].handle != handle ||
            captures[i].per_thread != per_thread)
            continue;
        if (!SAIR_CAS(&captures[i].used, &used, 0u)) continue;
        __atomic_fetch_sub(&sair_captures_active, 1u, __ATOMIC_ACQ_REL);
        return;
    }
}

static CUstreamCaptureMode exchange(CUstreamCaptureMode mode) {
    const struct sair_driver *driver = sair_driver();
    if (driver == NULL || driver->cuThreadExchangeStreamCaptureMode == NULL ||
        driver->cuThreadExchangeStreamCaptureMode(&mode) != CUDA_SUCCESS)
        return CU_STREAM_CAPTURE_MODE_RELAXED;
    return mode;
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
