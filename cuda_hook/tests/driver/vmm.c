/* Virtual memory management: physical handles, reserved addresses, and mappings of the one into the other. */
#include "driver.h"

#include <stdlib.h>
#include <sys/mman.h>

#define VMM_GRAIN ((size_t)2 << 20)

struct physical {
    size_t bytes;
    int device;
    unsigned references, maps;
};

/* At an address, into an array or at an offset of a multicast object. */
struct mapping {
    CUdeviceptr pointer;
    const void *array;
    CUmemGenericAllocationHandle multicast;
    size_t bytes;
    struct physical *physical;
    struct mapping *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct mapping *mappings;

static void release_physical(struct physical *p) {
    if (p->references > 0 || p->maps > 0) return;
    simgpu_memory_give(p->device, p->bytes);
    free(p);
}

SIM_EXPORT CUresult cuMemGetAllocationGranularity(size_t *grain, const CUmemAllocationProp *prop, int option) {
    (void)prop, (void)option;
    *grain = VMM_GRAIN;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *prop,
                                unsigned long long flags) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (handle == NULL || prop == NULL || flags != 0 || bytes == 0 || bytes % VMM_GRAIN != 0)
        return CUDA_ERROR_INVALID_VALUE;
    struct physical *p = calloc(1, sizeof *p);
    if (p == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    p->device = prop->location.id;
    p->bytes =
        prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE ? bytes : 0; /* host-located memory is not the card's */
    p->references = 1;
    if (!simgpu_memory_take(p->device, p->bytes)) {
        free(p);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *handle = (CUmemGenericAllocationHandle)(uintptr_t)p;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    struct physical *p = (struct physical *)(uintptr_t)handle;
    if (p == NULL || p->references == 0) return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    p->references--;
    release_physical(p);
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemAddressReserve(CUdeviceptr *pointer, size_t bytes, size_t alignment, CUdeviceptr address,
                                        unsigned long long flags) {
    (void)address, (void)flags;
    size_t align = alignment < VMM_GRAIN ? VMM_GRAIN : alignment;
    CUdeviceptr base = sim_memory_map(bytes + align, PROT_NONE, false);
    if (base == 0) return CUDA_ERROR_OUT_OF_MEMORY;
    CUdeviceptr aligned = (base + align - 1) / align * align;
    if (aligned > base) munmap((void *)(uintptr_t)base, aligned - base);
    if (base + align > aligned) munmap((void *)(uintptr_t)(aligned + bytes), base + align - aligned);
    *pointer = aligned;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemAddressFree(CUdeviceptr pointer, size_t bytes) {
    return munmap((void *)(uintptr_t)pointer, bytes) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
static CUresult map_in(struct mapping what) {
    struct mapping *m = malloc(sizeof *m);
    if (m == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    what.physical->maps++;
    what.next = mappings;
    *m = what;
    mappings = m;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

/* Caller holds the lock. */
static void map_out(struct mapping **at) {
    struct mapping *m = *at;
    *at = m->next;
    m->physical->maps--;
    release_physical(m->physical);
    free(m);
}

SIM_EXPORT CUresult cuMemMap(CUdeviceptr pointer, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                             unsigned long long flags) {
    struct physical *p = (struct physical *)(uintptr_t)handle;
    if (p == NULL || offset != 0 || flags != 0 || pointer % VMM_GRAIN != 0) return CUDA_ERROR_INVALID_VALUE;
    return map_in((struct mapping){.pointer = pointer, .bytes = bytes, .physical = p});
}
SIM_EXPORT CUresult cuMemUnmap(CUdeviceptr pointer, size_t bytes) {
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (struct mapping **at = &mappings; *at != NULL;) {
        struct mapping *m = *at;
        if (m->pointer == 0 || m->pointer < pointer || m->pointer + m->bytes > pointer + bytes) {
            at = &m->next;
            continue;
        }
        map_out(at);
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return result;
}
SIM_EXPORT CUresult cuMemSetAccess(CUdeviceptr pointer, size_t bytes, const void *access, size_t count) {
    (void)access, (void)count;
    return mprotect((void *)(uintptr_t)pointer, bytes, PROT_READ | PROT_WRITE) == 0 ? CUDA_SUCCESS
                                                                                    : CUDA_ERROR_INVALID_VALUE;
}
SIM_EXPORT CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address) {
    CUdeviceptr pointer = (CUdeviceptr)(uintptr_t)address;
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (struct mapping *m = mappings; m != NULL && result != CUDA_SUCCESS; m = m->next) {
        if (m->pointer == 0 || pointer < m->pointer || pointer >= m->pointer + m->bytes) continue;
        m->physical->references++;
        *handle = (CUmemGenericAllocationHandle)(uintptr_t)m->physical;
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

/* ---- other uses of physical memory ---- */

/* A file descriptor keeps what it names; here none is ever closed. */
SIM_EXPORT CUresult cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle, int type,
                                                 unsigned long long flags) {
    struct physical *p = (struct physical *)(uintptr_t)handle;
    if (shareable == NULL || p == NULL || type != 1 || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    p->references++;
    pthread_mutex_unlock(&lock);
    *(int *)shareable = 0;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemMapArrayAsync(CUarrayMapInfo *list, unsigned count, CUstream stream) {
    (void)stream;
    for (unsigned i = 0; i < count; i++) {
        const void *array = (const void *)(uintptr_t)list[i].resource;
        struct physical *p = (struct physical *)(uintptr_t)list[i].memHandle;
        if (list[i].memOperationType != CU_MEM_OPERATION_TYPE_MAP || p == NULL) return CUDA_ERROR_INVALID_VALUE;
        CUresult result = map_in((struct mapping){.array = array, .physical = p});
        if (result != CUDA_SUCCESS) return result;
    }
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMemMapArrayAsync_ptsz(CUarrayMapInfo *list, unsigned count, CUstream stream) {
    return cuMemMapArrayAsync(list, count, stream);
}
void sim_vmm_drop_array(const void *array) {
    pthread_mutex_lock(&lock);
    for (struct mapping **at = &mappings; *at != NULL;)
        if ((*at)->array == array)
            map_out(at);
        else
            at = &(*at)->next;
    pthread_mutex_unlock(&lock);
}

/* A multicast object has no memory of its own. */
SIM_EXPORT CUresult cuMulticastCreate(CUmemGenericAllocationHandle *handle, const void *props) {
    if (handle == NULL || props == NULL) return CUDA_ERROR_INVALID_VALUE;
    struct physical *p = calloc(1, sizeof *p);
    if (p == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    p->references = 1;
    *handle = (CUmemGenericAllocationHandle)(uintptr_t)p;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMulticastBindMem(CUmemGenericAllocationHandle multicast, size_t offset,
                                       CUmemGenericAllocationHandle handle, size_t handle_offset, size_t bytes,
                                       unsigned long long flags) {
    struct physical *p = (struct physical *)(uintptr_t)handle;
    if (multicast == 0 || p == NULL || offset != 0 || handle_offset != 0 || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    return map_in((struct mapping){.multicast = multicast, .bytes = bytes, .physical = p});
}
SIM_EXPORT CUresult cuMulticastBindAddr(CUmemGenericAllocationHandle multicast, size_t offset, CUdeviceptr pointer,
                                        size_t bytes, unsigned long long flags) {
    CUmemGenericAllocationHandle handle;
    CUresult result = cuMemRetainAllocationHandle(&handle, (void *)(uintptr_t)pointer);
    if (result != CUDA_SUCCESS) return result;
    result = cuMulticastBindMem(multicast, offset, handle, 0, bytes, flags);
    cuMemRelease(handle);
    return result;
}
SIM_EXPORT CUresult cuMulticastUnbind(CUmemGenericAllocationHandle multicast, CUdevice device, size_t offset,
                                      size_t bytes) {
    (void)device, (void)offset, (void)bytes;
    pthread_mutex_lock(&lock);
    for (struct mapping **at = &mappings; *at != NULL;)
        if ((*at)->multicast == multicast)
            map_out(at);
        else
            at = &(*at)->next;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}
