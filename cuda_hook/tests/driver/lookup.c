/* cuGetProcAddress in both ABIs, and error names. */
#include "driver.h"

#include <string.h>

enum streams { ONE, LEGACY, THREAD };

#define SIM_SYMBOL(symbol, base, since, streams) extern void sim_address_##symbol(void) __asm__(#symbol);
#include "symbols.def"
#undef SIM_SYMBOL

struct symbol {
    const char *base;
    int since;
    enum streams streams;
    void (*address)(void);
};

/* What no symbol of the library names: an ABI of a later driver, and an alias of a function that is exported too. */
static CUresult event_synchronize_v3(CUevent event, uint64_t timeout_ns) {
    (void)event;
    return timeout_ns == 0 ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}
extern CUresult cuGraphNodeSetEnabled(CUgraphExec exec, CUgraphNode node, unsigned enabled);
static CUresult node_set_enabled(CUgraphExec exec, CUgraphNode node, unsigned enabled) {
    return cuGraphNodeSetEnabled(exec, node, enabled);
}

static const struct symbol symbols[] = {

#define SIM_SYMBOL(symbol, base, since, streams) {base, since, streams, sim_address_##symbol},
#include "symbols.def"
#undef SIM_SYMBOL
    {"cuEventSynchronize", 99000, ONE, (void (*)(void))event_synchronize_v3},
    {"cuGraphNodeSetEnabled", 11060, ONE, (void (*)(void))node_set_enabled},
};

static const struct symbol *find(const char *name, int version, bool per_thread, bool *known) {
    const struct symbol *best = NULL;
    *known = false;
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        const struct symbol *s = &symbols[i];
        if (strcmp(s->base, name) != 0) continue;
        *known = true;
        if (s->since > version || s->streams == (per_thread ? LEGACY : THREAD)) continue;
        if (best == NULL || s->since >= best->since) best = s;
    }
    /* Asked for the per-thread twin at a version that had only the other: that one is the answer. */
    return best == NULL && per_thread ? find(name, version, false, known) : best;
}

SIM_EXPORT CUresult cuGetProcAddress_v2(const char *name, void **pfn, int version, cuuint64_t flags,
                                        CUdriverProcAddressQueryResult *status) {
    if (name == NULL || pfn == NULL || flags > 2) return CUDA_ERROR_INVALID_VALUE;
    bool known;
    const struct symbol *s = find(name, version, flags == CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, &known);
    *pfn = NULL;
    if (status != NULL)
        *status = s != NULL ? CU_GET_PROC_ADDRESS_SUCCESS
                  : known   ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
                            : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    if (s != NULL) memcpy(pfn, &s->address, sizeof *pfn);
    /* With a status to tell it by, a missing symbol is no error of the call. */
    return s != NULL || status != NULL ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
SIM_EXPORT CUresult cuGetProcAddress(const char *name, void **pfn, int version, cuuint64_t flags) {
    return cuGetProcAddress_v2(name, pfn, version, flags, NULL);
}

static const struct {
    CUresult code;
    const char *name, *text;
} errors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {SIM_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {401, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {SIM_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE",
     "too many blocks in cooperative launch"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {CUDA_ERROR_CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT",
     "operation not permitted on an event last recorded in a capturing stream"},
};

static CUresult describe(CUresult code, const char **text, bool name) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        if (errors[i].code != code) continue;
        *text = name ? errors[i].name : errors[i].text;
        return CUDA_SUCCESS;
    }
    *text = NULL;
    return CUDA_ERROR_INVALID_VALUE;
}
SIM_EXPORT CUresult cuGetErrorName(CUresult code, const char **text) { return describe(code, text, true); }
SIM_EXPORT CUresult cuGetErrorString(CUresult code, const char **text) { return describe(code, text, false); }
