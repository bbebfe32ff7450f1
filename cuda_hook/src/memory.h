/* Device memory held by this process, and the limit on what the container holds. */
#ifndef SAIR_MEMORY_H
#define SAIR_MEMORY_H

#include "process.h"

enum sair_memory_kind {
    SAIR_MEMORY_POINTER = 1, /* cuMemAlloc and its relatives */
    SAIR_MEMORY_ASYNC,       /* stream-ordered, from a pool */
    SAIR_MEMORY_HANDLE,      /* cuMemCreate; lives until released and unmapped */
    SAIR_MEMORY_MAPPING,     /* cuMemMap of such a handle, keyed by address */
    SAIR_MEMORY_ARRAY,
    SAIR_MEMORY_MIPMAP,
    SAIR_MEMORY_EXTERNAL
};

/* An allocation being made. */
struct sair_reservation {
    struct sair_device *device; /* NULL: nothing is limited */
    uint64_t bytes;
};

/* Reserve `bytes` on the current device, or on `ordinal` where that is not -1. Returns 0 where the limit forbids it. */
int sair_memory_reserve(struct sair_reservation *reservation, uint64_t bytes, int ordinal);
/* The driver failed: give the reservation back. */
void sair_memory_cancel(struct sair_reservation *reservation);
/* It succeeded: remember it under its handle so that freeing refunds exactly this. */
void sair_memory_keep(struct sair_reservation *reservation, enum sair_memory_kind kind, uint64_t handle);
/* One more reference to a kept allocation. */
void sair_memory_retain(enum sair_memory_kind kind, uint64_t handle);
/* Freeing takes two steps around the driver's call: the record is taken out before it (afterwards the handle may
 * already belong to another thread's allocation) and refunded after it (before it the memory is still held). NULL: no
 * such record, or other references remain. */
struct sair_memory_record *sair_memory_detach(enum sair_memory_kind kind, uint64_t handle);
/* `was_freed` 0: the driver refused, the record goes back. NULL does nothing. */
void sair_memory_settle(struct sair_memory_record *record, int was_freed);
/* A mapping of `handle` at `address`. */
void sair_memory_map(uint64_t address, uint64_t bytes, uint64_t handle);
void sair_memory_unmap(uint64_t address, uint64_t bytes);

/* Whether it is the primary context of a device; in stream_hooks.c. */
int sair_context_is_primary(CUcontext context);
/* Everything allocated with that context current is gone with it. */
void sair_memory_context_gone(CUcontext context);
/* After fork, in the child: it holds nothing. */
void sair_memory_forget(void);

/* The limit in force (0: none) and what the container holds on the device. */
uint64_t sair_memory_limit(void);
uint64_t sair_memory_used(const struct sair_device *device);

#endif
