#include "limiter.h"

#include "bucket.h"
#include "contention.h"
#include "fair.h"
#include "quiet.h"

#include <errno.h>
#include <time.h>

/* A batch is closed at this much predicted work or this many launches. */
#define BATCH_NS INT64_C(1000000)
#define BATCH_LAUNCHES 256u
/* Budget a process takes at a time. */
#define LEASE_NS INT64_C(1000000)
/* Overdraft that is not worth a sleep. */
#define TOLERANCE_NS (2 * SAIR_MS)
/* Charged for a launch whose cost is unknown, until it is measured, while nothing has been measured at all. */
#define UNKNOWN_NS INT64_C(50000)
/* Sleeps are cut to this, to see corrections and new grants. */
#define SLICE_NS (20 * SAIR_MS)
#define POLL_NS (200 * SAIR_US)
/* The longest a launch waits for earlier ones to finish: ranks that wait for each other must not wait for ever. */
#define DRAIN_MAX_NS (100 * SAIR_MS)
#define MEASURE_MAX_NS (250 * SAIR_MS)
/* A key not measured for this long gets a batch of its own, but not more than one key each PROBE_SPACING_NS. */
#define PROBE_AGE_NS (100 * SAIR_MS)
#define PROBE_SPACING_NS (5 * SAIR_MS)
#define SHORT_BATCH_NS INT64_C(100000)
#define MEASURED_OF_SHORT 8u
#define DRAIN_MIN_NS (2 * (int64_t)SAIR_MS)
/* Overdraft with which a launch may use a long quiet period: what is owed for one of its kind that was overcharged. */
#define OPENING_CREDIT_NS (500 * SAIR_MS)

/* Kept out of the way of a launch that needs none of it. */
#define SELDOM __attribute__((noinline, cold))

static void sleep_ns(uint64_t ns) {
    struct timespec left = {(time_t)(ns / UINT64_C(1000000000)), (long)(ns % UINT64_C(1000000000))};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

static uint64_t smaller(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static int64_t undisturbed(const struct sair_device *device, const struct sair_cost *cost) {
    return SAIR_LOAD(&device->trusted) ? SAIR_LOAD(&cost->mean_ns) : SAIR_LOAD(&cost->low_ns);
}

static int64_t scaled(const struct sair_device *device, int64_t ns) {
    uint32_t factor = SAIR_LOAD(&device->factor_ppm);
    if (SAIR_LOAD(&device->trusted) || factor == SAIR_RATE_ONE_PPM) return ns;
    return (int64_t)((double)ns * (double)factor * 1e-6);
}

/* What is charged for a launch whose cost is unknown, until it is measured. */
static int64_t usual(const struct sair_device *device) {
    int64_t ns = SAIR_LOAD(&device->usual_ns);
    return ns > 0 ? ns : UNKNOWN_NS;
}

static uint64_t look(struct sair_device *device) {
    uint64_t now = sair_now_ns();
    sair_process_tick(now);
    sair_streams_harvest(now);
    sair_contention_refresh(device, now);
    return now;
}

/* Predicted work in flight stays within what the rate earns in a window: what is queued can no longer be held back. */
static int has_room(const struct sair_device *device, int64_t charge, uint64_t waited_ns) {
    int64_t outstanding = SAIR_LOAD(&device->slot->outstanding_ns);
    int64_t bound = sair_gpu_ns(sair_process.config.window_ns, SAIR_LOAD(&sair_process.rate_ppm));
    if (bound < DRAIN_MIN_NS) bound = DRAIN_MIN_NS;
    return outstanding <= 0 || outstanding + charge <= bound || waited_ns > DRAIN_MAX_NS;
}

/* A request for budget. */
struct request {
    struct sair_device *device;
    int64_t chunk_ns;     /* to be taken */
    int64_t charge_ns;    /* of which the launch at hand costs so much */
    uint64_t started_ns;
    int64_t ahead_ns;     /* wall time after which the next try makes sense */
    uint64_t opens_in_ns; /* until it may go ahead of its budget, see quiet.h */
    int is_held;          /* by a quiet period */
};

/* Beside tenants of whom no agent tells, containers and their processes take turns. */
static int is_taking_turns(const struct sair_device *device) {
    return SAIR_LOAD(&device->stretched) || SAIR_LOAD(&device->siblings) > 1;
}

static void ask_quiet(struct request *request, uint64_t now) {
    const struct sair_device *device = request->device;
    struct sair_quiet who = {
        .seed = SAIR_LOAD(&sair_process.page->header.quiet_seed),
        .is_kept = SAIR_LOAD(&device->stretched) != 0,
        .processes = SAIR_LOAD(&device->siblings),
        .rank = SAIR_LOAD(&device->rank),
        .predicted_ns = (uint64_t)(2 * request->charge_ns),
    };
    request->ahead_ns = (int64_t)sair_quiet_left(&who, now);
    request->is_held = request->ahead_ns > 0;
    request->opens_in_ns = sair_quiet_opens_in(&who, now);
}

static int try_charge(struct request *request, uint64_t tolerance_ns, uint64_t now) {
    struct sair_device *device = request->device;
    uint32_t rate = SAIR_LOAD(&sair_process.rate_ppm);
    uint64_t window = sair_process.config.window_ns + SAIR_LOAD(&device->gpu->queue_to_done_ns);
    request->is_held = 0;
    request->opens_in_ns = UINT64_MAX;
    if (is_taking_turns(device)) {
        /* Quiet time is not lost budget. */
        window += SAIR_QUIET_LONG_NS;
        ask_quiet(request, now);
        if (request->is_held) return 0;
        if (request->opens_in_ns == 0) tolerance_ns = OPENING_CREDIT_NS;
    }
    request->ahead_ns = sair_bucket_ahead(device->gpu, now);
    if (request->ahead_ns > (int64_t)tolerance_ns) return 0;
    if (!has_room(device, request->charge_ns, now - request->started_ns)) return 0;
    if (!sair_fair_turn(device, request->ahead_ns, now)) return 0;
    return sair_bucket_charge(device->gpu, request->chunk_ns, rate, window, tolerance_ns, now, &request->ahead_ns);
}

static uint64_t wait_for_budget(struct request *request) {
    struct sair_device *device = request->device;
    uint64_t now = request->started_ns;
    sair_streams_close_batches();
    sair_fair_wait_begins(device, now);
    do {
        uint64_t pause = request->ahead_ns > 0 ? smaller((uint64_t)request->ahead_ns, SLICE_NS) : POLL_NS;
        sleep_ns(request->opens_in_ns > 0 ? smaller(pause, request->opens_in_ns) : pause);
        now = look(device);
        /* Who is held back keeps nobody else waiting. */
        if (request->is_held)
            sair_fair_wait_ends(device);
        else
            sair_fair_wait_goes_on(device, now);
        if (SAIR_LOAD(&sair_process.mode) != SAIR_MODE_LIMIT) break;
    } while (!try_charge(request, 0, now));
    sair_fair_wait_ends(device);
    SAIR_ADD(&device->slot->throttled_ns, now - request->started_ns);
    return now;
}

/* The lease is spent: take the next one, large enough for `charge`, which is spent at once. */
static SELDOM void renew(struct sair_device *device, int64_t charge) {
    static uint64_t probed_ns;
    int64_t lease = sair_gpu_ns(sair_process.config.window_ns, SAIR_LOAD(&sair_process.rate_ppm)) / 4;
    if (lease > LEASE_NS) lease = LEASE_NS;
    int64_t chunk = charge > lease ? charge : lease;
    uint64_t now = look(device);
    struct request request = {.device = device, .chunk_ns = chunk, .charge_ns = charge, .started_ns = now};
    sair_fair_arrive(device);
    if (!try_charge(&request, TOLERANCE_NS, now)) now = wait_for_budget(&request);
    sair_fair_serve(device, chunk);
    if (chunk > charge) SAIR_ADD(&device->slot->lease_ns, chunk - charge);
    SAIR_STORE(&device->slot->last_seen_ns, now);
    if (now - SAIR_LOAD(&probed_ns) > PROBE_SPACING_NS) {
        SAIR_STORE(&probed_ns, now);
        SAIR_STORE(&device->probe_before_ns, now - PROBE_AGE_NS);
    }
}

/* An unmeasured key is in flight: wait for its first measurement, within bounds. Returns what to charge if it is still
 * unknown: it has run for that long already. */
static int64_t wait_for_measurement(struct sair_device *device, struct sair_cost *cost) {
    uint64_t since = SAIR_LOAD(&cost->pending_since_ns), started = sair_now_ns(), now = started, pause = POLL_NS / 4;
    while (since != 0 && SAIR_LOAD(&cost->samples) == 0 && !SAIR_LOAD(&cost->impatient)) {
        if (now - started > MEASURE_MAX_NS) {
            SAIR_STORE(&cost->impatient, 1u);
            break;
        }
        sleep_ns(pause);
        if (pause < SAIR_MS) pause *= 2;
        now = look(device);
        since = SAIR_LOAD(&cost->pending_since_ns);
    }
    return since != 0 && now > since ? (int64_t)(now - since) : usual(device);
}

/* A launch of unknown cost must not find its stream's ring full: it could not be measured. One that waits in vain is the
 * last to wait until something has moved. */
static void wait_for_ring(struct sair_device *device, CUstream handle, int per_thread) {
    struct sair_stream *stream = sair_stream_find(handle, per_thread);
    uint64_t started = sair_now_ns(), now = started;
    while (stream != NULL && sair_stream_is_filling(stream)) {
        uint32_t head = SAIR_LOAD(&stream->head);
        if (SAIR_LOAD(&stream->stuck) == head + 1) return;
        if (now - started > MEASURE_MAX_NS) SAIR_STORE(&stream->stuck, head + 1);
        sleep_ns(POLL_NS);
        now = look(device);
    }
}

/* The cost is unknown: wait until it is known or the launch can be measured. Returns what to charge if it still is
 * unknown. */
static SELDOM int64_t await_cost(struct sair_device *device, struct sair_cost *cost, CUstream handle, int per_thread) {
    SAIR_ADD(&device->slot->unmeasured, UINT64_C(1));
    wait_for_ring(device, handle, per_thread);
    if (cost != NULL && SAIR_LOAD(&cost->pending_since_ns) != 0) return wait_for_measurement(device, cost);
    return usual(device);
}

/* Whether this launch is to be measured by itself although its cost is known. */
static int is_probe(struct sair_device *device, const struct sair_cost *cost) {
    if (__builtin_expect(SAIR_LOAD(&cost->learned_ns) >= SAIR_LOAD(&device->probe_before_ns), 1)) return 0;
    SAIR_STORE(&device->probe_before_ns, UINT64_C(0));
    return 1;
}

/* A program that waits for the device after every few short kernels would pay for two events each time. Of what is
 * known and short, one in a few is measured, and stands for the rest. Not beside other streams, whose batches have
 * to know what ran beside them. */
static int is_skipped(struct sair_stream *stream, int alone, int64_t estimate_ns) {
    if (alone || stream->open || !sair_stream_is_only_one() || stream->last_ns == 0 ||
        stream->last_ns >= SHORT_BATCH_NS)
        return 0;
    if (++stream->skipped >= MEASURED_OF_SHORT) {
        stream->skipped = 0;
        return 0;
    }
    stream->skipped_ns += estimate_ns;
    return 1;
}

/* It is in no batch, or in that of another thread, which is submitting to the stream just now. */
static SELDOM void count_unmeasured(struct sair_launch *launch, struct sair_stream *foreign) {
    launch->foreign = foreign;
    if (foreign != NULL) SAIR_ADD(&foreign->foreign_charged_ns, launch->charged_ns);
    SAIR_ADD(&launch->device->slot->launches, UINT64_C(1));
    if (launch->is_unmeasured) SAIR_ADD(&launch->device->slot->unmeasurable, UINT64_C(1));
}

/* Put the launch into a batch of its stream. Caller holds the stream. */
static void join_batch(struct sair_launch *launch, int alone) {
    struct sair_stream *stream = launch->stream;
    if (stream->open && (alone || stream->current.device != launch->device)) sair_batch_close(stream);
    if (!stream->open) {
        if (is_skipped(stream, alone, launch->estimate_ns) || !sair_batch_open(stream, launch->device)) {
            launch->stream = NULL;
            sair_stream_release(stream);
            count_unmeasured(launch, NULL);
            return;
        }
        stream->current.cost = launch->cost;
        stream->current.generation = launch->generation;
    }
    struct sair_batch *batch = &stream->current;
    if (batch->cost != launch->cost) batch->cost = NULL;
    batch->unmeasured |= (uint8_t)launch->is_unmeasured;
    batch->launches++;
    batch->charged_ns += launch->charged_ns;
    batch->estimate_ns += launch->estimate_ns;
    launch->close_after = alone || batch->estimate_ns >= BATCH_NS || batch->launches >= BATCH_LAUNCHES;
    if (launch->is_unmeasured && launch->cost != NULL && SAIR_LOAD(&launch->cost->generation) == launch->generation)
        SAIR_STORE(&launch->cost->pending_since_ns, batch->opened_ns);
}

void sair_limit_charge(struct sair_launch *launch, struct sair_key *key, CUstream handle, int per_thread,
                       int is_graph) {
    launch->device = NULL;
    launch->stream = NULL;
    if (sair_stream_is_capturing(handle, per_thread)) return;
    struct sair_device *device = sair_device_only();
    if (__builtin_expect(device == NULL, 0)) device = sair_stream_device(handle, per_thread);
    if (device == NULL) return;
    sair_key_on(key, device->index);
    struct sair_cost *cost = sair_cost_find(key);
    launch->device = device;
    launch->cost = cost;
    launch->generation = cost != NULL ? SAIR_LOAD(&cost->generation) : 0;
    launch->close_after = 0;
    if (is_graph) SAIR_ADD(&device->slot->graph_launches, UINT64_C(1));

    int unmeasured = cost == NULL || SAIR_LOAD(&cost->samples) == 0;
    int64_t estimate = 0;
    if (__builtin_expect(unmeasured, 0)) {
        estimate = await_cost(device, cost, handle, per_thread);
        unmeasured = cost == NULL || SAIR_LOAD(&cost->samples) == 0;
    }
    if (!unmeasured) estimate = undisturbed(device, cost);
    int64_t charge = scaled(device, estimate);
    launch->is_unmeasured = unmeasured;
    launch->estimate_ns = estimate;
    launch->charged_ns = charge;
    if (__builtin_expect(SAIR_SUB(&device->slot->lease_ns, charge) < charge, 0)) {
        SAIR_ADD(&device->slot->lease_ns, charge);
        renew(device, charge);
    }
}

void sair_limit_measure(struct sair_launch *launch, CUstream handle, int per_thread) {
    if (launch->device == NULL) return;
    struct sair_stream *taken, *stream = sair_stream_hold(handle, per_thread, &taken);
    if (__builtin_expect(stream != NULL, 1)) {
        launch->stream = stream;
        join_batch(launch, launch->is_unmeasured || is_probe(launch->device, launch->cost));
        return;
    }
    count_unmeasured(launch, taken != NULL && SAIR_LOAD(&taken->open) ? taken : NULL);
}

void sair_limit_end(struct sair_launch *launch, CUresult result) {
    struct sair_stream *stream = launch->stream;
    if (launch->device == NULL) return;
    if (__builtin_expect(result != CUDA_SUCCESS, 0)) {
        /* Nothing was submitted: the budget goes back. */
        SAIR_ADD(&launch->device->slot->lease_ns, launch->charged_ns);
        if (stream == NULL && launch->foreign != NULL)
            SAIR_SUB(&launch->foreign->foreign_charged_ns, launch->charged_ns);
        if (stream != NULL) {
            stream->current.charged_ns -= launch->charged_ns;
            stream->current.estimate_ns -= launch->estimate_ns;
            stream->current.launches--;
            if (launch->cost != NULL) SAIR_STORE(&launch->cost->pending_since_ns, UINT64_C(0));
        }
    }
    if (stream == NULL) return;
    if (launch->close_after) sair_batch_close(stream);
    int is_filling = launch->close_after && sair_stream_is_filling(stream);
    sair_stream_release(stream);
    /* Leases of many short launches end more seldom than the ring is full. */
    if (is_filling) sair_streams_harvest(sair_now_ns());
}

void sair_limit_count(void) {
    uint64_t now = sair_coarse_ns();
    if (__builtin_expect(now >= SAIR_LOAD(&sair_process.next_tick_ns), 0)) sair_process_tick(now);
    struct sair_device *device = sair_device_current();
    if (device != NULL) SAIR_BUMP(&device->slot->launches, UINT64_C(1));
}

void sair_limit_after_wait(void) {
    uint64_t now = sair_now_ns();
    sair_process_tick(now);
    sair_streams_harvest(now);
}
