/* Device memory by every path the driver offers. Addresses are real (unpopulated) mappings, so that copies work.
 * Longer than 400 lines, in one file: all paths (contexts, pools, streams, the host, graphs) give out blocks of one card under one lock, and
 * what one path takes another frees. Its statics would have to be shared to divide it. */
#include "driver.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define GRAIN ((size_t)512)          /* what a small allocation is rounded to */
#define PITCH_GRAIN ((size_t)1024)   /* what a row is */
#define BLOCK ((size_t)2 << 20)      /* in which the card is given out; small allocations share them */

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

/* What is freed into a pool stays there, as far as it goes beyond the threshold until the next synchronisation. */
struct CUmemPoolHandle_st {
    int device; /* -1: host memory */
    size_t used, reserved;
    cuuint64_t threshold;
    bool destroyed;
    struct CUmemPoolHandle_st *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *blocks;
static struct CUmemPoolHandle_st default_pools[SIMGPU_DEVICES];
static struct CUmemPoolHandle_st *pools; /* those that were created */
static CUmemoryPool current_pools[SIMGPU_DEVICES];
static size_t small_bytes[SIMGPU_DEVICES];
static struct {
    size_t used, reserved;
} graphs[SIMGPU_DEVICES];

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

/* What `bytes` more or fewer change in whole blocks. Caller holds the lock. */
static size_t footprint(int device, size_t bytes) {
    if (bytes >= BLOCK) return rounded(bytes, BLOCK);
    return rounded(small_bytes[device] + bytes, BLOCK) - rounded(small_bytes[device], BLOCK);
}

bool sim_memory_take(int device, size_t bytes) {
    pthread_mutex_lock(&lock);
    bool taken = simgpu_memory_take(device, footprint(device, bytes));
    if (taken && bytes < BLOCK) small_bytes[device] += bytes;
    pthread_mutex_unlock(&lock);
    return taken;
}

static void give_back(int device, size_t bytes) {
    if (bytes < BLOCK) small_bytes[device] -= bytes;
    simgpu_memory_give(device, footprint(device, bytes));
}

void sim_memory_give(int device, size_t bytes) {
    pthread_mutex_lock(&lock);
    give_back(device, bytes);
    pthread_mutex_unlock(&lock);
}

/* By how much a pool grows at once: SAIR_SIMGPU_POOL_MIB, 2 by default. */
static size_t pool_grain(void) {
    const char *setting = getenv("SAIR_SIMGPU_POOL_MIB");
    return setting != NULL ? (size_t)atoi(setting) << 20 : BLOCK;
}

/* Caller holds the lock in these. */
static bool pool_take(CUmemoryPool pool, size_t bytes) {
    size_t short_of = pool->used + bytes > pool->reserved ? pool->used + bytes - pool->reserved : 0;
    size_t more = rounded(short_of, pool_grain());
    if (pool->device >= 0 && !simgpu_memory_take(pool->device, more)) return false;
    pool->reserved += more;
    pool->used += bytes;
    return true;
}

static void pool_release(CUmemoryPool pool, size_t kept) {
    size_t keep = rounded(kept > pool->used ? kept : pool->used, BLOCK);
    if (keep >= pool->reserved) return;
    if (pool->device >= 0) simgpu_memory_give(pool->device, pool->reserved - keep);
    pool->reserved = keep;
}

static void pool_give(CUmemoryPool pool, size_t bytes) {
    pool->used -= bytes;
    if (!pool->destroyed || pool->used > 0) return;
    pool_release(pool, 0);
    for (CUmemoryPool *at = &pools; *at != NULL; at = &(*at)->next)
        if (*at == pool) {
            *at = pool->next;
            free(pool);
            return;
        }
}

void sim_memory_synchronized(void) {
    pthread_mutex_lock(&lock);
    for (int d = 0; d < SIMGPU_DEVICES; d++) pool_release(&default_pools[d], default_pools[d].threshold);
    for (CUmemoryPool pool = pools; pool != NULL; pool = pool->next) pool_release(pool, pool->threshold);
    pthread_mutex_unlock(&lock);
}

static CUresult take(CUdeviceptr *out, size_t bytes, CUcontext context, enum owner owner, CUmemoryPool pool, bool low) {
    if (out == NULL || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (bytes > (size_t)1 << 46) return CUDA_ERROR_OUT_OF_MEMORY;
    struct block *block = calloc(1, sizeof *block);
    if (block == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    *block =
        (struct block){0, rounded(bytes, GRAIN), rounded(bytes, 4096), owner, context, context->device, pool, NULL};
    block->pointer = sim_memory_map(block->mapped, PROT_READ | PROT_WRITE, low);
    if (block->pointer == 0) goto fail;
    pthread_mutex_lock(&lock);
    bool taken = true;
    if (owner == BY_POOL) taken = pool_take(pool, block->bytes);
    if (owner == BY_CONTEXT) taken = simgpu_memory_take(block->device, footprint(block->device, block->bytes));
    if (taken && owner == BY_CONTEXT && block->bytes < BLOCK) small_bytes[block->device] += block->bytes;
    if (taken) {
        block->next = blocks;
        blocks = block;
    }
    pthread_mutex_unlock(&lock);
    if (!taken) {
        munmap((void *)(uintptr_t)block->pointer, block->mapped);
        goto fail;
    }
    *out = block->pointer;
    return CUDA_SUCCESS;
fail:
    free(block);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/* Caller holds the lock. */
static void discard(struct block *block) {
    if (block->owner == BY_CONTEXT) give_back(block->device, block->bytes);
    if (block->owner == BY_POOL) pool_give(block->pool, block->bytes);
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
        discard(found);
        break;
    }
    pthread_mutex_unlock(&lock);
    return found == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
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
        discard(block);
    }
    if (context->primary) pool_release(&default_pools[context->device], 0);
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
    size_t row = rounded(width, PITCH_GRAIN);
    CUresult result = cuMemAlloc_v2(pointer, row * height);
    if (result == CUDA_SUCCESS) *pitch = row;
    return result;
}
SIM_EXPORT CUresult cuMemAllocPitch(CUdeviceptr_v1 *pointer, unsigned *pitch, unsigned width, unsigned height,
                                    unsigned element) {
    if (element != 4 && element != 8 && element != 16) return CUDA_ERROR_INVALID_VALUE;
    unsigned row = (unsigned)rounded(width, PITCH_GRAIN);
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
static CUmemoryPool current_pool(int device) {
    return current_pools[device] != NULL ? current_pools[device] : pool_of(device);
}
SIM_EXPORT CUresult cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice device) {
    CUresult result = cuDeviceGetDefaultMemPool(pool, device);
    if (result == CUDA_SUCCESS) *pool = current_pool(device);
    return result;
}
SIM_EXPORT CUresult cuDeviceSetMemPool(CUdevice device, CUmemoryPool pool) {
    if (device < 0 || device >= SIMGPU_DEVICES || pool == NULL) return CUDA_ERROR_INVALID_VALUE;
    current_pools[device] = pool;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemPoolCreate(CUmemoryPool *out, const CUmemPoolProps *props) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (out == NULL || props == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUmemoryPool pool = calloc(1, sizeof *pool);
    if (pool == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    pool->device = props->location.type == CU_MEM_LOCATION_TYPE_DEVICE ? props->location.id : -1;
    pthread_mutex_lock(&lock);
    pool->next = pools;
    pools = pool;
    pthread_mutex_unlock(&lock);
    *out = pool;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemPoolDestroy(CUmemoryPool pool) {
    if (pool == NULL || (pool >= default_pools && pool < default_pools + SIMGPU_DEVICES))
        return CUDA_ERROR_INVALID_VALUE;
    /* What was taken from it lives on until it is freed. */
    pthread_mutex_lock(&lock);
    pool->destroyed = true;
    pool_give(pool, 0);
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t keep) {
    if (pool == NULL) return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    pool_release(pool, keep);
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemPoolGetAttribute(CUmemoryPool pool, int attribute, void *value) {
    pthread_mutex_lock(&lock);
    cuuint64_t answer = attribute == 4 ? pool->threshold : attribute == 5 ? pool->reserved : pool->used;
    pthread_mutex_unlock(&lock);
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
    return take(pointer, bytes, stream->context, BY_POOL, pool != NULL ? pool : current_pool(stream->context->device),
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

bool sim_graph_memory_take(int device, size_t bytes) {
    pthread_mutex_lock(&lock);
    size_t needs = graphs[device].used + rounded(bytes, BLOCK);
    size_t more = needs > graphs[device].reserved ? needs - graphs[device].reserved : 0;
    bool taken = simgpu_memory_take(device, more);
    if (taken) {
        graphs[device].used = needs;
        graphs[device].reserved += more;
    }
    pthread_mutex_unlock(&lock);
    return taken;
}
void sim_graph_memory_give(int device, size_t bytes) {
    pthread_mutex_lock(&lock);
    graphs[device].used -= rounded(bytes, BLOCK);
    pthread_mutex_unlock(&lock);
}
SIM_EXPORT CUresult cuDeviceGraphMemTrim(CUdevice device) {
    if (device < 0 || device >= SIMGPU_DEVICES) return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&lock);
    simgpu_memory_give(device, graphs[device].reserved - graphs[device].used);
    graphs[device].reserved = graphs[device].used;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuDeviceGetGraphMemAttribute(CUdevice device, int attribute, void *value) {
    if (device < 0 || device >= SIMGPU_DEVICES) return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&lock);
    cuuint64_t answer = attribute < 2 ? graphs[device].used : graphs[device].reserved;
    pthread_mutex_unlock(&lock);
    memcpy(value, &answer, sizeof answer);
    return CUDA_SUCCESS;
}
