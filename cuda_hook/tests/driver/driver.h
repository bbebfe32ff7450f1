/* The process-local side of the simulated libcuda.so.1: handles, contexts, capture and graphs. */
#ifndef SAIR_SIM_DRIVER_H
#define SAIR_SIM_DRIVER_H

#include <pthread.h>
#include <stdbool.h>

#include "../../src/cuda_abi.h"
#include "simgpu.h"

/* Codes that cuda_abi.h, the hook's part of the ABI, has no need of. */
enum {
    SIM_ERROR_INVALID_IMAGE = 200,
    SIM_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE = 720,
    SIM_ERROR_GRAPH_EXEC_UPDATE_FAILURE = 910
};

#define SIM_EXPORT __attribute__((visibility("default")))
#define SIM_DRIVER_VERSION 12080
#define SIM_BLOCK_THREADS 1024u

struct CUctx_st {
    uint64_t id;
    int slot; /* context in the shared file */
    int device;
    bool primary;
    unsigned retained, attached, flags;
    CUstream legacy;
    CUstream streams; /* all of the context, linked by `next` */
};

struct CUstream_st {
    CUcontext context;
    int slot;
    unsigned flags;
    int priority;
    uint64_t id;
    struct sim_capture *capture; /* NULL = not capturing */
    CUgraphNode last;            /* the node that the next captured one follows */
    CUstream next;
};

struct CUevent_st {
    CUcontext context;
    int slot;
    unsigned flags;
    struct sim_capture *capture; /* recorded last inside this capture */
    CUgraphNode node;
    uint64_t null_ns; /* null mode: work submitted before the record */
    bool null_recorded;
};

enum sim_law { SIM_LAW_FIXED, SIM_LAW_PER_BLOCK, SIM_LAW_ARGUMENT };

/* A kernel, whose name says how long it runs: see sim_function_named. */
struct CUfunc_st {
    char *name;
    CUmodule module;
    enum sim_law law;
    uint64_t ns;
    unsigned jitter_percent;
    CUfunction next;
};

/* What a launch asks of the device. */
struct sim_work {
    uint64_t ns;
    uint32_t blocks;
};

enum sim_node_kind {
    SIM_NODE_KERNEL = 0,
    SIM_NODE_MEMCPY = 1,
    SIM_NODE_MEMSET = 2,
    SIM_NODE_HOST = 3,
    SIM_NODE_GRAPH = 4,
    SIM_NODE_EMPTY = 5,
    SIM_NODE_WAIT_EVENT = 6,
    SIM_NODE_EVENT_RECORD = 7,
    SIM_NODE_MEM_ALLOC = 10,
    SIM_NODE_MEM_FREE = 11
};

struct CUgraphNode_st {
    enum sim_node_kind kind;
    struct sim_work work;
    CUfunction function;
    CUhostFn host;
    void *user_data;
    CUevent event;
    CUgraph child;
    CUdeviceptr memory;
    size_t memory_bytes;
    bool followed; /* some other node depends on it */
    CUgraph graph;
    CUgraphNode origin; /* in a clone: the node it was cloned from */
};

struct CUgraph_st {
    CUgraphNode *nodes;
    size_t count, room;
};

struct sim_exec_node {
    CUgraphNode source;
    enum sim_node_kind kind;
    struct sim_work work;
    CUhostFn host;
    void *user_data;
    CUevent event;
    bool enabled;
};

struct CUgraphExec_st {
    struct sim_exec_node *nodes;
    size_t count;
    int device;
    uint64_t memory_bytes; /* of its allocation nodes */
    bool memory_taken;
    unsigned long long flags;
};

/* ---- context.c ---- */
CUresult sim_ready(void);              /* CUDA_SUCCESS once cuInit ran in this very process */
CUcontext sim_current(void);           /* NULL = none */
bool sim_context_is_valid(CUcontext context);
extern bool sim_null_mode;             /* SAIR_SIMGPU_NULL: launches cost and take nothing, for measuring overhead */
extern _Thread_local uint64_t sim_null_ns;
/* The handle a call means: NULL and the special ones resolve by the twin's default stream. NULL = no such stream. */
CUstream sim_stream(CUstream stream, bool per_thread);
CUstream sim_stream_new(CUcontext context, unsigned flags, int priority, bool legacy);
void sim_context_streams_free(CUcontext context);

/* ---- module.c ---- */
CUresult sim_work_of(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned threads, void **params,
                     void **extra, struct sim_work *work);

/* ---- capture.c ---- */
CUresult sim_unsafe(void); /* to be asked by calls that are illegal while somebody captures in global mode */
/* A call on `stream` that adds work: CUDA_SUCCESS, or why capture forbids it. *captured: add a node instead. */
CUresult sim_capture_check(CUstream stream, bool *captured);
CUgraphNode sim_capture_add(CUstream stream, enum sim_node_kind kind);
CUresult sim_capture_refuse(CUstream stream); /* a call that a capturing stream cannot take: invalidates */
CUresult sim_capture_record(CUevent event, CUstream stream);
CUresult sim_capture_wait(CUstream stream, CUevent event);
void sim_capture_forget(CUstream stream);

/* ---- copy.c ---- */
uint64_t sim_copy_ns(size_t bytes);

/* ---- graph.c ---- */
CUgraphNode sim_graph_add(CUgraph graph, enum sim_node_kind kind);

/* ---- host.c ---- */
CUresult sim_host_call(CUstream stream, CUhostFn function, void *user_data);
void sim_host_queue(CUstream stream, uint64_t seq, CUhostFn function, void *user_data);

/* ---- memory.c ---- */
void sim_memory_drop_context(CUcontext context);
/* A context to allocate in, and whether allocating is legal now. */
CUresult sim_memory_enter(CUcontext *context);
void sim_arrays_drop_context(CUcontext context); /* array.c */
/* Address space of this process that no memory stands behind yet; 0 where there is none. */
CUdeviceptr sim_memory_map(size_t bytes, int protection, bool low);
CUresult sim_memory_alloc_node(size_t bytes, CUdeviceptr *pointer);
/* Of a device's memory; small sizes share blocks. */
bool sim_memory_take(int device, size_t bytes);
void sim_memory_give(int device, size_t bytes);
/* The host waited for the device: pools let go what is beyond their threshold. */
void sim_memory_synchronized(void);
/* What graphs use of the memory kept for them. */
bool sim_graph_memory_take(int device, size_t bytes);
void sim_graph_memory_give(int device, size_t bytes);
void sim_vmm_drop_array(const void *array); /* vmm.c */

#endif
