/* Stream-ordered allocation and its pools. */
#include "graph_memory.h"
#include "memory_body.h"
#include "stream.h"

/* A pool may grow by more than was asked of it; what then does not fit is undone. */
static CUresult settled(struct sair_pool *pool, struct sair_reservation *reservation, CUresult result, CUdeviceptr ptr,
                        CUstream stream, CUresult (*release)(CUdeviceptr, CUstream)) {
    struct sair_device *device = reservation->device;
    if (device == NULL) return result;
    if (result != CUDA_SUCCESS) {
        sair_pool_cancel(pool, reservation);
        return result;
    }
    if (sair_pool_settle(pool, reservation)) {
        sair_memory_keep_pooled(device, ptr, pool);
        sair_pool_count(pool, 1);
        return result;
    }
    (void)release(ptr, stream);
    (void)sair_pools_make_room(device);
    sair_memory_refused(device);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/* `choose` names the pool. In a capture it becomes a node of the graph. */
#define ALLOCATE_POOLED(twin, per_thread, choose, call)                                                                \
    do {                                                                                                               \
        if (sair_memory_is_off()) return call;                                                                         \
        CUresult (*release)(CUdeviceptr, CUstream) = SAIR_REAL(cuMemFreeAsync##twin);                                  \
        if (sair_stream_is_capturing(stream, per_thread)) {                                                            \
            struct sair_graph_claim claim;                                                                             \
            if (!sair_graph_claim(&claim, bytes, -1)) return CUDA_ERROR_OUT_OF_MEMORY;                                 \
            CUresult result = call;                                                                                    \
            sair_graph_claimed(&claim, result == CUDA_SUCCESS, sair_graph_captured_on(stream, per_thread));            \
            return result;                                                                                             \
        }                                                                                                              \
        struct sair_pool *pool = choose;                                                                               \
        struct sair_reservation reservation;                                                                           \
        if (pool == NULL) return call;                                                                                 \
        if (!sair_pool_reserve(pool, bytes, &reservation)) return CUDA_ERROR_OUT_OF_MEMORY;                            \
        CUresult result = call;                                                                                        \
        return settled(pool, &reservation, result, result == CUDA_SUCCESS ? *ptr : 0, stream, release);                \
    } while (0)

/* What is freed while its stream is being captured becomes a node that frees whenever the graph runs. */
#define ASYNC_HOOKS(twin, per_thread)                                                                                  \
    CUresult cuMemAllocAsync##twin(CUdeviceptr *ptr, size_t bytes, CUstream stream) {                                  \
        CUresult (*real)(CUdeviceptr *, size_t, CUstream) = SAIR_REAL(cuMemAllocAsync##twin);                          \
        ALLOCATE_POOLED(twin, per_thread, sair_pool_of_stream(stream), real(ptr, bytes, stream));                      \
    }                                                                                                                  \
    CUresult cuMemAllocFromPoolAsync##twin(CUdeviceptr *ptr, size_t bytes, CUmemoryPool from, CUstream stream) {       \
        CUresult (*real)(CUdeviceptr *, size_t, CUmemoryPool, CUstream) = SAIR_REAL(cuMemAllocFromPoolAsync##twin);    \
        ALLOCATE_POOLED(twin, per_thread, sair_pool_named(from, stream), real(ptr, bytes, from, stream));              \
    }                                                                                                                  \
    CUresult cuMemFreeAsync##twin(CUdeviceptr ptr, CUstream stream) {                                                  \
        CUresult (*real)(CUdeviceptr, CUstream) = SAIR_REAL(cuMemFreeAsync##twin);                                     \
        if (sair_stream_is_capturing(stream, per_thread)) return real(ptr, stream);                                    \
        FREE_ADDRESS(ptr, real(ptr, stream));                                                                          \
    }

ASYNC_HOOKS(, 0)
ASYNC_HOOKS(_ptsz, 1)

CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *props) {
    CUresult result = SAIR_REAL(cuMemPoolCreate)(pool, props);
    if (result == CUDA_SUCCESS && !sair_memory_is_off()) sair_pool_created(*pool, props);
    return result;
}

CUresult cuMemPoolDestroy(CUmemoryPool pool) {
    CUresult (*real)(CUmemoryPool) = SAIR_REAL(cuMemPoolDestroy);
    if (sair_memory_is_off()) return real(pool);
    struct sair_pool *record = sair_pool_retire(pool);
    CUresult result = real(pool);
    sair_pool_retired(record, result == CUDA_SUCCESS);
    return result;
}

CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t kept) {
    CUresult result = SAIR_REAL(cuMemPoolTrimTo)(pool, kept);
    if (result == CUDA_SUCCESS && !sair_memory_is_off()) sair_pools_refresh(NULL);
    return result;
}
