/* Linear and physical memory, arrays, external memory, and the queries that report them. Pools and graphs are apart:
 * pool_hooks.c, graph_memory.c. */
#include "memory_body.h"
#include "pool.h"
#include "stream.h"

#define PITCH_ALIGNMENT UINT64_C(512)

static uint64_t round_up(uint64_t bytes, uint64_t to) {
    return bytes > UINT64_MAX - to ? UINT64_MAX : (bytes + to - 1) / to * to;
}

static uint64_t times(uint64_t a, uint64_t b) {
    uint64_t product;
    return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

CUresult cuMemAlloc(CUdeviceptr_v1 *ptr, unsigned bytes) {
    CUresult (*real)(CUdeviceptr_v1 *, unsigned) = SAIR_REAL(cuMemAlloc);
    ALLOCATE(bytes, -1, real(ptr, bytes), SAIR_MEMORY_POINTER, *ptr);
}

CUresult cuMemAlloc_v2(CUdeviceptr *ptr, size_t bytes) {
    CUresult (*real)(CUdeviceptr *, size_t) = SAIR_REAL(cuMemAlloc_v2);
    ALLOCATE(bytes, -1, real(ptr, bytes), SAIR_MEMORY_POINTER, *ptr);
}

/* How wide a row becomes is the driver's to say. */
#define ALLOCATE_PITCH(ptr, pitch, width, height, call, release)                                                       \
    do {                                                                                                               \
        if (sair_memory_is_off()) return call;                                                                         \
        struct sair_reservation reservation;                                                                           \
        if (!sair_memory_reserve(&reservation, times(round_up(width, PITCH_ALIGNMENT), height), -1))                   \
            return CUDA_ERROR_OUT_OF_MEMORY;                                                                           \
        CUresult result = call;                                                                                        \
        if (result == CUDA_SUCCESS && !sair_memory_resize(&reservation, times(*(pitch), height))) {                    \
            (void)release(*(ptr));                                                                                     \
            result = CUDA_ERROR_OUT_OF_MEMORY;                                                                         \
        }                                                                                                              \
        if (result == CUDA_SUCCESS)                                                                                    \
            sair_memory_keep(&reservation, SAIR_MEMORY_POINTER, *(ptr));                                               \
        else                                                                                                           \
            sair_memory_cancel(&reservation);                                                                          \
        return result;                                                                                                 \
    } while (0)

CUresult cuMemAllocPitch(CUdeviceptr_v1 *ptr, unsigned *pitch, unsigned width, unsigned height, unsigned element) {
    CUresult (*real)(CUdeviceptr_v1 *, unsigned *, unsigned, unsigned, unsigned) = SAIR_REAL(cuMemAllocPitch);
    CUresult (*release)(CUdeviceptr_v1) = SAIR_REAL(cuMemFree);
    ALLOCATE_PITCH(ptr, pitch, width, height, real(ptr, pitch, width, height, element), release);
}

CUresult cuMemAllocPitch_v2(CUdeviceptr *ptr, size_t *pitch, size_t width, size_t height, unsigned element) {
    CUresult (*real)(CUdeviceptr *, size_t *, size_t, size_t, unsigned) = SAIR_REAL(cuMemAllocPitch_v2);
    CUresult (*release)(CUdeviceptr) = SAIR_REAL(cuMemFree_v2);
    ALLOCATE_PITCH(ptr, pitch, width, height, real(ptr, pitch, width, height, element), release);
}

CUresult cuMemAllocManaged(CUdeviceptr *ptr, size_t bytes, unsigned flags) {
    CUresult (*real)(CUdeviceptr *, size_t, unsigned) = SAIR_REAL(cuMemAllocManaged);
    ALLOCATE(bytes, -1, real(ptr, bytes, flags), SAIR_MEMORY_POINTER, *ptr);
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
    if (result == CUDA_SUCCESS && !sair_memory_is_off()) sair_memory_retain(SAIR_MEMORY_HANDLE, *handle);
    return result;
}

CUresult cuMemMap(CUdeviceptr ptr, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
    CUresult result = SAIR_REAL(cuMemMap)(ptr, bytes, offset, handle, flags);
    if (result == CUDA_SUCCESS && !sair_memory_is_off()) sair_memory_map(SAIR_MEMORY_MAPPING, ptr, bytes, handle);
    return result;
}

CUresult cuMemUnmap(CUdeviceptr ptr, size_t bytes) {
    CUresult result = SAIR_REAL(cuMemUnmap)(ptr, bytes);
    if (result == CUDA_SUCCESS && !sair_memory_is_off()) sair_memory_unmap(ptr, bytes);
    return result;
}

/* An import elsewhere keeps the memory, for how long cannot be told from here. */
CUresult cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle, int type,
                                      unsigned long long flags) {
    CUresult result = SAIR_REAL(cuMemExportToShareableHandle)(shareable, handle, type, flags);
    if (result == CUDA_SUCCESS && !sair_memory_is_off()) sair_memory_retain(SAIR_MEMORY_HANDLE, handle);
    return result;
}

static uint64_t binding(CUmemGenericAllocationHandle multicast, size_t offset) {
    return multicast * UINT64_C(0x9e3779b97f4a7c15) + offset;
}

CUresult cuMulticastBindMem(CUmemGenericAllocationHandle multicast, size_t offset, CUmemGenericAllocationHandle handle,
                            size_t handle_offset, size_t bytes, unsigned long long flags) {
    CUresult result = SAIR_REAL(cuMulticastBindMem)(multicast, offset, handle, handle_offset, bytes, flags);
    if (result == CUDA_SUCCESS && !sair_memory_is_off())
        sair_memory_map(SAIR_MEMORY_MULTICAST, binding(multicast, offset), bytes, handle);
    return result;
}

CUresult cuMulticastBindAddr(CUmemGenericAllocationHandle multicast, size_t offset, CUdeviceptr ptr, size_t bytes,
                             unsigned long long flags) {
    CUresult result = SAIR_REAL(cuMulticastBindAddr)(multicast, offset, ptr, bytes, flags);
    if (result == CUDA_SUCCESS && !sair_memory_is_off())
        sair_memory_map(SAIR_MEMORY_MULTICAST, binding(multicast, offset), bytes, sair_memory_mapped_at(ptr));
    return result;
}

CUresult cuMulticastUnbind(CUmemGenericAllocationHandle multicast, CUdevice device, size_t offset, size_t bytes) {
    CUresult result = SAIR_REAL(cuMulticastUnbind)(multicast, device, offset, bytes);
    if (result == CUDA_SUCCESS && !sair_memory_is_off())
        sair_memory_unuse(SAIR_MEMORY_MULTICAST, binding(multicast, offset));
    return result;
}

/* What is mapped into a sparse array stays counted until the array is destroyed: unmapping names a region, not memory.
 */
static CUresult mapped_into(CUresult result, const CUarrayMapInfo *list, unsigned count) {
    for (unsigned i = 0; result == CUDA_SUCCESS && i < count && !sair_memory_is_off(); i++)
        if (list[i].memOperationType == CU_MEM_OPERATION_TYPE_MAP)
            sair_memory_map(SAIR_MEMORY_ARRAY_MAP, list[i].resource, 0, list[i].memHandle);
    return result;
}

CUresult cuMemMapArrayAsync(CUarrayMapInfo *list, unsigned count, CUstream stream) {
    return mapped_into(SAIR_REAL(cuMemMapArrayAsync)(list, count, stream), list, count);
}

CUresult cuMemMapArrayAsync_ptsz(CUarrayMapInfo *list, unsigned count, CUstream stream) {
    return mapped_into(SAIR_REAL(cuMemMapArrayAsync_ptsz)(list, count, stream), list, count);
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

/* What was mapped into it is let go as well. */
#define FREE_ARRAY(kind, handle, call)                                                                                 \
    do {                                                                                                               \
        if (sair_memory_is_off()) return call;                                                                         \
        struct sair_memory_record *record = sair_memory_detach(kind, handle);                                          \
        CUresult result = call;                                                                                        \
        sair_memory_settle(record, result == CUDA_SUCCESS);                                                            \
        if (result == CUDA_SUCCESS) sair_memory_unuse(SAIR_MEMORY_ARRAY_MAP, handle);                                  \
        return result;                                                                                                 \
    } while (0)

CUresult cuArrayDestroy(CUarray array) {
    CUresult (*real)(CUarray) = SAIR_REAL(cuArrayDestroy);
    FREE_ARRAY(SAIR_MEMORY_ARRAY, (uint64_t)(uintptr_t)array, real(array));
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
    FREE_ARRAY(SAIR_MEMORY_MIPMAP, (uint64_t)(uintptr_t)array, real(array));
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
        sair_memory_bring_up_to_date(device);                                                                          \
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
