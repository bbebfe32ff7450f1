#include "check.h"

#include "../../src/atomics.h"
#include "../../src/bucket.h"
#include "../../src/busy_map.h"
#include "../../src/cost.h"
#include "../../src/quiet.h"

#include <pthread.h>
#include <string.h>

#define MS UINT64_C(1000000)
#define NOW (1000000 * MS)
#define WINDOW (20 * MS)

static struct sair_page_gpu gpu;
static int64_t ahead;

static int charge(int64_t ns, uint32_t rate, uint64_t now) {
    return sair_bucket_charge(&gpu, ns, rate, WINDOW, 0, now, &ahead);
}

static void fresh(void) {
    memset(&gpu, 0, sizeof gpu);
    gpu.next_admissible_ns = NOW;
}

static void a_charge_moves_balance_into_the_future_by_cost_over_rate(void) {
    fresh();
    CHECK(charge(1000000, 250000, NOW));
    CHECK(sair_bucket_ahead(&gpu, NOW) == 4000000);
    CHECK(!charge(1000000, 250000, NOW + 3 * MS) && ahead == 1000000);
    CHECK(charge(1000000, 250000, NOW + 4 * MS));
    CHECK(gpu.charged_ns == 2000000);
}

static void a_long_kernel_is_owed_in_full(void) {
    fresh();
    CHECK(charge(50 * (int64_t)MS, 300000, NOW));
    CHECK(!charge(1, 300000, NOW + 166 * MS));
    CHECK(charge(1, 300000, NOW + 167 * MS));
}

static void idle_time_is_saved_up_to_the_window_only(void) {
    fresh();
    uint64_t later = NOW + 5000 * MS;
    int64_t spent = 0;
    while (charge(100000, 500000, later)) spent += 100000;
    CHECK(spent == 10100000); /* 20 ms at one half, and the one that ends ahead */
}

static void over_any_length_of_time_the_rate_holds(void) {
    fresh();
    int64_t spent = 0;
    for (uint64_t now = NOW; now < NOW + 10000 * MS; now += MS / 4)
        if (charge(700000, 300000, now)) spent += 700000;
    CHECK(spent > 2999 * (int64_t)MS && spent < 3002 * (int64_t)MS);
}

static void corrections_are_signed(void) {
    fresh();
    CHECK(charge(4000000, 500000, NOW));
    sair_bucket_correct(&gpu, -3000000, 500000, NOW);
    CHECK(sair_bucket_ahead(&gpu, NOW) == 2000000 && gpu.charged_ns == 1000000);
    sair_bucket_correct(&gpu, 1000000, 500000, NOW);
    CHECK(sair_bucket_ahead(&gpu, NOW) == 4000000);
}

static void a_new_rate_keeps_what_is_owed_in_gpu_time(void) {
    fresh();
    CHECK(charge(10 * (int64_t)MS, 100000, NOW)); /* 100 ms of wall time */
    sair_bucket_rescale(&gpu, 100000, 500000, NOW);
    CHECK(sair_bucket_ahead(&gpu, NOW) == 20 * (int64_t)MS);
}

static void a_corrupt_word_stops_nobody(void) {
    fresh();
    gpu.next_admissible_ns = UINT64_MAX / 2;
    CHECK(sair_bucket_ahead(&gpu, NOW) == 0);
    CHECK(charge(1000, 500000, NOW));
    gpu.next_admissible_ns = UINT64_MAX / 2;
    sair_bucket_rescale(&gpu, 500000, 100000, NOW);
    CHECK(sair_bucket_ahead(&gpu, NOW) == 0);
}

static void a_debt_is_cut_to_its_cap_not_forgiven(void) {
    fresh();
    CHECK(charge(4000 * (int64_t)MS, 50000, NOW)); /* 80 s of wall time */
    CHECK(sair_bucket_ahead(&gpu, NOW) == (int64_t)SAIR_DEBT_MAX_NS);
    /* Nor by a thread that read the clock a little earlier, or adds to it. */
    CHECK(sair_bucket_ahead(&gpu, NOW - MS) == (int64_t)SAIR_DEBT_MAX_NS);
    CHECK(!charge(1000, 50000, NOW - MS));
    sair_bucket_correct(&gpu, 4000 * (int64_t)MS, 50000, NOW + MS);
    CHECK(sair_bucket_ahead(&gpu, NOW + MS) == (int64_t)SAIR_DEBT_MAX_NS);
    CHECK(!charge(1000, 50000, NOW + 59000 * MS) && charge(1000, 50000, NOW + 60001 * MS));
}

static void *hammer(void *unused) {
    int64_t ignored;
    for (int i = 0; i < 20000; i++) sair_bucket_charge(&gpu, 100, 500000, WINDOW, UINT64_C(1) << 40, NOW, &ignored);
    return unused;
}

static void concurrent_charges_are_all_counted(void) {
    fresh();
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, hammer, NULL) == 0);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    CHECK(gpu.charged_ns == 8000000);
    CHECK(sair_bucket_ahead(&gpu, NOW) == 16000000);
}

static void overlapping_intervals_are_busy_once(void) {
    fresh();
    CHECK(sair_busy_mark(&gpu, NOW, NOW + 10 * MS) == 10 * MS);
    CHECK(sair_busy_mark(&gpu, NOW, NOW + 10 * MS) == 0);
    uint64_t more = sair_busy_mark(&gpu, NOW + 5 * MS, NOW + 15 * MS);
    CHECK(more > 5 * MS - 20000 && more < 5 * MS + 20000);
}

static void adjoining_intervals_sum_to_the_whole(void) {
    fresh();
    uint64_t sum = 0;
    for (uint64_t at = NOW; at < NOW + 100 * MS; at += 333333) sum += sair_busy_mark(&gpu, at, at + 333333);
    CHECK(sum > 100 * MS - 400000 && sum < 100 * MS + 400000);
}

static void the_map_forgets_after_its_turn(void) {
    fresh();
    CHECK(sair_busy_mark(&gpu, NOW, NOW + MS) > 0);
    uint64_t turn = (uint64_t)SAIR_PAGE_BUSY_WORDS * SAIR_PAGE_BINS_PER_WORD << SAIR_PAGE_BIN_SHIFT;
    CHECK(sair_busy_mark(&gpu, NOW + turn, NOW + turn + MS) == MS);
    /* and what is older than the map counts as new */
    CHECK(sair_busy_mark(&gpu, NOW, NOW + MS) == MS);
}

static void an_interval_longer_than_the_map_counts_in_full(void) {
    fresh();
    uint64_t got = sair_busy_mark(&gpu, NOW, NOW + 5000 * MS);
    CHECK(got > 4999 * MS && got <= 5000 * MS);
}

static uint64_t left(uint64_t seed, uint64_t predicted_ns, uint64_t now) {
    struct sair_quiet who = {.seed = seed, .is_kept = 1, .processes = 1, .predicted_ns = predicted_ns};
    return sair_quiet_left(&who, now);
}

static void each_of_two_containers_is_alone_now_and_then(void) {
    for (uint64_t seed = 0; seed < 500; seed++) {
        int quiet = 0, alone = 0, long_alone = 0;
        /* Four periods with a long quiet make whole blocks of four of the others. */
        for (uint64_t now = 0; now < SAIR_QUIET_CYCLE_NS * 2; now += 200 * MS) {
            uint64_t own = left(seed, 0, now), other = left(seed + 1000, 0, now);
            CHECK(left(seed, 0, now + SAIR_QUIET_LONG_NS) == 0);
            quiet += own != 0;
            alone += own == 0 && other == SAIR_QUIET_SHORT_NS;
            long_alone += own == 0 && other == SAIR_QUIET_LONG_NS;
        }
        CHECK(quiet >= 96 && quiet <= 160); /* half of 256, but for the short ones that a long one stands for */
        CHECK(alone >= 10 && long_alone >= 1);
    }
}

static void nothing_runs_into_a_long_quiet(void) {
    for (uint64_t now = 0; now < SAIR_QUIET_CYCLE_NS; now += MS) {
        uint64_t cycle = 1600 * MS, into = now % cycle, opens = 18 * MS;
        if (into >= SAIR_QUIET_LONG_NS && into < cycle - 103 * MS) CHECK(left(1, 100 * MS, now) <= SAIR_QUIET_SHORT_NS);
        /* 100 ms that would end after it opens wait for it, and then for as long as it is others'. */
        if (into > cycle - 81 * MS) CHECK(left(1, 100 * MS, now) == cycle - into);
        if (into < opens) CHECK(left(1, 100 * MS, now) >= opens - into);
        /* What is over by then need not wait. */
        if (into > cycle - 81 * MS) CHECK(left(1, 5 * MS, now) == 0);
    }
}

static void long_launches_are_told_when_a_long_quiet_is_theirs(void) {
    struct sair_quiet who = {.seed = 7, .is_kept = 1, .processes = 1, .predicted_ns = 100 * MS};
    int opened = 0;
    for (uint64_t now = 0; now < SAIR_QUIET_CYCLE_NS; now += MS) {
        uint64_t in = sair_quiet_opens_in(&who, now);
        if (in > 0) continue;
        opened++;
        CHECK(sair_quiet_left(&who, now) == 0 && now % (1600 * MS) >= 18 * MS && now % (1600 * MS) < 23 * MS);
        CHECK(sair_quiet_opens_in(&who, now - 2000) <= 2000);
    }
    CHECK(opened == 8 * 5); /* eight of sixteen, 5 ms each */
    who.predicted_ns = 20 * MS;
    CHECK(sair_quiet_opens_in(&who, 18 * MS) == UINT64_MAX);
}

static void processes_of_a_container_take_turns(void) {
    for (unsigned count = 2; count <= 8; count++) {
        unsigned turns[8] = {0};
        for (uint64_t now = 0; now < 160000 * MS; now += 200 * MS) {
            unsigned loud = 0;
            for (unsigned rank = 0; rank < count; rank++) {
                struct sair_quiet who = {.is_kept = 0, .processes = count, .rank = rank};
                if (sair_quiet_left(&who, now) != 0) continue;
                loud++;
                turns[rank]++;
            }
            CHECK(loud == 1);
        }
        for (unsigned rank = 0; rank < count; rank++) CHECK(turns[rank] > 400 / count && turns[rank] < 1600 / count);
    }
}

static struct sair_key key(uint64_t f) {
    return sair_key_kernel((CUfunction)(uintptr_t)f, 1, 2, 3, 4, 5, 6, 7); // NOLINT
}

static void shapes_of_one_function_are_apart(void) {
    struct sair_key a = sair_key_kernel((CUfunction)64, 1, 1, 1, 32, 1, 1, 0); // NOLINT
    struct sair_key b = sair_key_kernel((CUfunction)64, 2, 1, 1, 32, 1, 1, 0); // NOLINT
    CHECK(sair_cost_find(&a) != sair_cost_find(&b));
    CHECK(sair_cost_find(&a) == sair_cost_find(&a));
}

static void a_rough_first_measurement_yields_to_a_good_one(void) {
    struct sair_key k = key(1000);
    struct sair_cost *c = sair_cost_find(&k);
    sair_cost_learn(c, 5000000, 0, 1, SAIR_COST_WINDOW_NS, NOW);
    CHECK(c->low_ns == 5000000);
    sair_cost_learn(c, 20000, 1, 1, SAIR_COST_WINDOW_NS, NOW + MS);
    CHECK(c->low_ns == 20000 && c->mean_ns == 20000);
}

static void stretched_spans_do_not_raise_the_low_but_a_dearer_kernel_does(void) {
    struct sair_key k = key(1001);
    struct sair_cost *c = sair_cost_find(&k);
    uint64_t now = NOW;
    for (int i = 0; i < 1000; i++, now += MS)
        sair_cost_learn(c, i % 10 == 0 ? 1000000 : 2600000, 1, 1, SAIR_COST_WINDOW_NS, now);
    CHECK(c->low_ns == 1000000);
    for (int i = 0; i < 600; i++, now += MS) sair_cost_learn(c, 3000000, 1, 1, SAIR_COST_WINDOW_NS, now);
    CHECK(c->low_ns == 3000000);
}

static void a_changed_graph_is_unmeasured_again(void) {
    struct sair_key k = sair_key_graph((CUgraphExec)4096); // NOLINT
    sair_cost_learn(sair_cost_find(&k), 1000, 1, 1, SAIR_COST_WINDOW_NS, NOW);
    sair_cost_forget(&k);
    CHECK(sair_cost_find(&k)->samples == 0);
}

static void a_change_ends_what_was_known_of_before(void) {
    struct sair_key k = sair_key_graph((CUgraphExec)8192); // NOLINT
    struct sair_cost *c = sair_cost_find(&k);
    uint32_t before = c->generation;
    sair_cost_forget(&k);
    CHECK(c->generation != before && sair_cost_find(&k) == c);
}

static void the_same_kernel_on_two_gpus_has_two_costs(void) {
    struct sair_key a = key(2000), b = key(2000), c = sair_key_graph((CUgraphExec)12288), d = c; // NOLINT
    sair_key_on(&b, 1);
    sair_key_on(&d, 3);
    CHECK(sair_cost_find(&a) != sair_cost_find(&b) && sair_cost_find(&c) != sair_cost_find(&d));
}

/* Runs after the table is full. */
static void a_new_key_takes_the_place_of_one_long_not_learned(void) {
    static struct sair_cost *known[20000];
    struct sair_cost *oldest = NULL;
    for (uint64_t f = 1; f < 20000; f++) {
        struct sair_key old = key(f << 12);
        known[f] = sair_cost_find(&old);
    }
    for (uint64_t f = 1; f < 20000; f++)
        if (known[f] != NULL) known[f]->learned_ns = UINT64_MAX;
    struct sair_key k = key(30000 << 12);
    CHECK(sair_cost_find(&k) == NULL); /* all of them have learned lately */
    for (uint64_t f = 1; f < 20000; f++) {
        if (known[f] == NULL) continue;
        known[f]->learned_ns = 1;
        if (f % 2 == 0) known[f]->pending_since_ns = NOW; /* in flight: stays */
    }
    for (uint64_t f = 30000; f < 31000; f++) {
        struct sair_key fresh_key = key(f << 12);
        struct sair_cost *c = sair_cost_find(&fresh_key);
        CHECK(c != NULL && c->samples == 0 && c->pending_since_ns == 0 && c != oldest);
        CHECK(memcmp(&c->key, &fresh_key, sizeof fresh_key) == 0 && c->generation >= 2);
        CHECK(sair_cost_find(&fresh_key) == c);
        oldest = c;
    }
}

static void a_full_table_shares_nothing(void) {
    struct sair_cost *seen = NULL;
    int refused = 0;
    for (uint64_t f = 1; f < 20000; f++) {
        struct sair_key k = key(f << 12);
        struct sair_cost *c = sair_cost_find(&k);
        if (c == NULL) {
            refused++;
            continue;
        }
        CHECK(c != seen);
        CHECK(memcmp(&c->key, &k, sizeof k) == 0);
        seen = c;
    }
    CHECK(refused > 10000);
}

int main(void) {
    RUN(a_charge_moves_balance_into_the_future_by_cost_over_rate);
    RUN(a_long_kernel_is_owed_in_full);
    RUN(idle_time_is_saved_up_to_the_window_only);
    RUN(over_any_length_of_time_the_rate_holds);
    RUN(corrections_are_signed);
    RUN(a_new_rate_keeps_what_is_owed_in_gpu_time);
    RUN(a_corrupt_word_stops_nobody);
    RUN(a_debt_is_cut_to_its_cap_not_forgiven);
    RUN(concurrent_charges_are_all_counted);
    RUN(overlapping_intervals_are_busy_once);
    RUN(adjoining_intervals_sum_to_the_whole);
    RUN(the_map_forgets_after_its_turn);
    RUN(an_interval_longer_than_the_map_counts_in_full);
    RUN(each_of_two_containers_is_alone_now_and_then);
    RUN(nothing_runs_into_a_long_quiet);
    RUN(long_launches_are_told_when_a_long_quiet_is_theirs);
    RUN(processes_of_a_container_take_turns);
    RUN(shapes_of_one_function_are_apart);
    RUN(a_rough_first_measurement_yields_to_a_good_one);
    RUN(stretched_spans_do_not_raise_the_low_but_a_dearer_kernel_does);
    RUN(a_changed_graph_is_unmeasured_again);
    RUN(a_change_ends_what_was_known_of_before);
    RUN(the_same_kernel_on_two_gpus_has_two_costs);
    RUN(a_full_table_shares_nothing);
    RUN(a_new_key_takes_the_place_of_one_long_not_learned);
    return CHECK_RESULT();
}
