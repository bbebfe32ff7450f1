/* Short names for the atomic operations on page and process state. Plain integers in the structs, because the page's
 * layout is a contract with readers in other languages. */
#ifndef SAIR_ATOMICS_H
#define SAIR_ATOMICS_H

#define SAIR_LOAD(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define SAIR_LOAD_ACQUIRE(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define SAIR_STORE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define SAIR_STORE_RELEASE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define SAIR_ADD(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define SAIR_SUB(p, v) __atomic_fetch_sub((p), (v), __ATOMIC_RELAXED)
#define SAIR_SWAP(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)
/* Compare and swap; on failure *expected holds the value found. */
#define SAIR_CAS(p, expected, v)                                                                                       \
    __atomic_compare_exchange_n((p), (expected), (v), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
/* Only one thread writes this field: no locked instruction needed. */
#define SAIR_BUMP(p, v) SAIR_STORE((p), SAIR_LOAD(p) + (v))

#endif
