/* Everything that makes the GPU compute. */
#include "graph_memory.h"
#include "limiter.h"

static inline int wants_limit(void) {
    int mode = sair_mode();
    if (__builtin_expect(mode == SAIR_MODE_OFF, 1)) return 0;
    if (mode == SAIR_MODE_LIMIT) return 1;
    sair_limit_count();
    return 0;
}

/* The body of every launch hook: `real` is called exactly once, in between the limiter is asked where it is on. */
#define LIMITED(real, call, key_value, stream, per_thread, is_graph)                                                   \
    do {                                                                                                               \
        if (__builtin_expect(!wants_limit(), 1)) return real call;                                                     \
        struct sair_launch launch;                                                                                     \
        struct sair_key key = key_value;                                                                               \
        sair_limit_charge(&launch, &key, stream, per_thread, is_graph);                                                \
        sair_limit_measure(&launch, stream, per_thread);                                                               \
        CUresult result = real call;                                                                                   \
        sair_limit_end(&launch, result);                                                                               \
        return result;                                                                                                 \
    } while (0)

#define KERNEL_KEY sair_key_kernel(f, gx, gy, gz, bx, by, bz, shared)

CUresult cuLaunchKernel SAIR_LAUNCH_PARAMS {
    CUresult(*real) SAIR_LAUNCH_PARAMS = SAIR_REAL(cuLaunchKernel);
    LIMITED(real, (f, gx, gy, gz, bx, by, bz, shared, stream, params, extra), KERNEL_KEY, stream, 0, 0);
}

CUresult cuLaunchKernel_ptsz SAIR_LAUNCH_PARAMS {
    CUresult(*real) SAIR_LAUNCH_PARAMS = SAIR_REAL(cuLaunchKernel_ptsz);
    LIMITED(real, (f, gx, gy, gz, bx, by, bz, shared, stream, params, extra), KERNEL_KEY, stream, 1, 0);
}

CUresult cuLaunchCooperativeKernel SAIR_COOPERATIVE_PARAMS {
    CUresult(*real) SAIR_COOPERATIVE_PARAMS = SAIR_REAL(cuLaunchCooperativeKernel);
    LIMITED(real, (f, gx, gy, gz, bx, by, bz, shared, stream, params), KERNEL_KEY, stream, 0, 0);
}

CUresult cuLaunchCooperativeKernel_ptsz SAIR_COOPERATIVE_PARAMS {
    CUresult(*real) SAIR_COOPERATIVE_PARAMS = SAIR_REAL(cuLaunchCooperativeKernel_ptsz);
    LIMITED(real, (f, gx, gy, gz, bx, by, bz, shared, stream, params), KERNEL_KEY, stream, 1, 0);
}

static struct sair_key config_key(const CUlaunchConfig *c, CUfunction f) {
    return sair_key_kernel(f, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ,
                           c->sharedMemBytes);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction f, void **params, void **extra) {
    CUresult (*real)(const CUlaunchConfig *, CUfunction, void **, void **) = SAIR_REAL(cuLaunchKernelEx);
    if (config == NULL) return real(config, f, params, extra);
    LIMITED(real, (config, f, params, extra), config_key(config, f), config->hStream, 0, 0);
}

CUresult cuLaunchKernelEx_ptsz(const CUlaunchConfig *config, CUfunction f, void **params, void **extra) {
    CUresult (*real)(const CUlaunchConfig *, CUfunction, void **, void **) = SAIR_REAL(cuLaunchKernelEx_ptsz);
    if (config == NULL) return real(config, f, params, extra);
    LIMITED(real, (config, f, params, extra), config_key(config, f), config->hStream, 1, 0);
}

/* One launch on several devices, submitted in a single call: first all parts are charged, each to its own device,
 * because that may sleep; then their batches are opened. */
CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *list, unsigned count, unsigned flags) {
    CUresult (*real)(CUDA_LAUNCH_PARAMS *, unsigned, unsigned) = SAIR_REAL(cuLaunchCooperativeKernelMultiDevice);
    if (!wants_limit() || list == NULL || count == 0 || count > SAIR_DEVICES) return real(list, count, flags);
    struct sair_launch launches[SAIR_DEVICES];
    for (unsigned i = 0; i < count; i++) {
        const CUDA_LAUNCH_PARAMS *p = &list[i];
        struct sair_key key = sair_key_kernel(p->function, p->gridDimX, p->gridDimY, p->gridDimZ, p->blockDimX,
                                              p->blockDimY, p->blockDimZ, p->sharedMemBytes);
        sair_limit_charge(&launches[i], &key, p->hStream, 0, 0);
    }
    for (unsigned i = 0; i < count; i++) sair_limit_measure(&launches[i], list[i].hStream, 0);
    CUresult result = real(list, count, flags);
    for (unsigned i = count; i > 0; i--) sair_limit_end(&launches[i - 1], result);
    return result;
}

/* The launches of CUDA 2 and 3: their block shape was set on the function beforehand. */
CUresult cuLaunch(CUfunction f) {
    CUresult (*real)(CUfunction) = SAIR_REAL(cuLaunch);
    LIMITED(real, (f), sair_key_kernel(f, 1, 1, 1, 0, 0, 0, 0), NULL, 0, 0);
}

CUresult cuLaunchGrid(CUfunction f, int width, int height) {
    CUresult (*real)(CUfunction, int, int) = SAIR_REAL(cuLaunchGrid);
    LIMITED(real, (f, width, height), sair_key_kernel(f, (unsigned)width, (unsigned)height, 1, 0, 0, 0, 0), NULL, 0, 0);
}

CUresult cuLaunchGridAsync(CUfunction f, int width, int height, CUstream stream) {
    CUresult (*real)(CUfunction, int, int, CUstream) = SAIR_REAL(cuLaunchGridAsync);
    LIMITED(real, (f, width, height, stream), sair_key_kernel(f, (unsigned)width, (unsigned)height, 1, 0, 0, 0, 0),
            stream, 0, 0);
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    CUresult (*real)(CUgraphExec, CUstream) = SAIR_REAL(cuGraphLaunch);
    LIMITED(real, (exec, stream), sair_key_graph(exec), stream, 0, 1);
}

CUresult cuGraphLaunch_ptsz(CUgraphExec exec, CUstream stream) {
    CUresult (*real)(CUgraphExec, CUstream) = SAIR_REAL(cuGraphLaunch_ptsz);
    LIMITED(real, (exec, stream), sair_key_graph(exec), stream, 1, 1);
}

/* An executable graph that changes costs something else from now on. */
static CUresult forget(CUgraphExec exec, CUresult result) {
    for (unsigned gpu = 0; gpu < SAIR_DEVICES; gpu++) {
        struct sair_key key = sair_key_graph(exec);
        sair_key_on(&key, gpu);
        sair_cost_forget(&key);
    }
    return result;
}

CUresult cuGraphExecDestroy(CUgraphExec exec) {
    return forget(exec, sair_graph_exec_destroy(exec, SAIR_REAL(cuGraphExecDestroy)));
}

CUresult cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode *node, int *result) {
    return forget(exec, SAIR_REAL(cuGraphExecUpdate)(exec, graph, node, result));
}

CUresult cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph, void *info) {
    return forget(exec, SAIR_REAL(cuGraphExecUpdate_v2)(exec, graph, info));
}

CUresult cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    return forget(exec, SAIR_REAL(cuGraphExecKernelNodeSetParams)(exec, node, params));
}

CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                           const CUDA_KERNEL_NODE_PARAMS_v2 *params) {
    return forget(exec, SAIR_REAL(cuGraphExecKernelNodeSetParams_v2)(exec, node, params));
}

CUresult cuGraphExecChildGraphNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraph child) {
    return forget(exec, SAIR_REAL(cuGraphExecChildGraphNodeSetParams)(exec, node, child));
}

CUresult cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, void *params) {
    return forget(exec, SAIR_REAL(cuGraphExecNodeSetParams)(exec, node, params));
}

CUresult cuGraphExecMemcpyNodeSetParams(CUgraphExec exec, CUgraphNode node, const void *params, CUcontext context) {
    return forget(exec, SAIR_REAL(cuGraphExecMemcpyNodeSetParams)(exec, node, params, context));
}

CUresult cuGraphExecMemsetNodeSetParams(CUgraphExec exec, CUgraphNode node, const void *params, CUcontext context) {
    return forget(exec, SAIR_REAL(cuGraphExecMemsetNodeSetParams)(exec, node, params, context));
}

CUresult cuGraphNodeSetEnabled(CUgraphExec exec, CUgraphNode node, unsigned enabled) {
    return forget(exec, SAIR_REAL(cuGraphNodeSetEnabled)(exec, node, enabled));
}
