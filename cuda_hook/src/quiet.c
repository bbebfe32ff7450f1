#include "quiet.h"

#define PERIOD_NS UINT64_C(200000000)
/* One period in so many has the long quiet; it opens when queues have had time to drain. */
#define LONG_EVERY 8u
#define OPENING_NS UINT64_C(18000000)
/* What is believed to take longer is held back no earlier. */
#define PREDICTED_MAX_NS UINT64_C(120000000)
#define BLOCK 4u
/* A launch that starts so soon after the opening still ends in the quiet. */
#define OPEN_NS UINT64_C(5000000)
/* What takes no longer beside others fits a short quiet alone. */
#define LONG_PREDICTED_NS UINT64_C(24000000)

static int is_long(uint64_t period) {
    return period % LONG_EVERY == 0;
}

static uint64_t mix(uint64_t bits) {
    bits = (bits ^ bits >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    bits = (bits ^ bits >> 27) * UINT64_C(0x94d049bb133111eb);
    return bits ^ bits >> 31;
}

/* Whether the quiet of this period is one of those in which the container submits. */
static int is_own(uint64_t seed, uint64_t period) {
    /* The ways to choose two of four. */
    static const unsigned choices[] = {0x3, 0x5, 0x6, 0x9, 0xa, 0xc};
    uint64_t number = is_long(period) ? period / LONG_EVERY : period;
    uint64_t block = number / BLOCK * 2 + (uint64_t)is_long(period);
    return (choices[mix(seed + mix(block)) % 6] >> number % BLOCK & 1u) != 0;
}

static int is_loud(const struct sair_quiet *who, uint64_t period) {
    if (who->is_kept && !is_own(who->seed, period)) return 0;
    return who->processes <= 1 || mix(period) % who->processes == who->rank;
}

uint64_t sair_quiet_left(const struct sair_quiet *who, uint64_t now_ns) {
    uint64_t period = now_ns / PERIOD_NS, into = now_ns % PERIOD_NS;
    uint64_t predicted = who->predicted_ns < PREDICTED_MAX_NS ? who->predicted_ns : PREDICTED_MAX_NS;
    uint64_t length = is_long(period) ? SAIR_QUIET_LONG_NS : SAIR_QUIET_SHORT_NS;
    if (into < length && !is_loud(who, period)) return length - into;
    if (is_long(period) && into < OPENING_NS && into + predicted > OPENING_NS) return OPENING_NS - into;
    if (is_long(period + 1) && into + predicted > PERIOD_NS + OPENING_NS) return PERIOD_NS - into;
    return 0;
}

uint64_t sair_quiet_opens_in(const struct sair_quiet *who, uint64_t now_ns) {
    if (who->predicted_ns <= LONG_PREDICTED_NS) return UINT64_MAX;
    uint64_t period = now_ns / PERIOD_NS / LONG_EVERY * LONG_EVERY, opens;
    do {
        opens = period * PERIOD_NS + OPENING_NS;
        if (now_ns < opens + OPEN_NS && is_loud(who, period)) return opens > now_ns ? opens - now_ns : 0;
        period += LONG_EVERY;
    } while (opens < now_ns + PERIOD_NS * LONG_EVERY * BLOCK);
    return opens - now_ns;
}
