/*
 * The GPU's clock against the host's. An event's time is known relative to another event only; a reference event and
 * the host times around every record and completion bound the offset. One caller at a time (the harvester).
 */
#ifndef SAIR_DEVICE_CLOCK_H
#define SAIR_DEVICE_CLOCK_H

#include "cuda_abi.h"

struct sair_device_clock {
    CUcontext context;
    CUevent reference;   /* kept out of the pool while it is the reference */
    int is_set;
    int is_gone;         /* its context died: the harvester starts over */
    int64_t offset_ns;   /* host time of the reference event */
    uint64_t set_ns;     /* host time at which the offset was last confirmed */
};

/* The clock of a context; NULL when too many contexts are in use. */
struct sair_device_clock *sair_device_clock_of(CUcontext context);

/* Bring a completed interval's events into host time. `opened_ns`: host time just before `start` was recorded;
 * `seen_ns`: when `end` was first seen complete. On success sets *until_ns, the host time of `end`. If the clock adopts
 * `end` as its new reference, *adopted is set (the caller must not recycle the event) and the old reference is handed
 * out in *released. Returns 0 on success. */
int sair_device_clock_map(struct sair_device_clock *clock, CUevent start, CUevent end, uint64_t span_ns,
                          uint64_t opened_ns, uint64_t seen_ns, uint64_t *until_ns, int *adopted, CUevent *released);

/* The context dies. NULL: all. Safe from any thread. */
void sair_device_clocks_forget(CUcontext context);

#endif
