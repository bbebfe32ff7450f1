#include "busy_map.h"

#include "atomics.h"

#define BINS_SHIFT 5u /* 32 bins to a word */
#define MAP_BINS ((uint64_t)SAIR_PAGE_BUSY_WORDS * SAIR_PAGE_BINS_PER_WORD)

/* Bits [low, high] of a word. */
static uint32_t mask(uint32_t low, uint32_t high) {
    return (UINT32_MAX << low) & (UINT32_MAX >> (31u - high));
}

/* Set bits in the word of that number; returns how many were clear. The tag is the word's number, so that a word left
 * from an earlier turn of the ring reads as empty and no one has to clear it. */
static uint64_t set_bits(struct sair_page_gpu *gpu, uint64_t number, uint32_t bits) {
    uint64_t *slot = &gpu->busy_map[number % SAIR_PAGE_BUSY_WORDS];
    uint32_t tag = (uint32_t)number;
    uint64_t word = SAIR_LOAD(slot);
    for (;;) {
        uint32_t held = (uint32_t)(word >> 32);
        int32_t age = (int32_t)(held - tag);
        if (age > 0) return (uint64_t)__builtin_popcount(bits); /* the ring has moved on */
        uint32_t old = age == 0 ? (uint32_t)word : 0;
        if (SAIR_CAS(slot, &word, (uint64_t)tag << 32 | old | bits)) return (uint64_t)__builtin_popcount(bits & ~old);
    }
}

uint64_t sair_busy_mark(struct sair_page_gpu *gpu, uint64_t from_ns, uint64_t until_ns) {
    if (until_ns <= from_ns) return 0;
    uint64_t span = until_ns - from_ns;
    uint64_t first = from_ns >> SAIR_PAGE_BIN_SHIFT, end = until_ns >> SAIR_PAGE_BIN_SHIFT;
    if (end == first) {
        /* Shorter than a bin: it is old news if the bin is taken, but does not take it. */
        uint64_t word = SAIR_LOAD(&gpu->busy_map[(first >> BINS_SHIFT) % SAIR_PAGE_BUSY_WORDS]);
        int taken = (uint32_t)(word >> 32) == (uint32_t)(first >> BINS_SHIFT) && (word >> (first & 31u) & 1u) != 0;
        return taken ? 0 : span;
    }
    uint64_t total = end - first, fresh = 0;
    if (total > MAP_BINS) {
        fresh = total - MAP_BINS;
        first = end - MAP_BINS;
    }
    for (uint64_t bin = first; bin < end;) {
        uint64_t number = bin >> BINS_SHIFT;
        uint64_t next = (number + 1) << BINS_SHIFT;
        uint64_t stop = next < end ? next : end;
        fresh += set_bits(gpu, number, mask((uint32_t)(bin & 31u), (uint32_t)((stop - 1) & 31u)));
        bin = stop;
    }
    return (uint64_t)((double)span * (double)fresh / (double)total);
}
