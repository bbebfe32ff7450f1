/*
 * Other tenants on the card stretch event spans. The node agent tells whether any were active and what NVML saw of us;
 * from the first follows whether spans can be trusted, from the second the factor on undisturbed costs.
 */
#ifndef SAIR_CONTENTION_H
#define SAIR_CONTENTION_H

#include "process.h"

/* A batch was settled: `fresh_ns` of union, `undisturbed_ns` by the per-key costs. Called by the harvester. */
void sair_contention_note(struct sair_device *device, int64_t fresh_ns, int64_t undisturbed_ns);

/* Take up what the agent wrote: one thread at a time, once in 20 ms; other calls return at once. */
void sair_contention_refresh(struct sair_device *device, uint64_t now_ns);

#endif
