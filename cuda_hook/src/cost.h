/* What a launch costs: learned per function and launch shape, per executable graph. */
#ifndef SAIR_COST_H
#define SAIR_COST_H

#include "cuda_abi.h"

/* A window of the running minimum: long enough to hold a launch that nobody disturbed, short enough that a kernel whose
 * cost rises is charged its new cost within half a second. */
#define SAIR_COST_WINDOW_NS UINT64_C(200000000)

struct sair_key {
    uint64_t words[5];
};

struct sair_cost {
    uint32_t state;            /* 0 empty, 1 being filled, 2 valid */
    uint32_t samples;          /* 0: unmeasured */
    struct sair_key key;
    int64_t mean_ns;           /* moving average; for while spans can be trusted */
    int64_t low_ns;            /* lowest over the last two windows; what it costs undisturbed */
    uint32_t generation;       /* counts how often the entry was forgotten or became another key's */
    int64_t window_low_ns;     /* lowest in the current window */
    uint64_t window_start_ns;
    uint32_t window_samples;
    uint32_t quality;          /* of the estimate: 0 provisional, 1 measured with little slack */
    uint64_t learned_ns;       /* when it last learned */
    uint32_t impatient;        /* a launch waited in vain for the first measurement: no other will */
    uint64_t pending_since_ns; /* an unmeasured launch is in flight since; 0 = none */
} __attribute__((aligned(128))); /* what every launch reads is one line of the cache */

/* Keeps gcc from reading eight bytes where it spilled four because the upper half is shifted out: the processor cannot
 * forward such a store, which costs 4 ns a launch. */
static inline uint64_t sair_wide(unsigned half) {
    uint64_t wide = half;
    __asm__("" : "+r"(wide));
    return wide;
}

static inline struct sair_key sair_key_kernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                                              unsigned by, unsigned bz, unsigned shared) {
    return (struct sair_key){{(uint64_t)(uintptr_t)f, sair_wide(gx) << 32 | gy, sair_wide(gz) << 32 | bx,
                              sair_wide(by) << 32 | bz, shared}};
}

static inline struct sair_key sair_key_graph(CUgraphExec exec) {
    return (struct sair_key){{(uint64_t)(uintptr_t)exec, 0, 0, 0, UINT64_MAX}};
}

/* The same on another GPU: a kernel may be launched on any, an executable graph too. */
static inline void sair_key_on(struct sair_key *key, unsigned gpu) {
    /* Not touched again for the first: it would have to be read back from where it was just written. */
    if (__builtin_expect(gpu != 0, 0)) key->words[4] ^= (uint64_t)gpu << 32;
}

/* The entry of a key, made if it is new. Entries are never shared or moved, but where the table is full around a new key,
 * it takes the place of the one that learned least lately: who keeps an entry keeps its generation too and looks whether
 * it is still the same. NULL where all of them learned a moment ago. */
struct sair_cost *sair_cost_find(const struct sair_key *key);

/* Forget what is known of a key, if it is known. */
void sair_cost_forget(const struct sair_key *key);

/* One measured cost per launch. `quality` 0: slack makes it rough, the first better one replaces it. The low is that of
 * windows of `window_ns`.
 * `isolated`: nothing of ours ran beside it, so that a higher value than before is news too. One caller at a time. */
void sair_cost_learn(struct sair_cost *cost, int64_t ns, int quality, int isolated, uint64_t window_ns,
                     uint64_t now_ns);

/* After fork: nothing is in flight in the child, and no other thread is about to fill an entry. */
void sair_cost_reset_pending(void);

#endif
