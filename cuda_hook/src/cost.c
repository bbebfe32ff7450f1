#include "cost.h"

#include "atomics.h"
#include "clock.h"

#define TABLE_SIZE 4096u /* a power of two */
#define PROBES 32u
/* What learned so lately is not given up for a new key. */
#define KEEP_NS (1000 * SAIR_MS)
/* How often to look again at an entry that another thread is filling: that is a few stores away. */
#define FILLING_LOOKS 1000u
#define WINDOW_SAMPLES 6u
/* Weight of a new sample in the moving average. */
#define MEAN_SHIFT 2

static struct sair_cost table[TABLE_SIZE];

/* Multilinear, so that no product waits for another; the upper bits depend on all of the key. */
static inline uint32_t hash(const struct sair_key *key) {
    const uint64_t *w = key->words;
    uint64_t h = (w[0] ^ w[0] >> 32) * UINT64_C(0x9e3779b97f4a7c15) + (w[1] ^ w[1] >> 32) * UINT64_C(0xbf58476d1ce4e5b9) +
                 (w[2] ^ w[2] >> 32) * UINT64_C(0x94d049bb133111eb) + (w[3] ^ w[3] >> 32) * UINT64_C(0xd6e8feb86659fd93) +
                 (w[4] ^ w[4] >> 32) * UINT64_C(0xa0761d6478bd642f);
    return (uint32_t)(h >> 40);
}

static inline int is_equal(const struct sair_key *a, const struct sair_key *b) {
    const uint64_t *x = a->words, *y = b->words;
    return ((SAIR_LOAD(&x[0]) ^ y[0]) | (SAIR_LOAD(&x[1]) ^ y[1]) | (SAIR_LOAD(&x[2]) ^ y[2]) |
            (SAIR_LOAD(&x[3]) ^ y[3]) | (SAIR_LOAD(&x[4]) ^ y[4])) == 0;
}

static void start_empty(struct sair_cost *cost, uint64_t learned_ns) {
    SAIR_ADD(&cost->generation, 1u);
    SAIR_STORE(&cost->samples, 0u);
    SAIR_STORE(&cost->impatient, 0u);
    SAIR_STORE(&cost->pending_since_ns, UINT64_C(0));
    SAIR_STORE(&cost->learned_ns, learned_ns);
}

/* Caller brought `state` to 1. */
static struct sair_cost *fill(struct sair_cost *cost, const struct sair_key *key, uint64_t now_ns) {
    start_empty(cost, now_ns);
    for (int i = 0; i < 5; i++) SAIR_STORE(&cost->key.words[i], key->words[i]);
    SAIR_STORE_RELEASE(&cost->state, 2u);
    return cost;
}

/* The place of the key near `at` that learned least lately. */
static struct sair_cost *replace(const struct sair_key *key, uint32_t at) {
    uint64_t now = sair_now_ns(), least = now > KEEP_NS ? now - KEEP_NS : 0;
    struct sair_cost *found = NULL;
    for (uint32_t i = 0; i < PROBES; i++) {
        struct sair_cost *cost = &table[(at + i) & (TABLE_SIZE - 1)];
        uint64_t learned = SAIR_LOAD(&cost->learned_ns);
        if (SAIR_LOAD(&cost->state) != 2 || SAIR_LOAD(&cost->pending_since_ns) != 0 || learned >= least) continue;
        least = learned;
        found = cost;
    }
    uint32_t state = 2;
    return found != NULL && SAIR_CAS(&found->state, &state, 1u) ? fill(found, key, now) : NULL;
}

static struct sair_cost *find(const struct sair_key *key, uint32_t at, int make) {
    for (uint32_t i = 0, looks = 0; i < PROBES && looks < FILLING_LOOKS; i++) {
        struct sair_cost *cost = &table[(at + i) & (TABLE_SIZE - 1)];
        uint32_t state = SAIR_LOAD_ACQUIRE(&cost->state);
        if (state == 2) {
            if (is_equal(&cost->key, key)) return cost;
            continue;
        }
        if (!make) return NULL;
        if (state == 0 && SAIR_CAS(&cost->state, &state, 1u)) return fill(cost, key, sair_now_ns());
        i--; /* another thread is filling it */
        looks++;
    }
    return make ? replace(key, at) : NULL;
}

struct sair_cost *sair_cost_find(const struct sair_key *key) {
    uint32_t at = hash(key);
    struct sair_cost *first = &table[at & (TABLE_SIZE - 1)];
    if (__builtin_expect(SAIR_LOAD_ACQUIRE(&first->state) == 2 && is_equal(&first->key, key), 1)) return first;
    return find(key, at, 1);
}

void sair_cost_forget(const struct sair_key *key) {
    struct sair_cost *cost = find(key, hash(key), 0);
    if (cost != NULL) start_empty(cost, 0);
}

static void start_over(struct sair_cost *cost, int64_t ns, int quality, uint64_t now_ns) {
    SAIR_STORE(&cost->mean_ns, ns);
    SAIR_STORE(&cost->low_ns, ns);
    SAIR_STORE(&cost->window_low_ns, ns);
    SAIR_STORE(&cost->window_start_ns, now_ns);
    SAIR_STORE(&cost->window_samples, 1u);
    SAIR_STORE(&cost->quality, (uint32_t)quality);
    SAIR_STORE(&cost->samples, 1u);
}

static void learn_low(struct sair_cost *cost, int64_t ns, uint64_t window_ns, uint64_t now_ns) {
    if (ns < SAIR_LOAD(&cost->window_low_ns)) SAIR_STORE(&cost->window_low_ns, ns);
    SAIR_BUMP(&cost->window_samples, 1u);
    int64_t lowest = SAIR_LOAD(&cost->window_low_ns);
    if (now_ns - SAIR_LOAD(&cost->window_start_ns) >= window_ns && SAIR_LOAD(&cost->window_samples) >= WINDOW_SAMPLES) {
        SAIR_STORE(&cost->low_ns, lowest);
        SAIR_STORE(&cost->window_low_ns, ns);
        SAIR_STORE(&cost->window_start_ns, now_ns);
        SAIR_STORE(&cost->window_samples, 1u);
    } else if (lowest < SAIR_LOAD(&cost->low_ns)) {
        SAIR_STORE(&cost->low_ns, lowest);
    }
}

void sair_cost_learn(struct sair_cost *cost, int64_t ns, int quality, int isolated, uint64_t window_ns,
                     uint64_t now_ns) {
    if (ns < 1) ns = 1;
    SAIR_STORE(&cost->learned_ns, now_ns);
    SAIR_STORE(&cost->pending_since_ns, UINT64_C(0));
    if (SAIR_LOAD(&cost->samples) == 0 || (quality && !SAIR_LOAD(&cost->quality))) {
        start_over(cost, ns, quality, now_ns);
        return;
    }
    SAIR_BUMP(&cost->samples, 1u);
    learn_low(cost, ns, window_ns, now_ns);
    int64_t mean = SAIR_LOAD(&cost->mean_ns);
    if (ns < mean || isolated) SAIR_STORE(&cost->mean_ns, mean + (ns - mean) / (1 << MEAN_SHIFT));
}

void sair_cost_reset_pending(void) {
    for (uint32_t i = 0; i < TABLE_SIZE; i++) {
        SAIR_STORE(&table[i].pending_since_ns, UINT64_C(0));
        if (SAIR_LOAD(&table[i].state) == 1) SAIR_STORE(&table[i].state, 0u);
    }
}
