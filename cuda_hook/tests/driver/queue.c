/* Contexts, streams and events in the shared file; submitting to them and waiting for them. */
#include "simgpu.h"

#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#define S (simgpu_attach())
/* A wait whose end cannot be foretold looks again this often. */
#define POLL_NS UINT64_C(100000)
/* A launch into a full ring waits at least this long. */
#define FULL_NS UINT64_C(500000)

static void lock_now(void) {
    simgpu_lock();
    simgpu_advance(simgpu_clock_ns());
}

/* Sleep to an absolute time. The kernel's default timer slack of 50 us would show in every synchronisation, so it is
 * lowered for this sleep only and restored: the application's own sleeps keep theirs. */
static void sleep_until(uint64_t ns) {
    int slack = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
    if (slack > 1) prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    struct timespec t = {(time_t)(ns / UINT64_C(1000000000)), (long)(ns % UINT64_C(1000000000))};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {}
    if (slack > 1) prctl(PR_SET_TIMERSLACK, (unsigned long)slack, 0, 0, 0);
}

int simgpu_context_open(int device) {
    int process = simgpu_self(), found = -1;
    if (process < 0) return -1;
    struct simgpu_shared *s = S;
    lock_now();
    for (uint32_t i = 0; i < SIMGPU_CONTEXTS && found < 0; i++) {
        if (s->contexts[i].used) continue;
        s->contexts[i] = (struct simgpu_context){1, (uint8_t)device, (uint16_t)process, SIMGPU_STREAMS};
        if (i >= s->context_high) s->context_high = i + 1;
        s->processes[process].on[device].context_bytes += s->config.context_bytes;
        found = (int)i;
    }
    simgpu_unlock();
    return found;
}

void simgpu_context_close(int context) {
    struct simgpu_shared *s = S;
    lock_now();
    struct simgpu_context *c = &s->contexts[context];
    if (c->used && (int)c->process == simgpu_self()) {
        for (uint32_t i = 0; i < s->stream_high; i++)
            if (s->streams[i].used && s->streams[i].context == (uint32_t)context) simgpu_drop_stream(i);
        s->processes[c->process].on[c->device].context_bytes -= s->config.context_bytes;
        c->used = 0;
    }
    simgpu_unlock();
}

int simgpu_stream_open(int context, bool blocking, bool legacy) {
    struct simgpu_shared *s = S;
    int found = -1;
    lock_now();
    for (uint32_t i = 0; i < SIMGPU_STREAMS && found < 0; i++) {
        struct simgpu_stream *stream = &s->streams[i];
        if (stream->used) continue;
        /* The ring itself needs no clearing: only [head, tail) is ever read. */
        memset(stream, 0, offsetof(struct simgpu_stream, ring));
        stream->used = 1;
        stream->blocking = blocking;
        stream->legacy = legacy;
        stream->context = (uint32_t)context;
        if (i >= s->stream_high) s->stream_high = i + 1;
        if (legacy) s->contexts[context].legacy_stream = i;
        found = (int)i;
    }
    simgpu_unlock();
    return found;
}

void simgpu_stream_close(int stream) {
    struct simgpu_shared *s = S;
    lock_now();
    struct simgpu_stream *closing = &s->streams[stream];
    closing->dying = 1;
    if (closing->head == closing->tail) closing->used = 0;
    simgpu_unlock();
}

int simgpu_event_open(void) {
    struct simgpu_shared *s = S;
    int process = simgpu_self(), found = -1;
    if (process < 0) return -1;
    simgpu_lock();
    for (uint32_t i = 0; i < SIMGPU_EVENTS && found < 0; i++) {
        uint32_t at = (s->event_hint + i) % SIMGPU_EVENTS;
        if (s->events[at].used) continue;
        memset(&s->events[at], 0, sizeof s->events[at]);
        s->events[at].used = 1;
        s->events[at].process = (uint32_t)process;
        s->event_hint = at + 1;
        found = (int)at;
    }
    simgpu_unlock();
    return found;
}

void simgpu_event_close(int event) {
    simgpu_lock();
    simgpu_release_event((uint32_t)event);
    simgpu_unlock();
}

static void activate(struct simgpu_shared *s, uint32_t index) {
    for (uint32_t i = 0; i < s->active_count; i++)
        if (s->active[i] == index) return;
    s->active[s->active_count++] = index;
}

/* Work of a stream submitted before `seq` (inclusive) and not finished. */
static uint64_t work_before(const struct simgpu_stream *stream, uint64_t seq) {
    uint32_t low = stream->head, high = stream->tail;
    if (low == high || stream->ring[low % SIMGPU_RING].seq > seq) return 0;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (stream->ring[middle % SIMGPU_RING].seq <= seq)
            low = middle;
        else
            high = middle;
    }
    const struct simgpu_op *head = &stream->ring[stream->head % SIMGPU_RING], *last = &stream->ring[low % SIMGPU_RING];
    return last->cumulative_ns - head->cumulative_ns + head->remaining_ns;
}

/* No earlier than this can operation `seq` of `stream` complete, if nobody submits anything more. */
static uint64_t earliest(struct simgpu_shared *s, const struct simgpu_stream *stream, uint64_t seq) {
    uint64_t own = work_before(stream, seq), queued = 0;
    uint32_t arbiter = s->config.arbiter;
    if (arbiter == SIMGPU_FIFO || arbiter == SIMGPU_RR) {
        const struct simgpu_context *context = &s->contexts[stream->context];
        for (uint32_t i = 0; i < s->active_count; i++) {
            const struct simgpu_stream *other = &s->streams[s->active[i]];
            /* Only what is serial with the stream: behind its own queue other streams' later kernels may still pass. */
            if (other == stream || s->contexts[other->context].device != context->device) continue;
            if (arbiter == SIMGPU_RR && other->context != stream->context) continue;
            if (other->head == other->tail || other->ring[other->head % SIMGPU_RING].kind != SIMGPU_KERNEL) continue;
            queued += work_before(other, seq);
        }
    }
    return s->now_ns + own + queued;
}

/* Caller holds the lock; it is dropped and taken again. */
static void pause_until(struct simgpu_shared *s, uint64_t when_ns) {
    uint64_t until = when_ns > s->now_ns ? when_ns : s->now_ns + POLL_NS;
    simgpu_unlock();
    sleep_until(until);
    lock_now();
}

uint64_t simgpu_submit_all(int index, const struct simgpu_op *ops, size_t count) {
    struct simgpu_shared *s = S;
    struct simgpu_stream *stream = &s->streams[index];
    uint64_t seq = 0;
    lock_now();
    for (size_t i = 0; i < count; i++) {
        while (stream->tail - stream->head >= SIMGPU_RING && stream->used) {
            uint64_t room = earliest(s, stream, stream->ring[stream->head % SIMGPU_RING].seq);
            /* Room for one short kernel is not worth waking for. */
            pause_until(s, room > s->now_ns + FULL_NS ? room : s->now_ns + FULL_NS);
        }
        struct simgpu_op *op = &stream->ring[stream->tail % SIMGPU_RING];
        *op = ops[i];
        op->seq = seq = s->next_seq++;
        stream->queued_ns += op->remaining_ns;
        op->cumulative_ns = stream->queued_ns;
        if (op->kind == SIMGPU_RECORD) {
            struct simgpu_event *event = &s->events[op->event];
            event->recorded_seq = seq;
            event->stream = (uint32_t)index;
            event->pending++;
        } else if (op->kind == SIMGPU_WAIT) {
            s->events[op->event].pending++;
        }
        stream->tail++;
        stream->last_seq = seq;
        activate(s, (uint32_t)index);
    }
    simgpu_advance(s->now_ns); /* markers on an idle stream take effect at once */
    simgpu_unlock();
    return seq;
}

uint64_t simgpu_submit(int stream, const struct simgpu_op *op) {
    return simgpu_submit_all(stream, op, 1);
}

bool simgpu_stream_done(int stream, uint64_t seq) {
    lock_now();
    bool done = S->streams[stream].done_seq >= seq;
    simgpu_unlock();
    return done;
}

uint64_t simgpu_stream_last(int stream) {
    simgpu_lock();
    uint64_t last = S->streams[stream].last_seq;
    simgpu_unlock();
    return last;
}

static void wait_locked(struct simgpu_shared *s, struct simgpu_stream *stream, uint64_t seq) {
    while (stream->used && stream->done_seq < seq && stream->head != stream->tail)
        pause_until(s, earliest(s, stream, seq));
}

void simgpu_stream_wait(int stream, uint64_t seq) {
    struct simgpu_shared *s = S;
    lock_now();
    wait_locked(s, &s->streams[stream], seq);
    simgpu_unlock();
}

void simgpu_context_wait(int context) {
    struct simgpu_shared *s = S;
    lock_now();
    uint64_t until = s->next_seq - 1;
    for (uint32_t i = 0; i < s->stream_high; i++) {
        struct simgpu_stream *stream = &s->streams[i];
        if (!stream->used || stream->context != (uint32_t)context) continue;
        wait_locked(s, stream, stream->last_seq < until ? stream->last_seq : until);
    }
    simgpu_unlock();
}

int simgpu_event_state(int index, uint64_t *done_ns) {
    lock_now();
    const struct simgpu_event *event = &S->events[index];
    int state = event->recorded_seq == 0 ? 2 : event->done_seq >= event->recorded_seq ? 0 : 1;
    *done_ns = event->done_ns;
    simgpu_unlock();
    return state;
}

void simgpu_event_wait(int index) {
    struct simgpu_shared *s = S;
    lock_now();
    const struct simgpu_event *event = &s->events[index];
    uint64_t seq = event->recorded_seq;
    while (event->used && event->done_seq < seq) {
        const struct simgpu_stream *stream = &s->streams[event->stream];
        pause_until(s, earliest(s, stream, seq));
    }
    simgpu_unlock();
}

uint64_t simgpu_event_recorded(int event) {
    simgpu_lock();
    uint64_t seq = S->events[event].recorded_seq;
    simgpu_unlock();
    return seq;
}

int simgpu_host_state(int index, uint64_t seq, uint64_t *earliest_ns) {
    struct simgpu_shared *s = S;
    struct simgpu_stream *stream = &s->streams[index];
    int state = -1;
    lock_now();
    if (stream->used && stream->head != stream->tail && stream->done_seq < seq) {
        const struct simgpu_op *head = &stream->ring[stream->head % SIMGPU_RING];
        state = head->seq == seq && head->host_state == 1;
        *earliest_ns = earliest(s, stream, seq);
    }
    simgpu_unlock();
    return state;
}

void simgpu_host_done(int index, uint64_t seq) {
    struct simgpu_shared *s = S;
    struct simgpu_stream *stream = &s->streams[index];
    lock_now();
    struct simgpu_op *head = &stream->ring[stream->head % SIMGPU_RING];
    if (stream->used && stream->head != stream->tail && head->seq == seq) head->host_state = 2;
    simgpu_advance(s->now_ns);
    simgpu_unlock();
}
