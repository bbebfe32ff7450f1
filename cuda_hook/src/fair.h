/*
 * Whose turn is it among the processes of a container? Start-time fair queueing: each has a virtual time that advances
 * by the budget it takes; of those waiting, the one furthest behind goes first. Without it, GPU time is shared in
 * proportion to the length of kernels.
 */
#ifndef SAIR_FAIR_H
#define SAIR_FAIR_H

#include "process.h"

/* A request for budget arrives: time spent away is not saved up. */
void sair_fair_arrive(struct sair_device *device);
/* It took `chunk_ns`. */
void sair_fair_serve(struct sair_device *device, int64_t chunk_ns);
/* Whether no waiting sibling is further behind, or none of them used the budget although it was there. `ahead_ns`: how
 * far the bucket is overdrawn. */
int sair_fair_turn(const struct sair_device *device, int64_t ahead_ns, uint64_t now_ns);

void sair_fair_wait_begins(struct sair_device *device, uint64_t now_ns);
void sair_fair_wait_goes_on(struct sair_device *device, uint64_t now_ns);
void sair_fair_wait_ends(struct sair_device *device);

#endif
