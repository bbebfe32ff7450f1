/* Contexts that end otherwise than by cuCtxDestroy: attached ones and green ones. */
#include "driver.h"

#include <stdlib.h>

extern CUresult cuCtxCreate_v2(CUcontext *out, unsigned flags, CUdevice device);
extern CUresult cuCtxDestroy_v2(CUcontext context);
extern CUresult cuCtxPopCurrent_v2(CUcontext *context);

SIM_EXPORT CUresult cuCtxAttach(CUcontext *out, unsigned flags) {
    if (sim_current() == NULL || flags != 0) return CUDA_ERROR_INVALID_CONTEXT;
    *out = sim_current();
    (*out)->attached++;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuCtxDetach(CUcontext context) {
    if (!sim_context_is_valid(context)) return CUDA_ERROR_INVALID_CONTEXT;
    return context->attached > 0 ? (context->attached--, CUDA_SUCCESS) : cuCtxDestroy_v2(context);
}

/* A green context holds a part of the multiprocessors; here it holds all of them. */
struct CUgreenCtx_st {
    CUcontext context;
};
SIM_EXPORT CUresult cuGreenCtxCreate(struct CUgreenCtx_st **out, const void *resources, CUdevice device,
                                     unsigned flags) {
    (void)resources, (void)flags;
    struct CUgreenCtx_st *green = calloc(1, sizeof *green);
    if (green == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = cuCtxCreate_v2(&green->context, 0, device);
    if (result != CUDA_SUCCESS) {
        free(green);
        return result;
    }
    *out = green;
    return cuCtxPopCurrent_v2(NULL);
}
SIM_EXPORT CUresult cuGreenCtxDestroy(struct CUgreenCtx_st *green) {
    if (green == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUresult result = cuCtxDestroy_v2(green->context);
    free(green);
    return result;
}
SIM_EXPORT CUresult cuCtxFromGreenCtx(CUcontext *out, struct CUgreenCtx_st *green) {
    if (green == NULL) return CUDA_ERROR_INVALID_VALUE;
    *out = green->context;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuGreenCtxStreamCreate(CUstream *out, struct CUgreenCtx_st *green, unsigned flags, int priority) {
    if (green == NULL || (flags & CU_STREAM_NON_BLOCKING) == 0) return CUDA_ERROR_INVALID_VALUE;
    *out = sim_stream_new(green->context, flags, priority, false);
    return *out == NULL ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}
