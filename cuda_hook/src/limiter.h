/* Admission of launches to the GPU. */
#ifndef SAIR_LIMITER_H
#define SAIR_LIMITER_H

#include "stream.h"

/* One launch on its way. */
struct sair_launch {
    struct sair_device *device; /* NULL: nothing was charged */
    struct sair_stream *stream; /* held until the launch is submitted; NULL: not measured */
    struct sair_cost *cost;
    uint32_t generation; /* of `cost` when it was found */
    int64_t charged_ns, estimate_ns;
    int is_unmeasured; /* its cost is not known yet */
    struct sair_stream *foreign; /* where `stream` is NULL: charged to the batch of another thread that submits to it */
    int close_after;
};

/* Charge a launch of `key` on that stream to the stream's GPU, which the key then names, sleeping until it is
 * admissible. `is_graph` only counts. */
void sair_limit_charge(struct sair_launch *launch, struct sair_key *key, CUstream stream, int per_thread,
                       int is_graph);
/* Just before it is submitted: put it into a batch of its stream. */
void sair_limit_measure(struct sair_launch *launch, CUstream stream, int per_thread);
/* It was submitted, with this result. */
void sair_limit_end(struct sair_launch *launch, CUresult result);

/* A launch at rate 1: counted, and the grant looked at now and then. */
void sair_limit_count(void);

/* The program has waited for the device. */
void sair_limit_after_wait(void);

#endif
