/* Device memory held by this process, and the limit on what the container holds. */
#ifndef SAIR_MEMORY_H
#define SAIR_MEMORY_H

#include "process.h"

enum sair_memory_kind {
    SAIR_MEMORY_POINTER = 1, /* cuMemAlloc and its relatives */
    SAIR_MEMORY_ASYNC,       /* stream-ordered; the bytes are its pool's */
    SAIR_MEMORY_HANDLE,      /* cuMemCreate; lives until released, unmapped and unbound */
    SAIR_MEMORY_MAPPING,     /* cuMemMap of such a handle, keyed by address */
    SAIR_MEMORY_ARRAY_MAP,   /* mapped into a sparse array, keyed by the array */
    SAIR_MEMORY_MULTICAST,   /* bound to a multicast object, keyed by that and the offset */
    SAIR_MEMORY_ARRAY,
    SAIR_MEMORY_MIPMAP,
    SAIR_MEMORY_EXTERNAL
};

struct sair_memory_record;

/* The card is given out in blocks; smaller allocations share them. */
#define SAIR_MEMORY_BLOCK (UINT64_C(2) << 20)

static inline uint64_t sair_memory_blocks(uint64_t bytes) {
    const uint64_t block = SAIR_MEMORY_BLOCK;
    return bytes > UINT64_MAX - block ? UINT64_MAX : (bytes + block - 1) / block * block;
}

/* An allocation being made. */
struct sair_reservation {
    struct sair_device *device; /* NULL: nothing is limited */
    uint64_t bytes;
    uint64_t asked; /* of a pool, which may have room for some of it */
};

/* Nothing is limited and nothing counted. */
static inline int sair_memory_is_off(void) {
    return sair_mode() == SAIR_MODE_OFF && sair_process.config.memory_bytes == 0;
}

/* Reserve `bytes` on the current device, or on `ordinal` where that is not -1. Returns 0 where the limit forbids it,
 * even after pools gave back what they keep. */
int sair_memory_reserve(struct sair_reservation *reservation, uint64_t bytes, int ordinal);
/* Without asking the pools, and without counting a refusal. */
int sair_memory_try(struct sair_reservation *reservation, uint64_t bytes, struct sair_device *device);
void sair_memory_refused(struct sair_device *device);
/* The driver failed: give the reservation back. */
void sair_memory_cancel(struct sair_reservation *reservation);
/* It turned out to take another size. Returns 0 where that is more than fits: the reservation is left as it was. */
int sair_memory_resize(struct sair_reservation *reservation, uint64_t bytes);
/* Count `after` whole blocks' bytes in place of `before`, whatever the limit. Returns 0 where that goes beyond it. */
int sair_memory_exchange(struct sair_device *device, uint64_t before, uint64_t after);
/* It succeeded: remember it under its handle so that freeing refunds exactly this. */
void sair_memory_keep(struct sair_reservation *reservation, enum sair_memory_kind kind, uint64_t handle);
/* A stream-ordered allocation of that pool. */
void sair_memory_keep_pooled(struct sair_device *device, uint64_t handle, void *pool);
/* The pool of such a record; NULL for other kinds. */
void *sair_memory_pool_of(const struct sair_memory_record *record);
/* One more reference to a kept allocation. */
void sair_memory_retain(enum sair_memory_kind kind, uint64_t handle);
/* Freeing takes two steps around the driver's call: the record is taken out before it (afterwards the handle may
 * already belong to another thread's allocation) and refunded after it (before it the memory is still held). NULL: no
 * such record, or other references remain. */
struct sair_memory_record *sair_memory_detach(enum sair_memory_kind kind, uint64_t handle);
/* `was_freed` 0: the driver refused, the record goes back. NULL does nothing. */
void sair_memory_settle(struct sair_memory_record *record, int was_freed);
/* A use of `handle` beside its owner's: a mapping at an address, into an array, a binding. */
void sair_memory_map(enum sair_memory_kind kind, uint64_t key, uint64_t bytes, uint64_t handle);
/* The end of all mappings in a range of addresses. */
void sair_memory_unmap(uint64_t address, uint64_t bytes);
/* The end of all uses of that kind and key. */
void sair_memory_unuse(enum sair_memory_kind kind, uint64_t key);
/* The handle mapped at that address; 0 if none is. */
uint64_t sair_memory_mapped_at(uint64_t address);

/* The device whose primary context it is, or -1; in stream_hooks.c. */
int sair_context_primary_device(CUcontext context);
/* Everything allocated with that context current is gone with it. */
void sair_memory_context_gone(CUcontext context);
/* After fork, in the child: it holds nothing. */
void sair_memory_forget(void);

/* The limit in force (0: none) and what the container holds on the device. */
uint64_t sair_memory_limit(void);
uint64_t sair_memory_used(const struct sair_device *device);
/* Before a query: what dead siblings held and what the driver let go no longer counts. NULL: on every device. */
void sair_memory_bring_up_to_date(const struct sair_device *device);

#endif
