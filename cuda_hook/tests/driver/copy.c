/* Copies and fills: the bytes move at once, the stream is occupied for as long as a copy engine would need. */
#include "driver.h"

#include <string.h>

#define BYTES_PER_US UINT64_C(25000) /* a PCIe 4.0 x16 link; between addresses of the card it would be faster */

static CUresult occupy(CUstream stream, size_t bytes, bool per_thread, bool wait) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    stream = sim_stream(stream, per_thread);
    if (stream == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    if (wait) {
        CUresult result = sim_unsafe();
        if (result != CUDA_SUCCESS) return result;
    }
    bool captured;
    CUresult result = sim_capture_check(stream, &captured);
    if (result != CUDA_SUCCESS || sim_null_mode) return result;
    uint64_t ns = 1000 * bytes / BYTES_PER_US;
    if (captured) {
        sim_capture_add(stream, SIM_NODE_MEMCPY)->work.ns = ns;
        return CUDA_SUCCESS;
    }
    struct simgpu_op op = {.kind = SIMGPU_COPY, .remaining_ns = ns};
    uint64_t seq = simgpu_submit(stream->slot, &op);
    if (wait) simgpu_stream_wait(stream->slot, seq);
    return CUDA_SUCCESS;
}

static void *at(CUdeviceptr pointer) {
    return (void *)(uintptr_t)pointer;
}

#define COPY(name, to_type, to, from_type, from)                                                                       \
    static CUresult name##_in(to_type d, from_type s, size_t n, CUstream stream, bool per_thread, bool wait) {         \
        CUresult result = occupy(stream, n, per_thread, wait);                                                         \
        if (result == CUDA_SUCCESS) memmove(to, from, n);                                                              \
        return result;                                                                                                 \
    }                                                                                                                  \
    SIM_EXPORT CUresult name##_v2(to_type d, from_type s, size_t n) { return name##_in(d, s, n, NULL, false, true); }  \
    SIM_EXPORT CUresult name##_v2_ptds(to_type d, from_type s, size_t n) {                                             \
        return name##_in(d, s, n, NULL, true, true);                                                                   \
    }                                                                                                                  \
    SIM_EXPORT CUresult name##Async_v2(to_type d, from_type s, size_t n, CUstream stream) {                            \
        return name##_in(d, s, n, stream, false, false);                                                               \
    }                                                                                                                  \
    SIM_EXPORT CUresult name##Async_v2_ptsz(to_type d, from_type s, size_t n, CUstream stream) {                       \
        return name##_in(d, s, n, stream, true, false);                                                                \
    }
COPY(cuMemcpyHtoD, CUdeviceptr, at(d), const void *, s)
COPY(cuMemcpyDtoH, void *, d, CUdeviceptr, at(s))
COPY(cuMemcpyDtoD, CUdeviceptr, at(d), CUdeviceptr, at(s))

SIM_EXPORT CUresult cuMemcpy(CUdeviceptr d, CUdeviceptr s, size_t n) {
    return cuMemcpyDtoD_in(d, s, n, NULL, false, true);
}
SIM_EXPORT CUresult cuMemcpy_ptds(CUdeviceptr d, CUdeviceptr s, size_t n) {
    return cuMemcpyDtoD_in(d, s, n, NULL, true, true);
}
SIM_EXPORT CUresult cuMemcpyAsync(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream stream) {
    return cuMemcpyDtoD_in(d, s, n, stream, false, false);
}
SIM_EXPORT CUresult cuMemcpyAsync_ptsz(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream stream) {
    return cuMemcpyDtoD_in(d, s, n, stream, true, false);
}

#define FILL(name, type)                                                                                               \
    static CUresult name##_in(CUdeviceptr d, type value, size_t n, CUstream stream, bool per_thread) {                 \
        CUresult result = occupy(stream, n * sizeof value, per_thread, false);                                         \
        for (size_t i = 0; result == CUDA_SUCCESS && i < n; i++) ((type *)at(d))[i] = value;                           \
        return result;                                                                                                 \
    }                                                                                                                  \
    SIM_EXPORT CUresult name##_v2(CUdeviceptr d, type value, size_t n) { return name##_in(d, value, n, NULL, false); } \
    SIM_EXPORT CUresult name##_v2_ptds(CUdeviceptr d, type value, size_t n) {                                          \
        return name##_in(d, value, n, NULL, true);                                                                     \
    }                                                                                                                  \
    SIM_EXPORT CUresult name##Async(CUdeviceptr d, type value, size_t n, CUstream stream) {                            \
        return name##_in(d, value, n, stream, false);                                                                  \
    }                                                                                                                  \
    SIM_EXPORT CUresult name##Async_ptsz(CUdeviceptr d, type value, size_t n, CUstream stream) {                       \
        return name##_in(d, value, n, stream, true);                                                                   \
    }
FILL(cuMemsetD8, unsigned char)
FILL(cuMemsetD16, unsigned short)
FILL(cuMemsetD32, unsigned)
