/* Copies and fills: the bytes move at once, the stream is occupied for as long as a copy engine would need. */
#include "driver.h"

#include <string.h>

#define BYTES_PER_US UINT64_C(25000) /* a PCIe 4.0 x16 link; between addresses of the card it would be faster */

uint64_t sim_copy_ns(size_t bytes) {
    return 1000 * bytes / BYTES_PER_US;
}

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
    uint64_t ns = sim_copy_ns(bytes);
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

SIM_EXPORT CUresult cuMemcpyPeer(CUdeviceptr d, CUcontext to, CUdeviceptr s, CUcontext from, size_t n) {
    if (!sim_context_is_valid(to) || !sim_context_is_valid(from)) return CUDA_ERROR_INVALID_CONTEXT;
    return cuMemcpyDtoD_in(d, s, n, NULL, false, true);
}
SIM_EXPORT CUresult cuMemcpyPeer_ptds(CUdeviceptr d, CUcontext to, CUdeviceptr s, CUcontext from, size_t n) {
    if (!sim_context_is_valid(to) || !sim_context_is_valid(from)) return CUDA_ERROR_INVALID_CONTEXT;
    return cuMemcpyDtoD_in(d, s, n, NULL, true, true);
}

/* One side of a copy of rows, in the order of the ABI's structs; arrays hold no bytes here. */
enum { SIDE_HOST = 1, SIDE_DEVICE = 2, SIDE_UNIFIED = 4 };
struct side_2d {
    size_t x_bytes, y;
    int kind;
    void *host;
    CUdeviceptr device;
    CUarray array;
    size_t pitch;
};
struct copy_2d {
    struct side_2d from, to;
    size_t width_bytes, height;
};
struct side_3d {
    size_t x_bytes, y, z, lod;
    int kind;
    void *host;
    CUdeviceptr device;
    CUarray array;
    void *reserved;
    size_t pitch, height;
};
struct copy_3d {
    struct side_3d from, to;
    size_t width_bytes, height, depth;
};
static_assert(sizeof(struct copy_2d) == 128 && sizeof(struct copy_3d) == 200, "copy ABI");

static char *base_of(int kind, void *host, CUdeviceptr device) {
    if (kind == SIDE_HOST) return host;
    return kind == SIDE_DEVICE || kind == SIDE_UNIFIED ? at(device) : NULL;
}
static CUresult copy_3d(const struct copy_3d *c, bool per_thread) {
    if (c == NULL) return CUDA_ERROR_INVALID_VALUE;
    char *from = base_of(c->from.kind, c->from.host, c->from.device);
    char *to = base_of(c->to.kind, c->to.host, c->to.device);
    if (from == NULL || to == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUresult result = occupy(NULL, c->width_bytes * c->height * c->depth, per_thread, true);
    for (size_t z = 0; result == CUDA_SUCCESS && z < c->depth; z++)
        for (size_t y = 0; y < c->height; y++) {
            size_t row_from = (c->from.z + z) * c->from.height + c->from.y + y;
            size_t row_to = (c->to.z + z) * c->to.height + c->to.y + y;
            memmove(to + row_to * c->to.pitch + c->to.x_bytes, from + row_from * c->from.pitch + c->from.x_bytes,
                    c->width_bytes);
        }
    return result;
}
static struct side_3d as_3d(const struct side_2d *s) {
    return (struct side_3d){.x_bytes = s->x_bytes, .y = s->y, .kind = s->kind, .host = s->host, .device = s->device,
                            .pitch = s->pitch};
}
static CUresult copy_2d(const struct copy_2d *c, bool per_thread) {
    if (c == NULL) return CUDA_ERROR_INVALID_VALUE;
    struct copy_3d whole = {as_3d(&c->from), as_3d(&c->to), c->width_bytes, c->height, 1};
    return copy_3d(&whole, per_thread);
}
SIM_EXPORT CUresult cuMemcpy2D_v2(const struct copy_2d *c) { return copy_2d(c, false); }
SIM_EXPORT CUresult cuMemcpy2D_v2_ptds(const struct copy_2d *c) { return copy_2d(c, true); }
SIM_EXPORT CUresult cuMemcpy2DUnaligned_v2(const struct copy_2d *c) { return copy_2d(c, false); }
SIM_EXPORT CUresult cuMemcpy2DUnaligned_v2_ptds(const struct copy_2d *c) { return copy_2d(c, true); }
SIM_EXPORT CUresult cuMemcpy3D_v2(const struct copy_3d *c) { return copy_3d(c, false); }
SIM_EXPORT CUresult cuMemcpy3D_v2_ptds(const struct copy_3d *c) { return copy_3d(c, true); }

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
