/* Memory that the driver keeps behind allocations, counted by what it holds and not by what is in use: stream-ordered
 * pools and the memory of graphs. What is freed into them stays the process's until the driver lets it go. */
#ifndef SAIR_POOL_H
#define SAIR_POOL_H

#include "memory.h"

struct sair_pool;

static inline int sair_location_is_host(const CUmemLocation *location) {
    return location->type == CU_MEM_LOCATION_TYPE_HOST || location->type == CU_MEM_LOCATION_TYPE_HOST_NUMA ||
           location->type == CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT;
}

/* The pool from which an allocation on that stream comes. Not the card's memory: its device is NULL. NULL: no memory
 * left to keep a record in. */
struct sair_pool *sair_pool_of_stream(CUstream stream);
struct sair_pool *sair_pool_named(CUmemoryPool handle, CUstream stream);
/* What the graphs of a device allocate. */
struct sair_pool *sair_pool_of_graphs(struct sair_device *device);
/* One that the program has just created. */
void sair_pool_created(CUmemoryPool handle, const CUmemPoolProps *props);
/* About to be destroyed: nobody asks the driver about it any more. Then whether it was. NULL: unknown. */
struct sair_pool *sair_pool_retire(CUmemoryPool handle);
void sair_pool_retired(struct sair_pool *pool, int was_destroyed);

/* Make room for `bytes` more in the pool; 0 where the limit forbids it. */
int sair_pool_reserve(struct sair_pool *pool, uint64_t bytes, struct sair_reservation *reservation);
/* The driver failed. */
void sair_pool_cancel(struct sair_pool *pool, struct sair_reservation *reservation);
/* The driver allocated: the pool's own size replaces the reservation. Returns 0 where it grew beyond the limit; the
 * allocation has to be undone. */
int sair_pool_settle(struct sair_pool *pool, struct sair_reservation *reservation);
/* An allocation from it begins or ends. */
void sair_pool_count(struct sair_pool *pool, int change);
/* Graphs: this much is needed however little the driver holds now. */
void sair_pool_need(struct sair_pool *pool, int64_t change);
/* Give free memory back to the card, as far as the driver can now. */
void sair_pool_trim(struct sair_pool *pool);

/* Take up what the driver let go meanwhile, on one device or (NULL) on all. */
void sair_pools_refresh(const struct sair_device *device);
/* Trim what is kept on a device, waiting a little for work that still uses it. Returns 0 where nothing came of it. */
int sair_pools_make_room(const struct sair_device *device);
/* The device was reset. */
void sair_pools_device_gone(const struct sair_device *device);
/* After fork, in the child. */
void sair_pools_forget(void);

#endif
