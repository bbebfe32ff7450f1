/* Graphs: nodes run one after another in the order they were added, which is a valid order of any captured graph. */
#include "driver.h"

#include <stdlib.h>
#include <string.h>

CUgraphNode sim_graph_add(CUgraph graph, enum sim_node_kind kind) {
    if (graph->count == graph->room) {
        graph->room = graph->room == 0 ? 16 : 2 * graph->room;
        graph->nodes = realloc(graph->nodes, graph->room * sizeof *graph->nodes);
    }
    CUgraphNode node = calloc(1, sizeof *node);
    node->kind = kind;
    node->graph = graph;
    graph->nodes[graph->count++] = node;
    return node;
}

static CUresult add(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                    enum sim_node_kind kind) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (out == NULL || graph == NULL || (count > 0 && dependencies == NULL)) return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++)
        if (dependencies[i] == NULL || dependencies[i]->graph != graph) return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++) dependencies[i]->followed = true;
    *out = sim_graph_add(graph, kind);
    return CUDA_SUCCESS;
}

static CUresult kernel_work(CUfunction f, const CUDA_KERNEL_NODE_PARAMS_v1 *p, struct sim_work *work) {
    return sim_work_of(f, p->gridDimX, p->gridDimY, p->gridDimZ, p->blockDimX * p->blockDimY * p->blockDimZ,
                       p->kernelParams, p->extra, work);
}

SIM_EXPORT CUresult cuGraphCreate(CUgraph *out, unsigned flags) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (out == NULL || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    *out = calloc(1, sizeof **out);
    return *out == NULL ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphDestroy(CUgraph graph) {
    if (graph == NULL) return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < graph->count; i++) free(graph->nodes[i]);
    free(graph->nodes);
    free(graph);
    return CUDA_SUCCESS;
}

static CUresult add_kernel(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                           const CUDA_KERNEL_NODE_PARAMS_v1 *params, CUfunction f) {
    struct sim_work work;
    if (params == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUresult result = kernel_work(f, params, &work);
    if (result == CUDA_SUCCESS) result = add(out, graph, dependencies, count, SIM_NODE_KERNEL);
    if (result != CUDA_SUCCESS) return result;
    (*out)->work = work;
    (*out)->function = f;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuGraphAddKernelNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                                         const CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    return add_kernel(out, graph, dependencies, count, params, params == NULL ? NULL : params->func);
}
static CUfunction function_of(const CUDA_KERNEL_NODE_PARAMS_v2 *params) {
    return params->v1.func != NULL ? params->v1.func : params->kern;
}
SIM_EXPORT CUresult cuGraphAddKernelNode_v2(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies,
                                            size_t count, const CUDA_KERNEL_NODE_PARAMS_v2 *params) {
    if (params == NULL) return CUDA_ERROR_INVALID_VALUE;
    return add_kernel(out, graph, dependencies, count, &params->v1, function_of(params));
}

struct host_params {
    CUhostFn fn;
    void *user_data;
};
SIM_EXPORT CUresult cuGraphAddHostNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                                       const struct host_params *params) {
    CUresult result = add(out, graph, dependencies, count, SIM_NODE_HOST);
    if (result != CUDA_SUCCESS) return result;
    (*out)->host = params->fn;
    (*out)->user_data = params->user_data;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuGraphAddEmptyNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies,
                                        size_t count) {
    return add(out, graph, dependencies, count, SIM_NODE_EMPTY);
}
SIM_EXPORT CUresult cuGraphAddChildGraphNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies,
                                             size_t count, CUgraph child) {
    CUresult result = add(out, graph, dependencies, count, SIM_NODE_GRAPH);
    if (result != CUDA_SUCCESS) return result;
    CUgraph copy = calloc(1, sizeof *copy); /* the driver clones the child as well */
    for (size_t i = 0; i < child->count; i++) {
        CUgraphNode node = sim_graph_add(copy, child->nodes[i]->kind);
        *node = *child->nodes[i];
        node->graph = copy;
    }
    (*out)->child = copy;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuGraphAddEventRecordNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies,
                                              size_t count, CUevent event) {
    CUresult result = add(out, graph, dependencies, count, SIM_NODE_EVENT_RECORD);
    if (result == CUDA_SUCCESS) (*out)->event = event;
    return result;
}
SIM_EXPORT CUresult cuGraphAddEventWaitNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies,
                                            size_t count, CUevent event) {
    CUresult result = add(out, graph, dependencies, count, SIM_NODE_WAIT_EVENT);
    if (result == CUDA_SUCCESS) (*out)->event = event;
    return result;
}
SIM_EXPORT CUresult cuGraphAddMemAllocNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies,
                                           size_t count, CUDA_MEM_ALLOC_NODE_PARAMS *params) {
    if (params == NULL || params->bytesize == 0) return CUDA_ERROR_INVALID_VALUE;
    CUresult result = add(out, graph, dependencies, count, SIM_NODE_MEM_ALLOC);
    if (result == CUDA_SUCCESS) result = sim_memory_alloc_node(params->bytesize, &params->dptr);
    if (result != CUDA_SUCCESS) return result;
    (*out)->memory = params->dptr;
    (*out)->memory_bytes = params->bytesize;
    return CUDA_SUCCESS;
}
/* Of the kinds of nodes only those that allocate. */
SIM_EXPORT CUresult cuGraphAddNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                                   CUgraphNodeParams *params) {
    if (params == NULL || params->type != CU_GRAPH_NODE_TYPE_MEM_ALLOC) return CUDA_ERROR_INVALID_VALUE;
    return cuGraphAddMemAllocNode(out, graph, dependencies, count, &params->of.alloc);
}
SIM_EXPORT CUresult cuGraphAddNode_v2(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies,
                                      const void *edges, size_t count, CUgraphNodeParams *params) {
    (void)edges;
    return cuGraphAddNode(out, graph, dependencies, count, params);
}
SIM_EXPORT CUresult cuGraphAddMemFreeNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies,
                                          size_t count, CUdeviceptr pointer) {
    CUresult result = add(out, graph, dependencies, count, SIM_NODE_MEM_FREE);
    if (result == CUDA_SUCCESS) (*out)->memory = pointer;
    return result;
}
SIM_EXPORT CUresult cuGraphKernelNodeSetParams_v2(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v2 *params) {
    if (node == NULL || node->kind != SIM_NODE_KERNEL || params == NULL) return CUDA_ERROR_INVALID_VALUE;
    return kernel_work(function_of(params), &params->v1, &node->work);
}
SIM_EXPORT CUresult cuGraphKernelNodeSetParams(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    if (node == NULL || node->kind != SIM_NODE_KERNEL || params == NULL) return CUDA_ERROR_INVALID_VALUE;
    return kernel_work(params->func, params, &node->work);
}
SIM_EXPORT CUresult cuGraphNodeGetType(CUgraphNode node, int *type) {
    if (node == NULL) return CUDA_ERROR_INVALID_VALUE;
    *type = (int)node->kind;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count) {
    if (graph == NULL || count == NULL) return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; nodes != NULL && i < graph->count && i < *count; i++) nodes[i] = graph->nodes[i];
    if (nodes == NULL || *count > graph->count) *count = graph->count;
    return CUDA_SUCCESS;
}

/* ---- executable graphs ---- */

static size_t flat_count(CUgraph graph) {
    size_t count = 0;
    for (size_t i = 0; i < graph->count; i++)
        count += graph->nodes[i]->kind == SIM_NODE_GRAPH ? 1 + flat_count(graph->nodes[i]->child) : 1;
    return count;
}

static void flatten(CUgraphExec exec, CUgraph graph) {
    for (size_t i = 0; i < graph->count; i++) {
        CUgraphNode n = graph->nodes[i];
        exec->nodes[exec->count++] = (struct sim_exec_node){n, n->kind, n->work, n->host, n->user_data, n->event, true};
        if (n->kind == SIM_NODE_MEM_ALLOC) exec->memory_bytes += n->memory_bytes;
        if (n->kind == SIM_NODE_GRAPH) flatten(exec, n->child);
    }
}

static CUresult instantiate(CUgraphExec *out, CUgraph graph, unsigned long long flags) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (out == NULL || graph == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUcontext context = sim_current();
    if (context == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    CUgraphExec exec = calloc(1, sizeof *exec);
    if (exec == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    exec->nodes = calloc(flat_count(graph) + 1, sizeof *exec->nodes);
    exec->device = context->device;
    exec->flags = flags;
    flatten(exec, graph);
    *out = exec;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuGraphInstantiate(CUgraphExec *out, CUgraph graph, CUgraphNode *node, char *text, size_t size) {
    (void)node;
    if (text != NULL && size > 0) *text = '\0';
    return instantiate(out, graph, 0);
}
SIM_EXPORT CUresult cuGraphInstantiate_v2(CUgraphExec *out, CUgraph graph, CUgraphNode *node, char *text, size_t size) {
    return cuGraphInstantiate(out, graph, node, text, size);
}
SIM_EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec *out, CUgraph graph, unsigned long long flags) {
    return instantiate(out, graph, flags);
}
struct instantiate_params {
    cuuint64_t flags;
    CUstream upload;
    CUgraphNode error_node;
    int result;
};
SIM_EXPORT CUresult cuGraphInstantiateWithParams(CUgraphExec *out, CUgraph graph, struct instantiate_params *params) {
    params->result = 0;
    return instantiate(out, graph, params->flags);
}
SIM_EXPORT CUresult cuGraphInstantiateWithParams_ptsz(CUgraphExec *out, CUgraph graph,
                                                      struct instantiate_params *params) {
    return cuGraphInstantiateWithParams(out, graph, params);
}
SIM_EXPORT CUresult cuGraphExecGetFlags(CUgraphExec exec, cuuint64_t *flags) {
    *flags = exec->flags;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphExecDestroy(CUgraphExec exec) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (exec == NULL) return CUDA_ERROR_INVALID_VALUE;
    if (exec->memory_taken) sim_graph_memory_give(exec->device, exec->memory_bytes);
    free(exec->nodes);
    free(exec);
    return CUDA_SUCCESS;
}

struct pending {
    CUstream stream;
    struct simgpu_op op;
};

static void flush(struct pending *p) {
    if (p->op.kind != 0) simgpu_submit(p->stream->slot, &p->op);
    p->op = (struct simgpu_op){0};
}

/* Adjacent kernels become one operation: a graph of thousands of nodes would not fit a ring and nothing can tell. */
static void submit_node(struct pending *p, const struct sim_exec_node *node) {
    if (node->kind == SIM_NODE_KERNEL) {
        p->op.kind = SIMGPU_KERNEL;
        p->op.remaining_ns += node->work.ns;
        if (node->work.blocks > p->op.blocks) p->op.blocks = node->work.blocks;
        return;
    }
    struct simgpu_op op = {0};
    if (node->kind == SIM_NODE_MEMCPY || node->kind == SIM_NODE_MEMSET) {
        op.kind = SIMGPU_COPY;
        op.remaining_ns = node->work.ns;
    } else if (node->kind == SIM_NODE_HOST)
        op.kind = SIMGPU_HOST;
    else if (node->kind == SIM_NODE_EVENT_RECORD || node->kind == SIM_NODE_WAIT_EVENT) {
        op.kind = node->kind == SIM_NODE_WAIT_EVENT ? SIMGPU_WAIT : SIMGPU_RECORD;
        op.event = (uint32_t)node->event->slot;
        if (op.kind == SIMGPU_WAIT) op.event_seq = simgpu_event_recorded(node->event->slot);
    } else
        return;
    flush(p);
    uint64_t seq = simgpu_submit(p->stream->slot, &op);
    if (op.kind == SIMGPU_HOST) sim_host_queue(p->stream, seq, node->host, node->user_data);
}

static CUresult launch(CUgraphExec exec, CUstream stream, bool per_thread) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (exec == NULL) return CUDA_ERROR_INVALID_VALUE;
    stream = sim_stream(stream, per_thread);
    if (stream == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    if (sim_null_mode) {
        for (size_t i = 0; i < exec->count; i++) sim_null_ns += exec->nodes[i].work.ns;
        return CUDA_SUCCESS;
    }
    bool captured;
    CUresult result = sim_capture_check(stream, &captured);
    if (result != CUDA_SUCCESS) return result;
    if (exec->memory_bytes > 0 && !exec->memory_taken) {
        if (!sim_graph_memory_take(exec->device, exec->memory_bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
        exec->memory_taken = true;
    }
    struct pending p = {.stream = stream};
    for (size_t i = 0; i < exec->count; i++) {
        if (!exec->nodes[i].enabled) continue;
        if (!captured) {
            submit_node(&p, &exec->nodes[i]);
            continue;
        }
        CUgraphNode node = sim_capture_add(stream, exec->nodes[i].kind);
        node->work = exec->nodes[i].work;
        node->host = exec->nodes[i].host;
        node->user_data = exec->nodes[i].user_data;
        node->event = exec->nodes[i].event;
    }
    flush(&p);
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) { return launch(exec, stream, false); }
SIM_EXPORT CUresult cuGraphLaunch_ptsz(CUgraphExec exec, CUstream stream) { return launch(exec, stream, true); }
SIM_EXPORT CUresult cuGraphUpload(CUgraphExec exec, CUstream stream) {
    (void)stream;
    return exec == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuGraphUpload_ptsz(CUgraphExec exec, CUstream stream) { return cuGraphUpload(exec, stream); }

static bool update(CUgraphExec exec, CUgraph graph) {
    struct CUgraphExec_st fresh = {.nodes = calloc(flat_count(graph) + 1, sizeof *fresh.nodes)};
    flatten(&fresh, graph);
    bool same = fresh.count == exec->count;
    for (size_t i = 0; same && i < fresh.count; i++) same = fresh.nodes[i].kind == exec->nodes[i].kind;
    if (same) memcpy(exec->nodes, fresh.nodes, fresh.count * sizeof *fresh.nodes);
    free(fresh.nodes);
    return same;
}
SIM_EXPORT CUresult cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode *node, int *result) {
    if (exec == NULL || graph == NULL) return CUDA_ERROR_INVALID_VALUE;
    bool updated = update(exec, graph);
    if (node != NULL) *node = NULL;
    if (result != NULL) *result = updated ? 0 : 2; /* CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED */
    return updated ? CUDA_SUCCESS : SIM_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
}
struct update_info {
    int result;
    CUgraphNode node, from;
};
SIM_EXPORT CUresult cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph, struct update_info *info) {
    return cuGraphExecUpdate(exec, graph, info == NULL ? NULL : &info->node, info == NULL ? NULL : &info->result);
}

static struct sim_exec_node *find(CUgraphExec exec, CUgraphNode node) {
    for (size_t i = 0; exec != NULL && i < exec->count; i++)
        if (exec->nodes[i].source == node) return &exec->nodes[i];
    return NULL;
}
SIM_EXPORT CUresult cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                   const CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    struct sim_exec_node *found = find(exec, node);
    return found == NULL ? CUDA_ERROR_INVALID_VALUE : kernel_work(params->func, params, &found->work);
}
SIM_EXPORT CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                                      const CUDA_KERNEL_NODE_PARAMS_v2 *params) {
    struct sim_exec_node *found = find(exec, node);
    return found == NULL ? CUDA_ERROR_INVALID_VALUE : kernel_work(function_of(params), &params->v1, &found->work);
}
SIM_EXPORT CUresult cuGraphNodeSetEnabled(CUgraphExec exec, CUgraphNode node, unsigned enabled) {
    struct sim_exec_node *found = find(exec, node);
    if (found == NULL || found->kind != SIM_NODE_KERNEL) return CUDA_ERROR_INVALID_VALUE;
    found->enabled = enabled != 0;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuGraphExecChildGraphNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraph child) {
    struct sim_exec_node *found = find(exec, node);
    if (found == NULL || found->kind != SIM_NODE_GRAPH || child == NULL || child->count != found->source->child->count)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < child->count; i++) found[1 + i].work = child->nodes[i]->work;
    return CUDA_SUCCESS;
}

/* Of the parameters of a copy or a fill only how many bytes they move. */
struct copy_params {
    char from_and_to[176];
    size_t width_bytes, height, depth;
};
struct fill_params {
    CUdeviceptr to;
    size_t pitch;
    unsigned value, element_bytes;
    size_t width, height;
};
static CUresult set_bytes(CUgraphExec exec, CUgraphNode node, size_t bytes) {
    struct sim_exec_node *found = find(exec, node);
    if (found == NULL || (found->kind != SIM_NODE_MEMCPY && found->kind != SIM_NODE_MEMSET))
        return CUDA_ERROR_INVALID_VALUE;
    found->work.ns = sim_copy_ns(bytes);
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuGraphExecMemcpyNodeSetParams(CUgraphExec exec, CUgraphNode node, const struct copy_params *params,
                                                   CUcontext context) {
    (void)context;
    return set_bytes(exec, node, params->width_bytes * params->height * params->depth);
}
SIM_EXPORT CUresult cuGraphExecMemsetNodeSetParams(CUgraphExec exec, CUgraphNode node, const struct fill_params *params,
                                                   CUcontext context) {
    (void)context;
    return set_bytes(exec, node, params->width * params->element_bytes * params->height);
}
/* Of the kinds of nodes only kernels. */
SIM_EXPORT CUresult cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraphNodeParams *params) {
    CUDA_KERNEL_NODE_PARAMS_v2 kernel;
    if (params == NULL || params->type != SIM_NODE_KERNEL) return CUDA_ERROR_INVALID_VALUE;
    memcpy(&kernel, &params->of, sizeof kernel);
    return cuGraphExecKernelNodeSetParams_v2(exec, node, &kernel);
}
