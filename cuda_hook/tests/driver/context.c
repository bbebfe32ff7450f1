/* Initialisation, devices and contexts. */
#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STACK_DEPTH 64

bool sim_null_mode;
_Thread_local uint64_t sim_null_ns;

static bool initialised, forked;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct CUctx_st primary[SIMGPU_DEVICES];
static CUcontext contexts[SIMGPU_CONTEXTS];
static uint64_t next_context_id = 1;
static _Thread_local CUcontext stack[STACK_DEPTH];
static _Thread_local int depth;

static void in_child(void) {
    if (initialised) forked = true;
}

CUresult sim_ready(void) {
    return initialised && !forked ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

static bool is_device(CUdevice device) {
    struct simgpu_shared *s = simgpu_attach();
    return s != NULL && device >= 0 && device < (int)s->config.devices;
}

SIM_EXPORT CUresult cuInit(unsigned flags) {
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (forked) return CUDA_ERROR_NOT_INITIALIZED;
    if (initialised) return CUDA_SUCCESS;
    pthread_mutex_lock(&lock);
    CUresult result = CUDA_SUCCESS;
    if (!initialised) {
        if (simgpu_register() < 0) {
            result = CUDA_ERROR_NO_DEVICE;
        } else {
            const char *null = getenv("SAIR_SIMGPU_NULL");
            sim_null_mode = null != NULL && *null == '1';
            pthread_atfork(NULL, NULL, in_child);
            initialised = true;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

SIM_EXPORT CUresult cuDriverGetVersion(int *version) {
    if (version == NULL) return CUDA_ERROR_INVALID_VALUE;
    *version = SIM_DRIVER_VERSION;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetCount(int *count) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    *count = (int)simgpu_attach()->config.devices;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!is_device(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!is_device(device) || length < 1) return CUDA_ERROR_INVALID_DEVICE;
    snprintf(name, (size_t)length, "Simulated GPU %d", device);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    memcpy(uuid->bytes, "SAIR-SIM-GPU-\0\0", 16);
    uuid->bytes[15] = (char)device;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    return cuDeviceGetUuid(uuid, device);
}

SIM_EXPORT CUresult cuDeviceGetPCIBusId(char *text, int length, CUdevice device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    snprintf(text, (size_t)length, "0000:%02x:00.0", device + 1);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    *bytes = simgpu_attach()->devices[device].memory_bytes;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceTotalMem(unsigned *bytes, CUdevice device) {
    size_t wide;
    CUresult result = cuDeviceTotalMem_v2(&wide, device);
    if (result == CUDA_SUCCESS) *bytes = wide > UINT32_MAX ? UINT32_MAX : (unsigned)wide;
    return result;
}

static int attribute(int which) {
    switch (which) {
    case 1: return (int)SIM_BLOCK_THREADS;
    case 10: return 32;                     /* warp */
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return SIMGPU_SM;
    case 39: return 2048;                   /* threads per SM */
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return 9;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return 0;
    case 31: case 41: case 83: case 89: case 95: case 96: case 102: case 115: return 1; /* features present */
    default: return 0;
    }
}

SIM_EXPORT CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    *value = attribute(which);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer) {
    if (!is_device(device) || !is_device(peer)) return CUDA_ERROR_INVALID_DEVICE;
    *can = device != peer;
    return CUDA_SUCCESS;
}

/* ---- contexts ---- */

bool sim_context_is_valid(CUcontext context) {
    for (int i = 0; i < SIMGPU_CONTEXTS; i++)
        if (contexts[i] == context) return context != NULL;
    return false;
}

CUcontext sim_current(void) {
    return depth > 0 ? stack[depth - 1] : NULL;
}

static CUresult open_context(CUcontext context, CUdevice device, unsigned flags) {
    context->slot = simgpu_context_open(device);
    if (context->slot < 0) return CUDA_ERROR_OUT_OF_MEMORY;
    context->device = device;
    context->flags = flags;
    context->id = next_context_id++;
    context->streams = NULL;
    context->legacy = sim_stream_new(context, CU_STREAM_DEFAULT, 0, true);
    for (int i = 0; i < SIMGPU_CONTEXTS; i++) {
        if (contexts[i] != NULL) continue;
        contexts[i] = context;
        break;
    }
    return context->legacy == NULL ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

static void close_context(CUcontext context) {
    sim_memory_drop_context(context);
    sim_context_streams_free(context);
    simgpu_context_close(context->slot);
    for (int i = 0; i < SIMGPU_CONTEXTS; i++)
        if (contexts[i] == context) contexts[i] = NULL;
    int kept = 0;
    for (int i = 0; i < depth; i++)
        if (stack[i] != context) stack[kept++] = stack[i];
    depth = kept;
}

SIM_EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *out, CUdevice device) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&lock);
    CUcontext context = &primary[device];
    CUresult result = CUDA_SUCCESS;
    if (context->retained == 0) {
        context->primary = true;
        result = open_context(context, device, context->flags);
    }
    if (result == CUDA_SUCCESS) {
        context->retained++;
        *out = context;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

static CUresult primary_release(CUdevice device, bool reset) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&lock);
    CUcontext context = &primary[device];
    CUresult result = CUDA_SUCCESS;
    if (context->retained == 0)
        result = reset ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
    else if (reset || context->retained == 1) {
        context->retained = 0;
        close_context(context);
    } else
        context->retained--;
    pthread_mutex_unlock(&lock);
    return result;
}

SIM_EXPORT CUresult cuDevicePrimaryCtxRelease(CUdevice device) { return primary_release(device, false); }
SIM_EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) { return primary_release(device, false); }
SIM_EXPORT CUresult cuDevicePrimaryCtxReset(CUdevice device) { return primary_release(device, true); }
SIM_EXPORT CUresult cuDevicePrimaryCtxReset_v2(CUdevice device) { return primary_release(device, true); }

SIM_EXPORT CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned flags) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    primary[device].flags = flags;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuDevicePrimaryCtxSetFlags(CUdevice device, unsigned flags) {
    return cuDevicePrimaryCtxSetFlags_v2(device, flags);
}

SIM_EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    *flags = primary[device].flags;
    *active = primary[device].retained > 0;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!sim_context_is_valid(context) || depth == STACK_DEPTH) return CUDA_ERROR_INVALID_CONTEXT;
    stack[depth++] = context;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuCtxPushCurrent(CUcontext context) { return cuCtxPushCurrent_v2(context); }

SIM_EXPORT CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (depth == 0) return CUDA_ERROR_INVALID_CONTEXT;
    CUcontext popped = stack[--depth];
    if (context != NULL) *context = popped;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuCtxPopCurrent(CUcontext *context) { return cuCtxPopCurrent_v2(context); }

SIM_EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (context == NULL) {
        if (depth > 0) depth--;
        return CUDA_SUCCESS;
    }
    if (!sim_context_is_valid(context)) return CUDA_ERROR_INVALID_CONTEXT;
    if (depth == 0) depth = 1;
    stack[depth - 1] = context;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetCurrent(CUcontext *context) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    *context = sim_current();
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetDevice(CUdevice *device) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    CUcontext context = sim_current();
    if (context == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    *device = context->device;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxCreate_v2(CUcontext *out, unsigned flags, CUdevice device) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    CUresult result = sim_unsafe();
    if (result != CUDA_SUCCESS) return result;
    CUcontext context = calloc(1, sizeof *context);
    if (context == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    result = open_context(context, device, flags);
    pthread_mutex_unlock(&lock);
    if (result != CUDA_SUCCESS) {
        free(context);
        return result;
    }
    *out = context;
    return cuCtxPushCurrent_v2(context);
}
SIM_EXPORT CUresult cuCtxCreate(CUcontext *out, unsigned flags, CUdevice device) {
    return cuCtxCreate_v2(out, flags, device);
}
SIM_EXPORT CUresult cuCtxCreate_v3(CUcontext *out, void *affinity, int count, unsigned flags, CUdevice device) {
    (void)affinity, (void)count;
    return cuCtxCreate_v2(out, flags, device);
}
SIM_EXPORT CUresult cuCtxCreate_v4(CUcontext *out, void *params, unsigned flags, CUdevice device) {
    (void)params;
    return cuCtxCreate_v2(out, flags, device);
}

SIM_EXPORT CUresult cuCtxDestroy_v2(CUcontext context) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!sim_context_is_valid(context) || context->primary) return CUDA_ERROR_INVALID_CONTEXT;
    pthread_mutex_lock(&lock);
    close_context(context);
    pthread_mutex_unlock(&lock);
    free(context);
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuCtxDestroy(CUcontext context) { return cuCtxDestroy_v2(context); }

static CUresult synchronize(CUcontext context) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (context == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    CUresult result = sim_unsafe();
    if (result != CUDA_SUCCESS) return result;
    for (CUstream stream = context->streams; stream != NULL; stream = stream->next)
        if (stream->capture != NULL) return sim_capture_refuse(stream);
    if (!sim_null_mode) simgpu_context_wait(context->slot);
    sim_memory_synchronized();
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuCtxSynchronize(void) { return synchronize(sim_current()); }
SIM_EXPORT CUresult cuCtxSynchronize_v2(CUcontext context) {
    return synchronize(context == NULL ? sim_current() : context);
}

SIM_EXPORT CUresult cuCtxGetFlags(unsigned *flags) {
    if (sim_current() == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    *flags = sim_current()->flags;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuCtxGetId(CUcontext context, unsigned long long *id) {
    if (context == NULL) context = sim_current();
    if (context == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    *id = context->id;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuCtxGetApiVersion(CUcontext context, unsigned *version) {
    (void)context;
    *version = 3020;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    if (least != NULL) *least = 0;
    if (greatest != NULL) *greatest = -5;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuCtxGetLimit(size_t *value, int limit) {
    (void)limit;
    *value = 0;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuCtxSetLimit(int limit, size_t value) {
    (void)limit, (void)value;
    return CUDA_SUCCESS;
}
