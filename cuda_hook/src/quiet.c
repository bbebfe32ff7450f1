#include "quiet.h"

#define PERIOD_NS UINT64_C(200000000)
#define PERIODS 16u

uint16_t sair_quiet_code(uint64_t random) {
    uint16_t code = 0;
    int set = 0;
    while (set < 8) {
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        uint16_t bit = (uint16_t)(1u << (random >> 60));
        if ((code & bit) == 0) {
            code |= bit;
            set++;
        }
    }
    return code;
}

uint64_t sair_quiet_left(uint16_t code, uint64_t now_ns) {
    uint64_t into = now_ns % PERIOD_NS, period = now_ns / PERIOD_NS % PERIODS;
    uint32_t bits = code;
    if (into >= SAIR_QUIET_LENGTH_NS || (bits >> period & 1u) != 0) return 0;
    return SAIR_QUIET_LENGTH_NS - into;
}
