/* Every way to device memory, and the queries that report it. */
#include "memory.h"
#include "stream.h"

#define ALIGNMENT UINT64_C(512)
#define PITCH_ALIGNMENT UINT64_C(512)

static uint64_t round_up(uint64_t bytes, uint64_t to) {
    return bytes > UINT64_MAX - to ? UINT64_MAX : (bytes + to - 1) / to * to;
}

static uint64_t times(uint64_t a, uint64_t b) {
    uint64_t product;
    return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

static int is_off(void) {
    return sair_mode() == SAIR_MODE_OFF && sair_process.config.memory_bytes == 0;
}

/* The body of every allocating hook. `handle` is read after a successful call. */
#define ALLOCATE(size, ordinal, call, kind, handle)                                                                    \
    do {                                                                                                               \
        if (is_off()) return call;                                                                                     \
        struct sair_reservation reservation;                                                                           \
        if (!sair_memory_reserve(&reservation, size, ordinal)) return CUDA_ERROR_OUT_OF_MEMORY;                        \
        CUresult result = call;                                                                                        \
        if (result == CUDA_SUCCESS)                                                                                    \
            sair_memory_keep(&reservation, kind, handle);                                                              \
        else                                                                                                           \
            sair_memory_cancel(&reservation);                                                                          \
        return result;                                                                                                 \
    } while (0)

#define FREE(kind, handle, call)                                                                                       \
    do {                                                                                                               \
        if (is_off()) return call;                                                                                     \
        struct sair_memory_record *record = sair_memory_detach(kind, handle);                                          \
        CUresult result = call;                                                                                        \
        sair_memory_settle(record, result == CUDA_SUCCESS);                                                            \
        return result;                                                                                                 \
    } while (0)

/* A device address may be of either kind: cuMemFree takes stream-ordered allocations and cuMemFreeAsync the others. */
#define FREE_ADDRESS(address, call)                                                                                    \
    do {                                                                                                               \
        if (is_off()) return call;                                                                                     \
        struct sair_memory_record *record = sair_memory_detach(SAIR_MEMORY_POINTER, address);                          \
        if (record == NULL) record = sair_memory_detach(SAIR_MEMORY_ASYNC, address);                                   \
        CUresult result = call;                                                                                        \
        sair_memory_settle(record, result == CUDA_SUCCESS);                                                            \
        return result;                                                                                                 \
    } while (0)

CUresult cuMemAlloc(CUdeviceptr_v1 *ptr, unsigned bytes) {
    CUresult (*real)(CUdeviceptr_v1 *, unsigned) = SAIR_REAL(cuMemAlloc);
    ALLOCATE(round_up(bytes, ALIGNMENT), -1, real(ptr, bytes), SAIR_MEMORY_POINTER, *ptr);
}

CUresult cuMemAlloc_v2(CUdeviceptr *ptr, size_t bytes) {
    CUresult (*real)(CUdeviceptr *, size_t) = SAIR_REAL(cuMemAlloc_v2);
    ALLOCATE(round_up(bytes, ALIGNMENT), -1, real(ptr, bytes), SAIR_MEMORY_POINTER, *ptr);
}

CUresult cuMemAllocPitch(CUdeviceptr_v1 *ptr, unsigned *pitch, unsigned width, unsigned height, unsigned element) {
    CUresult (*real)(CUdeviceptr_v1 *, unsigned *, unsigned, unsigned, unsigned) = SAIR_REAL(cuMemAllocPitch);
    ALLOCATE(times(round_up(width, PITCH_ALIGNMENT), height), -1, real(ptr, pitch, width, height, element),
             SAIR_MEMORY_POINTER, *ptr);
}

CUresult cuMemAllocPitch_v2(CUdeviceptr *ptr, size_t *pitch, size_t width, size_t height, unsigned element) {
    CUresult (*real)(CUdeviceptr *, size_t *, size_t, size_t, unsigned) = SAIR_REAL(cuMemAllocPitch_v2);
    ALLOCATE(times(round_up(width, PITCH_ALIGNMENT), height), -1, real(ptr, pitch, width, height, element),
             SAIR_MEMORY_POINTER, *ptr);
}

CUresult cuMemAllocManaged(CUdeviceptr *ptr, size_t bytes, unsigned flags) {
    CUresult (*real)(CUdeviceptr *, size_t, unsigned) = SAIR_REAL(cuMemAllocManaged);
    ALLOCATE(round_up(bytes, ALIGNMENT), -1, real(ptr, bytes, flags), SAIR_MEMORY_POINTER, *ptr);
}

CUresult cuMemFree(CUdeviceptr_v1 ptr) {
    CUresult (*real)(CUdeviceptr_v1) = SAIR_REAL(cuMemFree);
    sair_streams_close_batches(); /* a free waits for the device */
    FREE(SAIR_MEMORY_POINTER, ptr, real(ptr));
}

CUresult cuMemFree_v2(CUdeviceptr ptr) {
    CUresult (*real)(CUdeviceptr) = SAIR_REAL(cuMemFree_v2);
    sair_streams_close_batches(); /* a free waits for the device */
    FREE_ADDRESS(ptr, real(ptr));
}

/* What is freed while its stream is being captured becomes a node that frees whenever the graph runs: its allocation
 * stays counted, as that of an allocating node does. */
#define ASYNC_HOOKS(twin, per_thread)                                                                                  \
    CUresult cuMemAllocAsync##twin(CUdeviceptr *ptr, size_t bytes, CUstream stream) {                                  \
        CUresult (*real)(CUdeviceptr *, size_t, CUstream) = SAIR_REAL(cuMemAllocAsync##twin);                          \
        ALLOCATE(round_up(bytes, ALIGNMENT), -1, real(ptr, bytes, stream), SAIR_MEMORY_ASYNC, *ptr);                   \
    }                                                                                                                  \
    CUresult cuMemAllocFromPoolAsync##twin(CUdeviceptr *ptr, size_t bytes, CUmemoryPool pool, CUstream stream) {       \
        CUresult (*real)(CUdeviceptr *, size_t, CUmemoryPool, CUstream) = SAIR_REAL(cuMemAllocFromPoolAsync##twin);    \
        ALLOCATE(round_up(bytes, ALIGNMENT), -1, real(ptr, bytes, pool, stream), SAIR_MEMORY_ASYNC, *ptr);             \
    }                                                                                                                  \
    CUresult cuMemFreeAsync##twin(CUdeviceptr ptr, CUstream stream) {                                                  \
        CUresult (*real)(CUdeviceptr, CUstream) = SAIR_REAL(cuMemFreeAsync##twin);                                     \
        if (sair_stream_is_capturing(stream, per_thread)) return real(ptr, stream);                                    \
        FREE_ADDRESS(ptr, real(ptr, stream));                                                                          \
    }

ASYNC_HOOKS(, 0)
ASYNC_HOOKS(_ptsz, 1)

/* A destroyed pool keeps its allocations until they are freed. */
CUresult cuMemPoolDestroy(CUmemoryPool pool) {
    return SAIR_REAL(cuMemPoolDestroy)(pool);
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *prop,
                     unsigned long long flags) {
    CUresult (*real)(CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *, unsigned long long) =
        SAIR_REAL(cuMemCreate);
    if (prop == NULL || prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE) return real(handle, bytes, prop, flags);
    ALLOCATE(bytes, prop->location.id, real(handle, bytes, prop, flags), SAIR_MEMORY_HANDLE, *handle);
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    CUresult (*real)(CUmemGenericAllocationHandle) = SAIR_REAL(cuMemRelease);
    FREE(SAIR_MEMORY_HANDLE, handle, real(handle));
}

CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address) {
    CUresult result = SAIR_REAL(cuMemRetainAllocationHandle)(handle, address);
    if (result == CUDA_SUCCESS && !is_off()) sair_memory_retain(SAIR_MEMORY_HANDLE, *handle);
    return result;
}

CUresult cuMemMap(CUdeviceptr ptr, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
    CUresult result = SAIR_REAL(cuMemMap)(ptr, bytes, offset, handle, flags);
    if (result == CUDA_SUCCESS && !is_off()) sair_memory_map(ptr, bytes, handle);
    return result;
}

CUresult cuMemUnmap(CUdeviceptr ptr, size_t bytes) {
    CUresult result = SAIR_REAL(cuMemUnmap)(ptr, bytes);
    if (result == CUDA_SUCCESS && !is_off()) sair_memory_unmap(ptr, bytes);
    return result;
}

static uint64_t format_bytes(CUarray_format format) {
    switch (format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
        return 1;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
        return 2;
    default:
        return 4; /* 32-bit formats; block-compressed ones take less */
    }
}

static uint64_t at_least_one(size_t value) {
    return value > 0 ? value : 1;
}

static uint64_t array_bytes(size_t width, size_t height, size_t depth, CUarray_format format, unsigned channels) {
    uint64_t row = times(at_least_one(width), format_bytes(format) * at_least_one(channels));
    return times(times(row, at_least_one(height)), at_least_one(depth));
}

/* Sparse and deferred arrays have no memory of their own: what is mapped into them comes from cuMemCreate. */
static int has_memory(const CUDA_ARRAY3D_DESCRIPTOR *d) {
    return (d->Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING)) == 0;
}

CUresult cuArrayCreate(CUarray *array, const CUDA_ARRAY_DESCRIPTOR_v1 *d) {
    CUresult (*real)(CUarray *, const CUDA_ARRAY_DESCRIPTOR_v1 *) = SAIR_REAL(cuArrayCreate);
    if (d == NULL) return real(array, d);
    ALLOCATE(array_bytes(d->Width, d->Height, 1, d->Format, d->NumChannels), -1, real(array, d), SAIR_MEMORY_ARRAY,
             (uint64_t)(uintptr_t)*array);
}

CUresult cuArray3DCreate(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR_v1 *d) {
    CUresult (*real)(CUarray *, const CUDA_ARRAY3D_DESCRIPTOR_v1 *) = SAIR_REAL(cuArray3DCreate);
    if (d == NULL) return real(array, d);
    ALLOCATE(array_bytes(d->Width, d->Height, d->Depth, d->Format, d->NumChannels), -1, real(array, d),
             SAIR_MEMORY_ARRAY, (uint64_t)(uintptr_t)*array);
}

CUresult cuArrayCreate_v2(CUarray *array, const CUDA_ARRAY_DESCRIPTOR *d) {
    CUresult (*real)(CUarray *, const CUDA_ARRAY_DESCRIPTOR *) = SAIR_REAL(cuArrayCreate_v2);
    if (d == NULL) return real(array, d);
    ALLOCATE(array_bytes(d->Width, d->Height, 1, d->Format, d->NumChannels), -1, real(array, d), SAIR_MEMORY_ARRAY,
             (uint64_t)(uintptr_t)*array);
}

CUresult cuArray3DCreate_v2(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR *d) {
    CUresult (*real)(CUarray *, const CUDA_ARRAY3D_DESCRIPTOR *) = SAIR_REAL(cuArray3DCreate_v2);
    if (d == NULL || !has_memory(d)) return real(array, d);
    ALLOCATE(array_bytes(d->Width, d->Height, d->Depth, d->Format, d->NumChannels), -1, real(array, d),
             SAIR_MEMORY_ARRAY, (uint64_t)(uintptr_t)*array);
}

CUresult cuArrayDestroy(CUarray array) {
    CUresult (*real)(CUarray) = SAIR_REAL(cuArrayDestroy);
    FREE(SAIR_MEMORY_ARRAY, (uint64_t)(uintptr_t)array, real(array));
}

static uint64_t mipmap_bytes(const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned levels) {
    uint64_t sum = 0;
    size_t width = d->Width, height = d->Height, depth = d->Depth;
    int is_layered = (d->Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP)) != 0;
    for (unsigned level = 0; level < levels && level < 64; level++) {
        uint64_t bytes = array_bytes(width, height, depth, d->Format, d->NumChannels);
        sum = sum > UINT64_MAX - bytes ? UINT64_MAX : sum + bytes;
        width /= 2;
        height /= 2;
        if (!is_layered) depth /= 2;
        if (width + height == 0) break;
    }
    return sum;
}

CUresult cuMipmappedArrayCreate(CUmipmappedArray *array, const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned levels) {
    CUresult (*real)(CUmipmappedArray *, const CUDA_ARRAY3D_DESCRIPTOR *, unsigned) = SAIR_REAL(cuMipmappedArrayCreate);
    if (d == NULL || !has_memory(d)) return real(array, d, levels);
    ALLOCATE(mipmap_bytes(d, levels), -1, real(array, d, levels), SAIR_MEMORY_MIPMAP, (uint64_t)(uintptr_t)*array);
}

CUresult cuMipmappedArrayDestroy(CUmipmappedArray array) {
    CUresult (*real)(CUmipmappedArray) = SAIR_REAL(cuMipmappedArrayDestroy);
    FREE(SAIR_MEMORY_MIPMAP, (uint64_t)(uintptr_t)array, real(array));
}

CUresult cuImportExternalMemory(CUexternalMemory *memory, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *d) {
    CUresult (*real)(CUexternalMemory *, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *) = SAIR_REAL(cuImportExternalMemory);
    if (d == NULL) return real(memory, d);
    ALLOCATE(d->size, -1, real(memory, d), SAIR_MEMORY_EXTERNAL, (uint64_t)(uintptr_t)*memory);
}

CUresult cuDestroyExternalMemory(CUexternalMemory memory) {
    CUresult (*real)(CUexternalMemory) = SAIR_REAL(cuDestroyExternalMemory);
    FREE(SAIR_MEMORY_EXTERNAL, (uint64_t)(uintptr_t)memory, real(memory));
}

/* The node allocates when its graph runs. It is charged from its creation on, to the process: the graphs it may be
 * cloned into share one address, and none of them can be told from here to be the last. */
CUresult cuGraphAddMemAllocNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                                CUDA_MEM_ALLOC_NODE_PARAMS *params) {
    CUresult (*real)(CUgraphNode *, CUgraph, const CUgraphNode *, size_t, CUDA_MEM_ALLOC_NODE_PARAMS *) =
        SAIR_REAL(cuGraphAddMemAllocNode);
    if (params == NULL) return real(node, graph, dependencies, count, params);
    ALLOCATE(round_up(params->bytesize, ALIGNMENT), -1, real(node, graph, dependencies, count, params),
             SAIR_MEMORY_ASYNC, params->dptr);
}

static int allocates(const CUgraphNodeParams *params) {
    return params != NULL && params->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC;
}

CUresult cuGraphAddNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                        CUgraphNodeParams *params) {
    CUresult (*real)(CUgraphNode *, CUgraph, const CUgraphNode *, size_t, CUgraphNodeParams *) =
        SAIR_REAL(cuGraphAddNode);
    if (!allocates(params)) return real(node, graph, dependencies, count, params);
    ALLOCATE(round_up(params->of.alloc.bytesize, ALIGNMENT), -1, real(node, graph, dependencies, count, params),
             SAIR_MEMORY_ASYNC, params->of.alloc.dptr);
}

CUresult cuGraphAddNode_v2(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, const void *edges,
                           size_t count, CUgraphNodeParams *params) {
    CUresult (*real)(CUgraphNode *, CUgraph, const CUgraphNode *, const void *, size_t, CUgraphNodeParams *) =
        SAIR_REAL(cuGraphAddNode_v2);
    if (!allocates(params)) return real(node, graph, dependencies, edges, count, params);
    ALLOCATE(round_up(params->of.alloc.bytesize, ALIGNMENT), -1, real(node, graph, dependencies, edges, count, params),
             SAIR_MEMORY_ASYNC, params->of.alloc.dptr);
}

/* What the card has beside the grant does not concern the program: it sees a card of the granted size. */
static void confine(uint64_t limit, const struct sair_device *device, uint64_t *available, uint64_t *total) {
    uint64_t used = sair_memory_used(device), left = used < limit ? limit - used : 0;
    if (limit < *total) *total = limit;
    if (left < *available) *available = left;
}

#define MEM_GET_INFO_HOOK(symbol, type)                                                                                \
    CUresult symbol(type *available, type *total) {                                                                    \
        CUresult result = SAIR_REAL(symbol)(available, total);                                                         \
        uint64_t limit = sair_memory_limit();                                                                          \
        if (result != CUDA_SUCCESS || limit == 0) return result;                                                       \
        struct sair_device *device = sair_device_current();                                                            \
        if (device == NULL) return result;                                                                             \
        uint64_t a = *available, t = *total;                                                                           \
        confine(limit, device, &a, &t);                                                                                \
        *available = (type)a;                                                                                          \
        *total = (type)t;                                                                                              \
        return result;                                                                                                 \
    }

MEM_GET_INFO_HOOK(cuMemGetInfo, unsigned)
MEM_GET_INFO_HOOK(cuMemGetInfo_v2, size_t)

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice ordinal) {
    CUresult result = SAIR_REAL(cuDeviceTotalMem_v2)(bytes, ordinal);
    uint64_t limit = sair_memory_limit();
    if (result == CUDA_SUCCESS && limit != 0 && limit < *bytes) *bytes = (size_t)limit;
    return result;
}

CUresult cuDeviceTotalMem(unsigned *bytes, CUdevice ordinal) {
    CUresult result = SAIR_REAL(cuDeviceTotalMem)(bytes, ordinal);
    uint64_t limit = sair_memory_limit();
    if (result == CUDA_SUCCESS && limit != 0 && limit < *bytes) *bytes = (unsigned)limit;
    return result;
}
