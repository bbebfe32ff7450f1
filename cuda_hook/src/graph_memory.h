/* What graphs allocate: charged from the creation of the node until the graph and its executable are destroyed. */
#ifndef SAIR_GRAPH_MEMORY_H
#define SAIR_GRAPH_MEMORY_H

#include "memory.h"

struct sair_pool;

struct sair_graph_claim {
    struct sair_pool *pool; /* NULL: nothing is charged */
    struct sair_reservation reservation;
    uint64_t bytes;
};

/* Room for a node that allocates, on the current device or on `ordinal`; 0 where the limit forbids it. Then whether the
 * node was made, and in which graph; NULL: in one that cannot be told, so that it stays charged. */
int sair_graph_claim(struct sair_graph_claim *claim, uint64_t bytes, int ordinal);
void sair_graph_claimed(struct sair_graph_claim *claim, int was_made, CUgraph graph);
CUgraph sair_graph_captured_on(CUstream stream, int per_thread);

/* Destroy an executable graph through the driver's function, and give back what only it needed. */
CUresult sair_graph_exec_destroy(CUgraphExec exec, CUresult (*real)(CUgraphExec));

/* After fork, in the child. */
void sair_graph_memory_forget(void);

#endif
