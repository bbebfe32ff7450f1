/* The end of a batch: what it really cost replaces what was charged for it. */
#ifndef SAIR_SETTLE_H
#define SAIR_SETTLE_H

#include "stream.h"

struct sair_interval {
    uint64_t span_ns;  /* start event to end event */
    uint64_t until_ns; /* host time of the end event */
    uint64_t seen_ns;  /* now */
};

/* Caller is the harvester. */
void sair_settle(const struct sair_batch *batch, const struct sair_interval *interval);
/* Its events tell nothing (context gone, launch failed): the prediction stands. */
void sair_settle_unknown(const struct sair_batch *batch);

#endif
