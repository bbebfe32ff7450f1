#include "bucket.h"

#include "atomics.h"

/* The word as it counts at `now`: no debt beyond the cap, and what is beyond any debt is none. */
static uint64_t in_bounds(uint64_t word, uint64_t now_ns) {
    if (word > now_ns + SAIR_DEBT_CORRUPT_NS) return now_ns;
    return word > now_ns + SAIR_DEBT_MAX_NS ? now_ns + SAIR_DEBT_MAX_NS : word;
}

static uint64_t capped(uint64_t word, uint64_t now_ns) {
    return word > now_ns + SAIR_DEBT_MAX_NS ? now_ns + SAIR_DEBT_MAX_NS : word;
}

int64_t sair_bucket_ahead(const struct sair_page_gpu *gpu, uint64_t now_ns) {
    return (int64_t)(in_bounds(SAIR_LOAD(&gpu->next_admissible_ns), now_ns) - now_ns);
}

int sair_bucket_charge(struct sair_page_gpu *gpu, int64_t cost_ns, uint32_t rate_ppm, uint64_t window_ns,
                       uint64_t tolerance_ns, uint64_t now_ns, int64_t *ahead_ns) {
    uint64_t cost_wall = (uint64_t)sair_wall_ns(cost_ns, rate_ppm);
    uint64_t word = SAIR_LOAD(&gpu->next_admissible_ns);
    for (;;) {
        uint64_t from = in_bounds(word, now_ns), earliest = now_ns > window_ns ? now_ns - window_ns : 0;
        if (from < earliest) from = earliest; /* no credit beyond the window */
        *ahead_ns = (int64_t)(from - now_ns);
        if (*ahead_ns > (int64_t)tolerance_ns) return 0;
        if (SAIR_CAS(&gpu->next_admissible_ns, &word, capped(from + cost_wall, now_ns))) break;
    }
    SAIR_ADD(&gpu->charged_ns, cost_ns);
    return 1;
}

void sair_bucket_correct(struct sair_page_gpu *gpu, int64_t cost_ns, uint32_t rate_ppm, uint64_t now_ns) {
    uint64_t word = SAIR_LOAD(&gpu->next_admissible_ns), moved;
    int64_t wall = sair_wall_ns(cost_ns, rate_ppm);
    do {
        uint64_t from = in_bounds(word, now_ns);
        moved = wall < 0 && from < (uint64_t)-wall ? 0 : capped(from + (uint64_t)wall, now_ns);
    } while (!SAIR_CAS(&gpu->next_admissible_ns, &word, moved));
    SAIR_ADD(&gpu->charged_ns, cost_ns);
}

void sair_bucket_rescale(struct sair_page_gpu *gpu, uint32_t old_ppm, uint32_t new_ppm, uint64_t now_ns) {
    uint64_t word = SAIR_LOAD(&gpu->next_admissible_ns), moved;
    do {
        if (word == 0 || new_ppm == 0) return;
        double ahead = (double)(int64_t)(in_bounds(word, now_ns) - now_ns) * (double)old_ppm / (double)new_ppm;
        if (ahead > (double)SAIR_DEBT_MAX_NS) ahead = (double)SAIR_DEBT_MAX_NS;
        if (ahead < -(double)now_ns) ahead = -(double)now_ns;
        moved = now_ns + (uint64_t)(int64_t)ahead;
    } while (!SAIR_CAS(&gpu->next_admissible_ns, &word, moved));
}
