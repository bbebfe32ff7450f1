#include "bucket.h"

#include "atomics.h"

/* The word as it counts at `now`: no credit beyond the window, no debt beyond the cap. */
static uint64_t clamp_word(uint64_t word, uint64_t window_ns, uint64_t now_ns) {
    uint64_t earliest = now_ns > window_ns ? now_ns - window_ns : 0;
    if (word < earliest) return earliest;
    return word > now_ns + SAIR_DEBT_MAX_NS ? now_ns : word;
}

int64_t sair_bucket_ahead(const struct sair_page_gpu *gpu, uint64_t now_ns) {
    uint64_t word = SAIR_LOAD(&gpu->next_admissible_ns);
    if (word > now_ns + SAIR_DEBT_MAX_NS) return 0;
    return (int64_t)(word - now_ns);
}

int sair_bucket_charge(struct sair_page_gpu *gpu, int64_t cost_ns, uint32_t rate_ppm, uint64_t window_ns,
                       uint64_t tolerance_ns, uint64_t now_ns, int64_t *ahead_ns) {
    uint64_t cost_wall = (uint64_t)sair_wall_ns(cost_ns, rate_ppm);
    uint64_t word = SAIR_LOAD(&gpu->next_admissible_ns);
    for (;;) {
        uint64_t from = clamp_word(word, window_ns, now_ns);
        *ahead_ns = (int64_t)(from - now_ns);
        if (*ahead_ns > (int64_t)tolerance_ns) return 0;
        if (SAIR_CAS(&gpu->next_admissible_ns, &word, from + cost_wall)) break;
    }
    SAIR_ADD(&gpu->charged_ns, cost_ns);
    return 1;
}

void sair_bucket_correct(struct sair_page_gpu *gpu, int64_t cost_ns, uint32_t rate_ppm, uint64_t now_ns) {
    uint64_t word = SAIR_LOAD(&gpu->next_admissible_ns), moved;
    int64_t wall = sair_wall_ns(cost_ns, rate_ppm);
    do {
        moved = wall < 0 && word < (uint64_t)-wall ? 0 : word + (uint64_t)wall;
        if (moved > now_ns + SAIR_DEBT_MAX_NS) moved = now_ns + SAIR_DEBT_MAX_NS;
    } while (!SAIR_CAS(&gpu->next_admissible_ns, &word, moved));
    SAIR_ADD(&gpu->charged_ns, cost_ns);
}

void sair_bucket_rescale(struct sair_page_gpu *gpu, uint32_t old_ppm, uint32_t new_ppm, uint64_t now_ns) {
    uint64_t word = SAIR_LOAD(&gpu->next_admissible_ns), moved;
    do {
        if (word == 0 || new_ppm == 0) return;
        double ahead = (double)(int64_t)(word - now_ns) * (double)old_ppm / (double)new_ppm;
        if (ahead > (double)SAIR_DEBT_MAX_NS) ahead = (double)SAIR_DEBT_MAX_NS;
        if (ahead < -(double)now_ns) ahead = -(double)now_ns;
        moved = now_ns + (uint64_t)(int64_t)ahead;
    } while (!SAIR_CAS(&gpu->next_admissible_ns, &word, moved));
}
