#include "settle.h"

#include "bucket.h"
#include "busy_map.h"
#include "contention.h"
#include "device_clock.h"
#include "event_pool.h"
#include "quiet.h"

/* What a descheduled host thread may at most have added between the start event and the launch. */
#define LAUNCH_GAP_NS INT64_C(30000)
/* A launch this much longer than the shortest of its kind, and long enough for that to be no measuring error, was
 * disturbed. */
#define STRETCH_MIN_NS INT64_C(300000)
/* A cost known from so many samples stays as it is under contention. */
#define FIRM_SAMPLES 10u
#define QUEUE_MAX_NS (1000 * SAIR_MS)
#define USUAL_LAUNCHES 512u

struct sair_interval {
    uint64_t span_ns;  /* start event to end event */
    uint64_t until_ns; /* host time of the end event */
    uint64_t seen_ns;  /* now */
};

static int64_t clamp(int64_t value, int64_t low, int64_t high) {
    return value < low ? low : value > high ? high : value;
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* For how long the device may have idled inside the span: while the host was still submitting although the start event
 * had already been reached. Behind a queue that is 0. */
static int64_t slack_of(const struct sair_batch *batch, const struct sair_interval *interval) {
    uint64_t start = interval->until_ns - interval->span_ns;
    if (start < batch->recorded_ns) start = batch->recorded_ns;
    int64_t slack = (int64_t)(batch->submitted_ns - start);
    return clamp(slack, 0, (int64_t)interval->span_ns);
}

/* What lies between a start event and the launch that follows at once: the least seen lately. Taking all of a launch's
 * slack off would be wrong: the thread may have been descheduled after the launch, while it ran. The harvester's own.
 */
static int64_t usual_gap(int64_t slack) {
    static int64_t usual = 3000;
    if (slack > 0 && slack < usual)
        usual = slack;
    else
        usual += usual / 256 + 1;
    if (usual > LAUNCH_GAP_NS / 6) usual = LAUNCH_GAP_NS / 6;
    return smaller(slack, usual + usual / 4);
}

/* The busy time lies in [span - slack, span]. A single launch has its slack before it, so it cost the rest, unless the
 * thread was descheduled. Of many the last is still running when the next is submitted, so with little slack
 * the span is the cost. Otherwise the bounds only confine what was believed before. */
static void learn(const struct sair_batch *batch, const struct sair_interval *interval, int64_t lower, int isolated) {
    int64_t span = (int64_t)interval->span_ns;
    uint64_t now_ns = interval->seen_ns;
    struct sair_cost *cost = batch->cost;
    /* Forgotten meanwhile, or another key's: what is measured here is another's cost. */
    if (cost == NULL || batch->launches == 0 || SAIR_LOAD(&cost->generation) != batch->generation) return;
    /* Beside other work of ours a span says at most that the cost is lower than believed. */
    if (batch->crowded && SAIR_LOAD(&cost->samples) > 0 && span / (int64_t)batch->launches > SAIR_LOAD(&cost->low_ns))
        return;
    /* Costs and scale must not both move: with a basis that stands still the scale finds NVML's figure. */
    if (SAIR_LOAD(&batch->device->contended) && SAIR_LOAD(&cost->samples) >= FIRM_SAMPLES) return;
    int64_t count = (int64_t)batch->launches, slack = span - lower;
    const struct sair_device *device = batch->device;
    /* Undisturbed launches are rare then: remember the last one. */
    int is_rare = SAIR_LOAD(&device->stretched) || SAIR_LOAD(&device->siblings) > 1;
    uint64_t window = is_rare ? SAIR_QUIET_CYCLE_NS : SAIR_COST_WINDOW_NS;
    int64_t least = SAIR_LOAD(&cost->low_ns) * count;
    int is_stretched = isolated && !batch->unmeasured && lower > STRETCH_MIN_NS && lower > least + least / 8;
    if (is_stretched) SAIR_STORE(&device->gpu->stretched_ns, now_ns);
    if (count == 1 && slack <= LAUNCH_GAP_NS) {
        sair_cost_learn(cost, span - usual_gap(slack), 1, isolated, window, now_ns);
    } else if (count > 1 && slack * 10 < span) {
        sair_cost_learn(cost, span / count, 1, isolated, window, now_ns);
    } else if (SAIR_LOAD(&cost->samples) == 0) {
        sair_cost_learn(cost, (lower + smaller(slack, LAUNCH_GAP_NS)) / count, 0, isolated, window, now_ns);
    } else {
        sair_cost_learn(cost, clamp(SAIR_LOAD(&cost->mean_ns), lower / count, span / count), 0, isolated, window,
                        now_ns);
    }
}

static void book(const struct sair_batch *batch, int64_t actual, double weight, uint64_t now_ns) {
    struct sair_device *device = batch->device;
    uint32_t rate = SAIR_LOAD(&sair_process.rate_ppm);
    int64_t correction = actual - batch->charged_ns;
    if (correction != 0) sair_bucket_correct(device->gpu, correction, rate, now_ns);
    SAIR_SUB(&device->slot->outstanding_ns, batch->charged_ns);
    SAIR_ADD(&device->slot->busy_ns, (uint64_t)(actual > 0 ? (double)actual * weight : 0));
    SAIR_ADD(&device->slot->batches, UINT64_C(1));
}

/* What a launch of this process usually costs: the mean over the last hundreds. The harvester's own. */
static void note_usual(struct sair_device *device, int64_t ns, uint32_t launches) {
    device->usual_sum_ns += ns;
    device->usual_launches += launches;
    if (device->usual_launches == 0) return;
    SAIR_STORE(&device->usual_ns, device->usual_sum_ns / (int64_t)device->usual_launches);
    if (device->usual_launches < USUAL_LAUNCHES) return;
    device->usual_sum_ns /= 2;
    device->usual_launches /= 2;
}

static void settle(const struct sair_batch *batch, const struct sair_interval *interval) {
    struct sair_device *device = batch->device;
    uint64_t now = interval->seen_ns;
    int64_t span = (int64_t)interval->span_ns, slack = slack_of(batch, interval), lower = span - slack;
    int64_t believed = batch->unmeasured ? lower + (slack > LAUNCH_GAP_NS ? LAUNCH_GAP_NS : 0) : batch->estimate_ns;
    int64_t busy = clamp(believed, lower, span);
    int64_t fresh = (int64_t)sair_busy_mark(device->gpu, interval->until_ns - (uint64_t)busy, interval->until_ns);
    int isolated = !batch->crowded && fresh * 20 >= busy * 19;
    int64_t undisturbed = smaller(believed, span);
    int64_t actual = fresh;
    /* A first measurement may hold siblings' work too: the union does not count that twice. */
    if (!SAIR_LOAD(&device->trusted) && !batch->unmeasured)
        actual = (int64_t)((double)undisturbed * (double)SAIR_LOAD(&device->factor_ppm) * 1e-6);
    learn(batch, interval, lower, isolated);
    /* The agent's figures are of all launches, those that were not measured too. */
    double weight = undisturbed > 0 ? 1 + (double)batch->skipped_ns / (double)undisturbed : 1;
    sair_contention_note(device, (int64_t)((double)fresh * weight), (int64_t)((double)undisturbed * weight));
    note_usual(device, undisturbed, batch->launches);
    /* Counted from the last launch: what the program did between its launches is no queue. */
    uint64_t queued = interval->until_ns > batch->submitted_ns ? interval->until_ns - batch->submitted_ns : 0;
    SAIR_STORE(&device->gpu->queue_to_done_ns, queued < QUEUE_MAX_NS ? queued : QUEUE_MAX_NS);
    book(batch, actual, weight, now);
}

static void settle_unknown(const struct sair_batch *batch) {
    if (batch->cost != NULL && SAIR_LOAD(&batch->cost->generation) == batch->generation)
        SAIR_STORE(&batch->cost->pending_since_ns, UINT64_C(0));
    book(batch, batch->charged_ns, 1, sair_now_ns());
}

/* What a finished batch's events say. */
static void settle_measured(struct sair_stream *stream, struct sair_batch *batch, uint64_t span_ns, uint64_t now_ns) {
    struct sair_interval interval = {.span_ns = span_ns, .seen_ns = now_ns};
    struct sair_device_clock *clock = sair_device_clock_of(stream->context);
    CUevent released = NULL;
    int keep_end = 0;
    if (clock == NULL || sair_device_clock_map(clock, batch->start, batch->end, span_ns, batch->opened_ns, now_ns,
                                               &interval.until_ns, &keep_end, &released) != 0)
        interval.until_ns = now_ns;
    if (released != NULL) sair_event_give(stream->context, released);
    settle(batch, &interval);
    if (keep_end) batch->end = NULL;
}

int sair_settle_head(struct sair_stream *stream, uint64_t now_ns) {
    struct sair_batch *batch = &stream->ring[stream->head % SAIR_BATCHES];
    const struct sair_driver *driver = sair_driver();
    int is_dead = SAIR_LOAD(&stream->end) == SAIR_STREAM_DEAD;
    CUresult state = batch->broken || is_dead ? CUDA_ERROR_UNKNOWN : driver->cuEventQuery(batch->end);
    if (state == CUDA_ERROR_NOT_READY) return 0;
    float milliseconds = 0;
    if (state == CUDA_SUCCESS && driver->cuEventElapsedTime(&milliseconds, batch->start, batch->end) == CUDA_SUCCESS)
        settle_measured(stream, batch, (uint64_t)((double)milliseconds * 1e6), now_ns);
    else
        settle_unknown(batch);
    if (!is_dead) sair_batch_drop_events(stream, batch);
    SAIR_SUB(&batch->device->in_flight, 1u);
    SAIR_STORE_RELEASE(&stream->head, stream->head + 1);
    return 1;
}
