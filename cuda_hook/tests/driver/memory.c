/* Device memory by every path the driver offers. Addresses are real (unpopulated) mappings, so that copies work. */
#include "driver.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define GRAIN ((size_t)512)        /* what a small allocation is rounded to */

enum owner { BY_CONTEXT, BY_POOL, BY_HOST };

struct block {
    CUdeviceptr pointer;
    size_t bytes; /* accounted */
    size_t mapped;
    enum owner owner;
    CUcontext context;
    int device;
    CUmemoryPool pool;
    struct block *next;
};

struct CUmemPoolHandle_st {
    int device;
    size_t used;
    cuuint64_t threshold;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *blocks;
static struct CUmemPoolHandle_st default_pools[SIMGPU_DEVICES];

static size_t rounded(size_t bytes, size_t grain) {
    return (bytes + grain - 1) / grain * grain;
}

CUresult sim_memory_enter(CUcontext *context) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    *context = sim_current();
    if (*context == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    return sim_unsafe();
}

CUdeviceptr sim_memory_map(size_t bytes, int protection, bool low) {
    void *at =
        mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (low ? MAP_32BIT : 0), -1, 0);
    return at == MAP_FAILED ? 0 : (CUdeviceptr)(uintptr_t)at;
}

static CUresult take(CUdeviceptr *out, size_t bytes, CUcontext context, enum owner owner, CUmemoryPool pool, bool low) {
    if (out == NULL || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (bytes > (size_t)1 << 46) return CUDA_ERROR_OUT_OF_MEMORY;
    struct block *block = calloc(1, sizeof *block);
    if (block == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    *block =
        (struct block){0, rounded(bytes, GRAIN), rounded(bytes, 4096), owner, context, context->device, pool, NULL};
    if (owner != BY_HOST && !simgpu_memory_take(block->device, block->bytes)) goto fail;
    block->pointer = sim_memory_map(block->mapped, PROT_READ | PROT_WRITE, low);
    if (block->pointer == 0) {
        if (owner != BY_HOST) simgpu_memory_give(block->device, block->bytes);
        goto fail;
    }
    pthread_mutex_lock(&lock);
    block->next = blocks;
    blocks = block;
    if (pool != NULL) pool->used += block->bytes;
    pthread_mutex_unlock(&lock);
    *out = block->pointer;
    return CUDA_SUCCESS;
fail:
    free(block);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

static void discard(struct block *block) {
    if (block->owner != BY_HOST) simgpu_memory_give(block->device, block->bytes);
    munmap((void *)(uintptr_t)block->pointer, block->mapped);
    free(block);
}

static CUresult give(CUdeviceptr pointer, bool host) {
    struct block *found = NULL;
    pthread_mutex_lock(&lock);
    for (struct block **at = &blocks; *at != NULL; at = &(*at)->next) {
        if ((*at)->pointer != pointer || ((*at)->owner == BY_HOST) != host) continue;
        found = *at;
        *at = found->next;
        if (found->pool != NULL) found->pool->used -= found->bytes;
        break;
    }
    pthread_mutex_unlock(&lock);
    if (found == NULL) return CUDA_ERROR_INVALID_VALUE;
    discard(found);
    return CUDA_SUCCESS;
}

void sim_memory_drop_context(CUcontext context) {
    sim_arrays_drop_context(context);
    pthread_mutex_lock(&lock);
    for (struct block **at = &blocks; *at != NULL;) {
        struct block *block = *at;
        bool dies =
            block->owner == BY_POOL ? context->primary && block->device == context->device : block->context == context;
        if (!dies) {
            at = &block->next;
            continue;
        }
        *at = block->next;
        if (block->pool != NULL) block->pool->used -= block->bytes;
        discard(block);
    }
    pthread_mutex_unlock(&lock);
}

/* ---- linear memory ---- */

SIM_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes) {
    CUcontext context;
    CUresult result = sim_memory_enter(&context);
    return result != CUDA_SUCCESS ? result : take(pointer, bytes, context, BY_CONTEXT, NULL, false);
}
SIM_EXPORT CUresult cuMemAlloc(CUdeviceptr_v1 *pointer, unsigned bytes) {
    CUcontext context;
    CUdeviceptr wide = 0;
    CUresult result = sim_memory_enter(&context);
    if (result == CUDA_SUCCESS) result = take(&wide, bytes, context, BY_CONTEXT, NULL, true);
    if (result == CUDA_SUCCESS) *pointer = (CUdeviceptr_v1)wide;
    return result;
}
SIM_EXPORT CUresult cuMemAllocManaged(CUdeviceptr *pointer, size_t bytes, unsigned flags) {
    if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST) return CUDA_ERROR_INVALID_VALUE;
    return cuMemAlloc_v2(pointer, bytes);
}
SIM_EXPORT CUresult cuMemAllocPitch_v2(CUdeviceptr *pointer, size_t *pitch, size_t width, size_t height,
                                       unsigned element) {
    if (element != 4 && element != 8 && element != 16) return CUDA_ERROR_INVALID_VALUE;
    size_t row = rounded(width, GRAIN);
    CUresult result = cuMemAlloc_v2(pointer, row * height);
    if (result == CUDA_SUCCESS) *pitch = row;
    return result;
}
SIM_EXPORT CUresult cuMemAllocPitch(CUdeviceptr_v1 *pointer, unsigned *pitch, unsigned width, unsigned height,
                                    unsigned element) {
    if (element != 4 && element != 8 && element != 16) return CUDA_ERROR_INVALID_VALUE;
    unsigned row = (unsigned)rounded(width, GRAIN);
    CUresult result = cuMemAlloc(pointer, row * height);
    if (result == CUDA_SUCCESS) *pitch = row;
    return result;
}
SIM_EXPORT CUresult cuMemFree_v2(CUdeviceptr pointer) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (pointer == 0) return CUDA_SUCCESS;
    CUresult result = sim_unsafe();
    return result != CUDA_SUCCESS ? result : give(pointer, false);
}
SIM_EXPORT CUresult cuMemFree(CUdeviceptr_v1 pointer) { return cuMemFree_v2(pointer); }

SIM_EXPORT CUresult cuMemGetInfo_v2(size_t *available, size_t *total) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    CUcontext context = sim_current();
    if (context == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    uint64_t free_bytes, total_bytes;
    simgpu_memory_info(context->device, &free_bytes, &total_bytes);
    *available = free_bytes;
    *total = total_bytes;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemGetInfo(unsigned *available, unsigned *total) {
    size_t wide_free, wide_total;
    CUresult result = cuMemGetInfo_v2(&wide_free, &wide_total);
    if (result != CUDA_SUCCESS) return result;
    *available = wide_free > UINT32_MAX ? UINT32_MAX : (unsigned)wide_free;
    *total = wide_total > UINT32_MAX ? UINT32_MAX : (unsigned)wide_total;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr pointer) {
    CUresult result = CUDA_ERROR_NOT_FOUND;
    pthread_mutex_lock(&lock);
    for (struct block *b = blocks; b != NULL && result != CUDA_SUCCESS; b = b->next) {
        if (pointer < b->pointer || pointer >= b->pointer + b->mapped) continue;
        if (base != NULL) *base = b->pointer;
        if (bytes != NULL) *bytes = b->bytes;
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

/* ---- host memory ---- */

SIM_EXPORT CUresult cuMemHostAlloc(void **out, size_t bytes, unsigned flags) {
    (void)flags;
    CUcontext context;
    CUdeviceptr pointer = 0;
    CUresult result = sim_memory_enter(&context);
    if (result == CUDA_SUCCESS) result = take(&pointer, bytes, context, BY_HOST, NULL, false);
    if (result == CUDA_SUCCESS) *out = (void *)(uintptr_t)pointer;
    return result;
}
SIM_EXPORT CUresult cuMemAllocHost_v2(void **out, size_t bytes) { return cuMemHostAlloc(out, bytes, 0); }
SIM_EXPORT CUresult cuMemFreeHost(void *pointer) { return give((CUdeviceptr)(uintptr_t)pointer, true); }
SIM_EXPORT CUresult cuMemHostRegister_v2(void *pointer, size_t bytes, unsigned flags) {
    (void)flags;
    return pointer == NULL || bytes == 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemHostUnregister(void *pointer) {
    return pointer == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *pointer, void *host, unsigned flags) {
    (void)flags;
    *pointer = (CUdeviceptr)(uintptr_t)host;
    return CUDA_SUCCESS;
}

/* ---- stream-ordered memory ---- */

static CUmemoryPool pool_of(int device) {
    default_pools[device].device = device;
    return &default_pools[device];
}
SIM_EXPORT CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (device < 0 || device >= SIMGPU_DEVICES) return CUDA_ERROR_INVALID_DEVICE;
    *pool = pool_of(device);
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice device) {
    return cuDeviceGetDefaultMemPool(pool, device);
}
SIM_EXPORT CUresult cuDeviceSetMemPool(CUdevice device, CUmemoryPool pool) {
    return device < 0 || device >= SIMGPU_DEVICES || pool == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemPoolCreate(CUmemoryPool *out, const CUmemPoolProps *props) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (out == NULL || props == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUmemoryPool pool = calloc(1, sizeof *pool);
    if (pool == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    pool->device = props->location.id;
    *out = pool;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemPoolDestroy(CUmemoryPool pool) {
    if (pool == NULL || (pool >= default_pools && pool < default_pools + SIMGPU_DEVICES))
        return CUDA_ERROR_INVALID_VALUE;
    /* What was taken from it lives on until it is freed. */
    pthread_mutex_lock(&lock);
    for (struct block *block = blocks; block != NULL; block = block->next)
        if (block->pool == pool) block->pool = NULL;
    pthread_mutex_unlock(&lock);
    free(pool);
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t keep) {
    (void)keep;
    return pool == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemPoolGetAttribute(CUmemoryPool pool, int attribute, void *value) {
    cuuint64_t answer = attribute == 4 ? pool->threshold : pool->used;
    memcpy(value, &answer, attribute < 4 ? sizeof(int) : sizeof answer);
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemPoolSetAttribute(CUmemoryPool pool, int attribute, void *value) {
    if (attribute == 4) memcpy(&pool->threshold, value, sizeof pool->threshold);
    return CUDA_SUCCESS;
}

/* The stream that the handle means, and whether it is being captured. */
static CUresult enter_stream(CUstream *stream, bool per_thread, bool *captured) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    *stream = sim_stream(*stream, per_thread);
    return *stream == NULL ? CUDA_ERROR_INVALID_CONTEXT : sim_capture_check(*stream, captured);
}

static CUresult alloc_async(CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool, CUstream stream, bool per_thread) {
    bool captured;
    CUresult result = enter_stream(&stream, per_thread, &captured);
    if (result != CUDA_SUCCESS) return result;
    if (captured) {
        CUgraphNode node = sim_capture_add(stream, SIM_NODE_MEM_ALLOC);
        result = sim_memory_alloc_node(bytes, pointer);
        node->memory = *pointer;
        node->memory_bytes = bytes;
        return result;
    }
    return take(pointer, bytes, stream->context, BY_POOL, pool != NULL ? pool : pool_of(stream->context->device),
                false);
}
SIM_EXPORT CUresult cuMemAllocAsync(CUdeviceptr *pointer, size_t bytes, CUstream stream) {
    return alloc_async(pointer, bytes, NULL, stream, false);
}
SIM_EXPORT CUresult cuMemAllocAsync_ptsz(CUdeviceptr *pointer, size_t bytes, CUstream stream) {
    return alloc_async(pointer, bytes, NULL, stream, true);
}
SIM_EXPORT CUresult cuMemAllocFromPoolAsync(CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool, CUstream stream) {
    return pool == NULL ? CUDA_ERROR_INVALID_VALUE : alloc_async(pointer, bytes, pool, stream, false);
}
SIM_EXPORT CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool,
                                                 CUstream stream) {
    return pool == NULL ? CUDA_ERROR_INVALID_VALUE : alloc_async(pointer, bytes, pool, stream, true);
}

static CUresult free_async(CUdeviceptr pointer, CUstream stream, bool per_thread) {
    bool captured;
    CUresult result = enter_stream(&stream, per_thread, &captured);
    if (result != CUDA_SUCCESS) return result;
    if (!captured) return give(pointer, false);
    sim_capture_add(stream, SIM_NODE_MEM_FREE)->memory = pointer;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream stream) { return free_async(pointer, stream, false); }
SIM_EXPORT CUresult cuMemFreeAsync_ptsz(CUdeviceptr pointer, CUstream stream) {
    return free_async(pointer, stream, true);
}

/* A graph's allocation has its address at once and its memory from the first launch on. */
CUresult sim_memory_alloc_node(size_t bytes, CUdeviceptr *pointer) {
    *pointer = sim_memory_map(rounded(bytes, 4096), PROT_READ | PROT_WRITE, false);
    return *pointer == 0 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}
