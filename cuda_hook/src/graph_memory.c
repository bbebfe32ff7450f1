#include "graph_memory.h"

#include "pool.h"

#include <pthread.h>
#include <stdlib.h>

enum name { GRAPH, EXECUTABLE, NAMES };

/* What a graph allocates on one device. The driver lets a graph that allocates be instantiated once at a time, and not
 * be cloned. */
struct owner {
    struct owner *next;
    const void *names[NAMES]; /* NULL: destroyed, or never made */
    struct sair_pool *pool;
    uint64_t bytes;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* never held in the driver */
static struct owner *owners;
static uint32_t owner_count; /* programs without such graphs pay a look at this */

int sair_graph_claim(struct sair_graph_claim *claim, uint64_t bytes, int ordinal) {
    *claim = (struct sair_graph_claim){.bytes = sair_memory_blocks(bytes)};
    struct sair_device *device = ordinal >= 0 ? sair_device_at(ordinal) : sair_device_current();
    if (device == NULL) return 1;
    claim->pool = sair_pool_of_graphs(device);
    return claim->pool != NULL && sair_pool_reserve(claim->pool, claim->bytes, &claim->reservation);
}

static void add_to(CUgraph graph, struct sair_pool *pool, uint64_t bytes) {
    struct owner *fresh = calloc(1, sizeof *fresh);
    pthread_mutex_lock(&lock);
    struct owner *owner = owners;
    while (owner != NULL && (owner->names[GRAPH] != graph || owner->pool != pool)) owner = owner->next;
    if (owner == NULL && fresh != NULL) {
        owner = fresh;
        fresh = NULL;
        owner->names[GRAPH] = graph;
        owner->pool = pool;
        owner->next = owners;
        owners = owner;
        SAIR_ADD(&owner_count, 1u);
    }
    if (owner != NULL) owner->bytes += bytes;
    pthread_mutex_unlock(&lock);
    free(fresh);
}

void sair_graph_claimed(struct sair_graph_claim *claim, int was_made, CUgraph graph) {
    if (claim->pool == NULL) return;
    if (!was_made) {
        sair_pool_cancel(claim->pool, &claim->reservation);
        return;
    }
    sair_pool_need(claim->pool, (int64_t)claim->bytes);
    (void)sair_pool_settle(claim->pool, &claim->reservation);
    if (graph != NULL) add_to(graph, claim->pool, claim->bytes);
}

CUgraph sair_graph_captured_on(CUstream stream, int per_thread) {
    const struct sair_driver *driver = sair_driver();
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUgraph graph = NULL;
    cuuint64_t id;
    CUresult result = CUDA_ERROR_NOT_FOUND;
    if (per_thread && driver->cuStreamGetCaptureInfo_v2_ptsz != NULL)
        result = driver->cuStreamGetCaptureInfo_v2_ptsz(stream, &status, &id, &graph, NULL, NULL);
    else if (driver->cuStreamGetCaptureInfo_v2 != NULL)
        result = driver->cuStreamGetCaptureInfo_v2(stream, &status, &id, &graph, NULL, NULL);
    return result == CUDA_SUCCESS && status == CU_STREAM_CAPTURE_STATUS_ACTIVE ? graph : NULL;
}

/* Give back what no graph and no executable needs any more. The driver keeps it for the next graph unless told. */
static void release_unneeded(void) {
    for (;;) {
        pthread_mutex_lock(&lock);
        struct owner **at = &owners;
        while (*at != NULL && ((*at)->names[GRAPH] != NULL || (*at)->names[EXECUTABLE] != NULL)) at = &(*at)->next;
        struct owner *owner = *at;
        if (owner != NULL) {
            *at = owner->next;
            SAIR_SUB(&owner_count, 1u);
        }
        pthread_mutex_unlock(&lock);
        if (owner == NULL) return;
        sair_pool_need(owner->pool, -(int64_t)owner->bytes);
        sair_pool_trim(owner->pool);
        (void)sair_pool_settle(owner->pool, NULL);
        free(owner);
    }
}

static void rename_in(enum name which, const void *from, const void *to) {
    pthread_mutex_lock(&lock);
    for (struct owner *owner = owners; owner != NULL; owner = owner->next)
        if (owner->names[which] == from) owner->names[which] = to;
    pthread_mutex_unlock(&lock);
}

/* In two steps around the driver's call: afterwards the handle may already belong to another thread's graph. In between
 * a name that no handle has stands for it. */
#define DESTROY(which, handle, call)                                                                                   \
    do {                                                                                                               \
        if (SAIR_LOAD(&owner_count) == 0) return call;                                                                 \
        const char dying_ = 0;                                                                                         \
        rename_in(which, handle, &dying_);                                                                             \
        CUresult result_ = call;                                                                                       \
        rename_in(which, &dying_, result_ == CUDA_SUCCESS ? NULL : (handle));                                          \
        if (result_ == CUDA_SUCCESS) release_unneeded();                                                               \
        return result_;                                                                                                \
    } while (0)

CUresult cuGraphDestroy(CUgraph graph) {
    CUresult (*real)(CUgraph) = SAIR_REAL(cuGraphDestroy);
    DESTROY(GRAPH, graph, real(graph));
}

CUresult sair_graph_exec_destroy(CUgraphExec exec, CUresult (*real)(CUgraphExec)) {
    DESTROY(EXECUTABLE, exec, real(exec));
}

static CUresult instantiated(CUresult result, const CUgraphExec *exec, CUgraph graph) {
    if (result != CUDA_SUCCESS || SAIR_LOAD(&owner_count) == 0) return result;
    pthread_mutex_lock(&lock);
    for (struct owner *owner = owners; owner != NULL; owner = owner->next)
        if (owner->names[GRAPH] == graph) owner->names[EXECUTABLE] = *exec;
    pthread_mutex_unlock(&lock);
    return result;
}

CUresult cuGraphInstantiate(CUgraphExec *exec, CUgraph graph, CUgraphNode *node, char *text, size_t size) {
    return instantiated(SAIR_REAL(cuGraphInstantiate)(exec, graph, node, text, size), exec, graph);
}

CUresult cuGraphInstantiate_v2(CUgraphExec *exec, CUgraph graph, CUgraphNode *node, char *text, size_t size) {
    return instantiated(SAIR_REAL(cuGraphInstantiate_v2)(exec, graph, node, text, size), exec, graph);
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    return instantiated(SAIR_REAL(cuGraphInstantiateWithFlags)(exec, graph, flags), exec, graph);
}

CUresult cuGraphInstantiateWithParams(CUgraphExec *exec, CUgraph graph, void *params) {
    return instantiated(SAIR_REAL(cuGraphInstantiateWithParams)(exec, graph, params), exec, graph);
}

CUresult cuGraphInstantiateWithParams_ptsz(CUgraphExec *exec, CUgraph graph, void *params) {
    return instantiated(SAIR_REAL(cuGraphInstantiateWithParams_ptsz)(exec, graph, params), exec, graph);
}

CUresult cuDeviceGraphMemTrim(CUdevice ordinal) {
    CUresult result = SAIR_REAL(cuDeviceGraphMemTrim)(ordinal);
    if (result == CUDA_SUCCESS && !sair_memory_is_off()) sair_pools_refresh(sair_device_at(ordinal));
    return result;
}

/* ---- nodes that allocate ---- */

/* The body of every hook that adds such a node. */
#define ADD_NODE(params, graph, call)                                                                                  \
    do {                                                                                                               \
        const CUmemLocation *location = &(params)->poolProps.location;                                                 \
        if (sair_memory_is_off() || sair_location_is_host(location)) return call;                                      \
        struct sair_graph_claim claim;                                                                                 \
        int ordinal = location->type == CU_MEM_LOCATION_TYPE_DEVICE ? location->id : -1;                               \
        if (!sair_graph_claim(&claim, (params)->bytesize, ordinal)) return CUDA_ERROR_OUT_OF_MEMORY;                   \
        CUresult result = call;                                                                                        \
        sair_graph_claimed(&claim, result == CUDA_SUCCESS, graph);                                                     \
        return result;                                                                                                 \
    } while (0)

CUresult cuGraphAddMemAllocNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                                CUDA_MEM_ALLOC_NODE_PARAMS *params) {
    CUresult (*real)(CUgraphNode *, CUgraph, const CUgraphNode *, size_t, CUDA_MEM_ALLOC_NODE_PARAMS *) =
        SAIR_REAL(cuGraphAddMemAllocNode);
    if (params == NULL) return real(node, graph, dependencies, count, params);
    ADD_NODE(params, graph, real(node, graph, dependencies, count, params));
}

static int allocates(const CUgraphNodeParams *params) {
    return params != NULL && params->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC;
}

CUresult cuGraphAddNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                        CUgraphNodeParams *params) {
    CUresult (*real)(CUgraphNode *, CUgraph, const CUgraphNode *, size_t, CUgraphNodeParams *) =
        SAIR_REAL(cuGraphAddNode);
    if (!allocates(params)) return real(node, graph, dependencies, count, params);
    ADD_NODE(&params->of.alloc, graph, real(node, graph, dependencies, count, params));
}

CUresult cuGraphAddNode_v2(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, const void *edges,
                           size_t count, CUgraphNodeParams *params) {
    CUresult (*real)(CUgraphNode *, CUgraph, const CUgraphNode *, const void *, size_t, CUgraphNodeParams *) =
        SAIR_REAL(cuGraphAddNode_v2);
    if (!allocates(params)) return real(node, graph, dependencies, edges, count, params);
    ADD_NODE(&params->of.alloc, graph, real(node, graph, dependencies, edges, count, params));
}

void sair_graph_memory_forget(void) {
    pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    lock = fresh;
    owners = NULL;
    owner_count = 0;
}
