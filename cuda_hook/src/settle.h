/* The end of a batch: what it really cost replaces what was charged for it. */
#ifndef SAIR_SETTLE_H
#define SAIR_SETTLE_H

#include "stream.h"

/* Caller is the harvester. The batch at the head of the stream's ring, if its end has been reached: what it really cost
 * replaces what was charged for it; where its events tell nothing (context gone, launch failed), the prediction stands.
 * Returns 0 if it is not finished. Never waits. */
int sair_settle_head(struct sair_stream *stream, uint64_t now_ns);

#endif
