/*
 * When was this container busy on the GPU? One bit per 16 us, shared by its processes, so that overlapping intervals of
 * streams and of sibling processes are charged once.
 */
#ifndef SAIR_BUSY_MAP_H
#define SAIR_BUSY_MAP_H

#include "stats_page.h"

/* Mark [from_ns, until_ns) busy and return how much of it, in nanoseconds, nobody had marked before. Both ends are
 * rounded down to bins, so that adjoining intervals neither overlap nor leave a gap. What lies further back than the
 * map reaches counts as new. */
uint64_t sair_busy_mark(struct sair_page_gpu *gpu, uint64_t from_ns, uint64_t until_ns);

#endif
