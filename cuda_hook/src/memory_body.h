/* What the hooks that allocate and free have in common. */
#ifndef SAIR_MEMORY_BODY_H
#define SAIR_MEMORY_BODY_H

#include "memory.h"
#include "pool.h"

/* The body of every allocating hook. `handle` is read after a successful call. */
#define ALLOCATE(size, ordinal, call, kind, handle)                                                                    \
    do {                                                                                                               \
        if (sair_memory_is_off()) return call;                                                                         \
        struct sair_reservation reservation;                                                                           \
        if (!sair_memory_reserve(&reservation, size, ordinal)) return CUDA_ERROR_OUT_OF_MEMORY;                        \
        CUresult result = call;                                                                                        \
        if (result == CUDA_SUCCESS)                                                                                    \
            sair_memory_keep(&reservation, kind, handle);                                                              \
        else                                                                                                           \
            sair_memory_cancel(&reservation);                                                                          \
        return result;                                                                                                 \
    } while (0)

#define FREE(kind, handle, call)                                                                                       \
    do {                                                                                                               \
        if (sair_memory_is_off()) return call;                                                                         \
        struct sair_memory_record *record = sair_memory_detach(kind, handle);                                          \
        CUresult result = call;                                                                                        \
        sair_memory_settle(record, result == CUDA_SUCCESS);                                                            \
        return result;                                                                                                 \
    } while (0)

/* Also a stream-ordered allocation: each of cuMemFree and cuMemFreeAsync takes both. */
#define FREE_ADDRESS(address, call)                                                                                    \
    do {                                                                                                               \
        if (sair_memory_is_off()) return call;                                                                         \
        struct sair_memory_record *record = sair_memory_detach(SAIR_MEMORY_POINTER, address);                          \
        if (record == NULL) record = sair_memory_detach(SAIR_MEMORY_ASYNC, address);                                   \
        struct sair_pool *pool = sair_memory_pool_of(record);                                                          \
        CUresult result = call;                                                                                        \
        sair_memory_settle(record, result == CUDA_SUCCESS);                                                            \
        if (pool != NULL && result == CUDA_SUCCESS) sair_pool_count(pool, -1);                                         \
        return result;                                                                                                 \
    } while (0)

#endif
