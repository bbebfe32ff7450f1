/* The two clocks. The coarse one costs 5 ns (no counter read) and steps every 1 to 4 ms. */
#ifndef SAIR_CLOCK_H
#define SAIR_CLOCK_H

#include <stdint.h>
#include <time.h>

#define SAIR_MS UINT64_C(1000000)
#define SAIR_US UINT64_C(1000)

static inline uint64_t sair_clock_read(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static inline uint64_t sair_now_ns(void) {
    return sair_clock_read(CLOCK_MONOTONIC);
}

static inline uint64_t sair_coarse_ns(void) {
    return sair_clock_read(CLOCK_MONOTONIC_COARSE);
}

#endif
