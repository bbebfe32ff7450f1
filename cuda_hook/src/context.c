/* The contexts of this process, as far as the hook has to tell them apart. */
#include "stream.h"

static CUcontext only_context; /* while the process has one */

CUcontext sair_context_current(void) {
    CUcontext context = SAIR_LOAD(&only_context);
    if (context != NULL && SAIR_LOAD(&sair_process.contexts) <= 1) return context;
    const struct sair_driver *driver = sair_driver();
    context = NULL;
    if (driver != NULL && driver->cuCtxGetCurrent != NULL) (void)driver->cuCtxGetCurrent(&context);
    return context;
}

void sair_context_born(CUcontext context) {
    SAIR_STORE(&only_context, context);
    SAIR_ADD(&sair_process.contexts, 1u);
}

int sair_context_enter(CUcontext context) {
    const struct sair_driver *driver = sair_driver();
    CUcontext current = NULL;
    if (__builtin_expect(SAIR_LOAD(&sair_process.contexts) <= 1, 1) || context == NULL || driver == NULL) return 0;
    if (driver->cuCtxGetCurrent == NULL || driver->cuCtxPushCurrent_v2 == NULL || driver->cuCtxPopCurrent_v2 == NULL)
        return 0;
    if (driver->cuCtxGetCurrent(&current) != CUDA_SUCCESS || current == context) return 0;
    return driver->cuCtxPushCurrent_v2(context) == CUDA_SUCCESS;
}

void sair_context_leave(int was_entered) {
    CUcontext context;
    if (was_entered) (void)sair_driver()->cuCtxPopCurrent_v2(&context);
}

void sair_context_forget(void) {
    only_context = NULL;
}

struct sair_device *sair_stream_device(CUstream handle, int per_thread) {
    if (sair_stream_is_default(handle) || SAIR_LOAD(&sair_process.contexts) <= 1) return sair_device_of_context();
    struct sair_stream *stream = sair_stream_find(handle, per_thread);
    if (stream != NULL && stream->device != NULL) return stream->device;
    struct sair_stream_id id = sair_stream_identify(handle, per_thread);
    int was_entered = sair_context_enter(sair_stream_context(&id));
    struct sair_device *device = sair_device_of_context();
    sair_context_leave(was_entered);
    return device;
}
