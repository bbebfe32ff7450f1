/* Arrays, mipmapped arrays and memory imported from other interfaces. */
#include "driver.h"

#include <stdlib.h>

#define GRAIN ((size_t)512)

struct CUarray_st {
    size_t bytes;
    CUcontext context;
    struct CUarray_st *next;
};
struct CUmipmappedArray_st {
    struct CUarray_st array;
};
struct CUextMemory_st {
    size_t bytes;
    int device;
};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct CUarray_st *arrays;

static size_t rounded(size_t bytes, size_t grain) {
    return (bytes + grain - 1) / grain * grain;
}

void sim_arrays_drop_context(CUcontext context) {
    pthread_mutex_lock(&lock);
    for (struct CUarray_st **at = &arrays; *at != NULL;) {
        struct CUarray_st *array = *at;
        if (array->context != context) {
            at = &array->next;
            continue;
        }
        *at = array->next;
        sim_memory_give(context->device, array->bytes);
        free(array);
    }
    pthread_mutex_unlock(&lock);
}

static size_t texel_bytes(CUarray_format format, unsigned channels) {
    size_t element =
        format == CU_AD_FORMAT_UNSIGNED_INT8 || format == CU_AD_FORMAT_SIGNED_INT8 ? 1
        : format == CU_AD_FORMAT_UNSIGNED_INT32 || format == CU_AD_FORMAT_SIGNED_INT32 || format == CU_AD_FORMAT_FLOAT
            ? 4
            : 2;
    return element * channels;
}

static CUresult array_new(CUarray *out, size_t bytes, size_t struct_bytes) {
    CUcontext context;
    CUresult result = sim_memory_enter(&context);
    if (result != CUDA_SUCCESS) return result;
    bytes = rounded(bytes, GRAIN);
    CUarray array = calloc(1, struct_bytes);
    if (array == NULL || !sim_memory_take(context->device, bytes)) {
        free(array);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    array->bytes = bytes;
    array->context = context;
    pthread_mutex_lock(&lock);
    array->next = arrays;
    arrays = array;
    pthread_mutex_unlock(&lock);
    *out = array;
    return CUDA_SUCCESS;
}

static size_t array_bytes(const CUDA_ARRAY3D_DESCRIPTOR *d) {
    size_t height = d->Height == 0 ? 1 : d->Height, depth = d->Depth == 0 ? 1 : d->Depth;
    return d->Width * height * depth * texel_bytes(d->Format, d->NumChannels);
}

SIM_EXPORT CUresult cuArray3DCreate_v2(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR *d) {
    if (array == NULL || d == NULL || d->Width == 0) return CUDA_ERROR_INVALID_VALUE;
    /* Sparse and deferred arrays get their memory mapped later. */
    bool unbacked = (d->Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING)) != 0;
    return array_new(array, unbacked ? 0 : array_bytes(d), sizeof **array);
}
SIM_EXPORT CUresult cuArrayCreate_v2(CUarray *array, const CUDA_ARRAY_DESCRIPTOR *d) {
    if (d == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUDA_ARRAY3D_DESCRIPTOR full = {d->Width, d->Height, 0, d->Format, d->NumChannels, 0};
    return cuArray3DCreate_v2(array, &full);
}
SIM_EXPORT CUresult cuArray3DCreate(CUarray *array, const CUDA_ARRAY3D_DESCRIPTOR_v1 *d) {
    if (d == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUDA_ARRAY3D_DESCRIPTOR wide = {d->Width, d->Height, d->Depth, d->Format, d->NumChannels, d->Flags};
    return cuArray3DCreate_v2(array, &wide);
}
SIM_EXPORT CUresult cuArrayCreate(CUarray *array, const CUDA_ARRAY_DESCRIPTOR_v1 *d) {
    if (d == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUDA_ARRAY_DESCRIPTOR wide = {d->Width, d->Height, d->Format, d->NumChannels};
    return cuArrayCreate_v2(array, &wide);
}
SIM_EXPORT CUresult cuArrayDestroy(CUarray array) {
    if (array == NULL) return CUDA_ERROR_INVALID_HANDLE;
    bool known = false;
    pthread_mutex_lock(&lock);
    for (CUarray *at = &arrays; *at != NULL && !known; at = &(*at)->next) {
        if (*at != array) continue;
        *at = array->next;
        known = true;
        break;
    }
    pthread_mutex_unlock(&lock);
    if (!known) return CUDA_ERROR_INVALID_HANDLE;
    sim_vmm_drop_array(array);
    sim_memory_give(array->context->device, array->bytes);
    free(array);
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuMipmappedArrayCreate(CUmipmappedArray *out, const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned levels) {
    if (out == NULL || d == NULL || d->Width == 0 || levels == 0) return CUDA_ERROR_INVALID_VALUE;
    size_t bytes = 0;
    CUDA_ARRAY3D_DESCRIPTOR level = *d;
    for (unsigned i = 0; i < levels; i++) {
        bytes += array_bytes(&level);
        level.Width = level.Width > 1 ? level.Width / 2 : 1;
        level.Height = level.Height > 1 ? level.Height / 2 : level.Height;
        level.Depth = level.Depth > 1 ? level.Depth / 2 : level.Depth;
    }
    CUarray array = NULL;
    CUresult result = array_new(&array, bytes, sizeof(struct CUmipmappedArray_st));
    if (result == CUDA_SUCCESS) *out = (CUmipmappedArray)array;
    return result;
}
SIM_EXPORT CUresult cuMipmappedArrayDestroy(CUmipmappedArray array) { return cuArrayDestroy((CUarray)array); }

SIM_EXPORT CUresult cuImportExternalMemory(CUexternalMemory *out, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *d) {
    CUcontext context;
    CUresult result = sim_memory_enter(&context);
    if (result != CUDA_SUCCESS) return result;
    if (out == NULL || d == NULL || d->size == 0) return CUDA_ERROR_INVALID_VALUE;
    CUexternalMemory memory = calloc(1, sizeof *memory);
    if (memory == NULL || !sim_memory_take(context->device, d->size)) {
        free(memory);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    memory->bytes = d->size;
    memory->device = context->device;
    *out = memory;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuDestroyExternalMemory(CUexternalMemory memory) {
    if (memory == NULL) return CUDA_ERROR_INVALID_HANDLE;
    sim_memory_give(memory->device, memory->bytes);
    free(memory);
    return CUDA_SUCCESS;
}
