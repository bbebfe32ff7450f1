/*
 * The budget of one GPU: a token bucket kept as one word (GCRA), the wall time at which the budget is in balance.
 *
 * A charge of c GPU-nanoseconds at rate r moves the word c/r into the future. A launch is admissible once the word is
 * not ahead of now: earlier overdraft is owed. While idle the word falls behind now, by at most the window: that much
 * burst is saved up. Pure: time and rate are arguments.
 */
#ifndef SAIR_BUCKET_H
#define SAIR_BUCKET_H

#include "stats_page.h"

/* The longest debt, as wall time: what is charged beyond it is forgiven. */
#define SAIR_DEBT_MAX_NS UINT64_C(60000000000)
/* A word further ahead was corrupted: it counts as balance, so that it cannot stop a program for good. What lies in
 * between is a full debt, written by a thread that read the clock a little later. */
#define SAIR_DEBT_CORRUPT_NS (SAIR_DEBT_MAX_NS + UINT64_C(5000000000))

/* Wall nanoseconds that `gpu_ns` takes to earn at this rate. */
static inline int64_t sair_wall_ns(int64_t gpu_ns, uint32_t rate_ppm) {
    return (int64_t)((double)gpu_ns * 1e6 / (double)rate_ppm);
}

/* GPU-nanoseconds earned in `wall_ns`. */
static inline int64_t sair_gpu_ns(uint64_t wall_ns, uint32_t rate_ppm) {
    return (int64_t)((double)wall_ns * (double)rate_ppm * 1e-6);
}

/* How far the budget is overdrawn, as wall time until balance; negative while there is credit. */
int64_t sair_bucket_ahead(const struct sair_page_gpu *gpu, uint64_t now_ns);

/* Charge `cost_ns` if the budget is overdrawn by at most `tolerance_ns` of wall time. Returns 1 if charged, 0 if not,
 * with *ahead_ns telling how far it is overdrawn. */
int sair_bucket_charge(struct sair_page_gpu *gpu, int64_t cost_ns, uint32_t rate_ppm, uint64_t window_ns,
                       uint64_t tolerance_ns, uint64_t now_ns, int64_t *ahead_ns);

/* Add a correction (positive: charge, negative: refund) whatever the balance. */
void sair_bucket_correct(struct sair_page_gpu *gpu, int64_t cost_ns, uint32_t rate_ppm, uint64_t now_ns);

/* The rate changed: what is owed or saved in GPU time stays, so its wall time scales. */
void sair_bucket_rescale(struct sair_page_gpu *gpu, uint32_t old_ppm, uint32_t new_ppm, uint64_t now_ns);

#endif
