/* Queues and arbitration: which operation of which stream had the device at which instant. */
#include "simgpu.h"


#define S (simgpu_attach())
#define REAP_PERIOD_NS UINT64_C(20000000)

static struct simgpu_op *head_of(struct simgpu_stream *stream) {
    return &stream->ring[stream->head % SIMGPU_RING];
}

static bool is_empty(const struct simgpu_stream *stream) {
    return stream->head == stream->tail;
}

static uint64_t first_seq(struct simgpu_stream *stream) {
    return is_empty(stream) ? UINT64_MAX : head_of(stream)->seq;
}

/* The legacy stream waits for everything queued before in the context's blocking streams, and they for it. */
static bool is_ordered(struct simgpu_shared *s, struct simgpu_stream *stream) {
    const struct simgpu_context *context = &s->contexts[stream->context];
    uint64_t seq = head_of(stream)->seq;
    if (stream->legacy) {
        for (uint32_t i = 0; i < s->active_count; i++) {
            struct simgpu_stream *other = &s->streams[s->active[i]];
            if (other->context == stream->context && other->blocking && !other->legacy && first_seq(other) < seq)
                return false;
        }
        return true;
    }
    if (!stream->blocking || context->legacy_stream >= SIMGPU_STREAMS) return true;
    return first_seq(&s->streams[context->legacy_stream]) > seq;
}

static void unpend(struct simgpu_event *event) {
    if (event->pending > 0) event->pending--;
    if (event->doomed && event->pending == 0) event->used = 0;
}

static void pop(struct simgpu_stream *stream) {
    struct simgpu_op *op = head_of(stream);
    stream->done_seq = op->seq;
    stream->finished_ns = op->cumulative_ns;
    stream->head++;
}

/* Finish the head operations that take no time. True if anything moved. */
static bool settle_stream(struct simgpu_shared *s, struct simgpu_stream *stream) {
    bool moved = false;
    while (!is_empty(stream) && is_ordered(s, stream)) {
        struct simgpu_op *op = head_of(stream);
        struct simgpu_event *event = &s->events[op->event];
        if (op->kind == SIMGPU_RECORD) {
            if (op->seq > event->done_seq) event->done_seq = op->seq;
            if (op->seq == event->recorded_seq) event->done_ns = s->now_ns;
            unpend(event);
        } else if (op->kind == SIMGPU_WAIT) {
            if (event->done_seq < op->event_seq) break;
            unpend(event);
        } else if (op->kind == SIMGPU_HOST) {
            if (op->host_state == 0) op->host_state = 1;
            if (op->host_state != 2) break;
        } else if (op->remaining_ns == 0) {
            const struct simgpu_process *process = &s->processes[s->contexts[stream->context].process];
            if (op->kind == SIMGPU_KERNEL) s->tenants[process->tenant].kernels++;
        } else {
            break;
        }
        pop(stream);
        moved = true;
    }
    return moved;
}

static void free_stream(struct simgpu_stream *stream) {
    stream->used = 0;
    stream->dying = 0;
}

static void settle(struct simgpu_shared *s) {
    bool moved = true;
    while (moved) {
        moved = false;
        for (uint32_t i = 0; i < s->active_count; i++) moved |= settle_stream(s, &s->streams[s->active[i]]);
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < s->active_count; i++) {
        struct simgpu_stream *stream = &s->streams[s->active[i]];
        if (!is_empty(stream))
            s->active[kept++] = s->active[i];
        else if (stream->dying)
            free_stream(stream);
    }
    s->active_count = kept;
}

struct runner {
    struct simgpu_stream *stream;
    struct simgpu_op *op;
    uint32_t process, tenant;
    int device;
};

/* Candidates in submission order, those already running first: what runs is not pushed aside inside its context. */
static bool goes_before(const struct runner *a, const struct runner *b) {
    if (a->op->started != b->op->started) return a->op->started > b->op->started;
    return a->op->seq < b->op->seq;
}

static uint32_t gather(struct simgpu_shared *s, int device, uint8_t kind, struct runner *out) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->active_count; i++) {
        struct simgpu_stream *stream = &s->streams[s->active[i]];
        if (is_empty(stream) || head_of(stream)->kind != kind) continue;
        const struct simgpu_context *context = &s->contexts[stream->context];
        if (context->device != device || !is_ordered(s, stream)) continue;
        struct runner r = {stream, head_of(stream), context->process, s->processes[context->process].tenant, device};
        uint32_t at = count++;
        while (at > 0 && goes_before(&r, &out[at - 1])) {
            out[at] = out[at - 1];
            at--;
        }
        out[at] = r;
    }
    return count;
}

/* Round robin: the context whose turn it is among those with work. */
static uint32_t pick_context(struct simgpu_shared *s, int device, const struct runner *ready, uint32_t count,
                             bool *alone) {
    struct simgpu_device *d = &s->devices[device];
    uint32_t next = SIMGPU_CONTEXTS, first = SIMGPU_CONTEXTS;
    bool current_has_work = false;
    *alone = true;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t context = ready[i].stream->context;
        if (context != ready[0].stream->context) *alone = false;
        current_has_work |= context == d->current_context;
        if (context < first) first = context;
        if (context > d->current_context && context < next) next = context;
    }
    if (current_has_work && (*alone || d->slice_used_ns < s->config.slice_ns)) return d->current_context;
    d->slice_used_ns = 0;
    d->current_context = next < SIMGPU_CONTEXTS ? next : first;
    return d->current_context;
}

/* The kernels that have the device now; *limit_ns: at most this long. */
static uint32_t pick(struct simgpu_shared *s, int device, struct runner *running, uint64_t *limit_ns) {
    struct runner ready[SIMGPU_STREAMS];
    uint32_t count = gather(s, device, SIMGPU_KERNEL, ready);
    if (count == 0) return 0;
    uint32_t arbiter = s->config.arbiter, only = SIMGPU_CONTEXTS;
    if (arbiter == SIMGPU_FIFO) {
        running[0] = ready[0];
        return 1;
    }
    if (arbiter != SIMGPU_MPS) {
        bool alone;
        only = pick_context(s, device, ready, count, &alone);
        uint64_t left = s->config.slice_ns > s->devices[device].slice_used_ns
                            ? s->config.slice_ns - s->devices[device].slice_used_ns
                            : 1;
        if (!alone && left < *limit_ns) *limit_ns = left;
    }
    uint32_t chosen = 0, blocks = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (only != SIMGPU_CONTEXTS && ready[i].stream->context != only) continue;
        if (chosen > 0 && (arbiter == SIMGPU_RR || blocks + ready[i].op->blocks > SIMGPU_BLOCK_SLOTS)) continue;
        blocks += ready[i].op->blocks;
        running[chosen++] = ready[i];
    }
    return chosen;
}

static void credit_runners(struct simgpu_shared *s, const struct runner *running, uint32_t count, uint64_t step_ns) {
    for (uint32_t i = 0; i < count; i++) {
        bool process_new = true, tenant_new = true;
        for (uint32_t j = 0; j < i; j++) {
            if (running[j].device != running[i].device) continue;
            process_new &= running[j].process != running[i].process;
            tenant_new &= running[j].tenant != running[i].tenant;
        }
        if (process_new)
            simgpu_credit(running[i].device, running[i].process, s->now_ns, s->now_ns + step_ns, tenant_new);
    }
}

void simgpu_advance(uint64_t until_ns) {
    struct simgpu_shared *s = S;
    static _Thread_local struct runner running[SIMGPU_STREAMS], copies[SIMGPU_STREAMS];
    if (until_ns > s->reaped_ns + REAP_PERIOD_NS) simgpu_reap();
    while (s->active_count > 0) {
        settle(s);
        if (s->now_ns >= until_ns || s->active_count == 0) break;
        uint64_t step = until_ns - s->now_ns;
        uint32_t count = 0, copying = 0;
        for (int d = 0; d < (int)s->config.devices; d++) {
            count += pick(s, d, &running[count], &step);
            copying += gather(s, d, SIMGPU_COPY, &copies[copying]);
        }
        if (count + copying == 0) break; /* all wait for the host */
        for (uint32_t i = 0; i < count; i++)
            if (running[i].op->remaining_ns < step) step = running[i].op->remaining_ns;
        for (uint32_t i = 0; i < copying; i++)
            if (copies[i].op->remaining_ns < step) step = copies[i].op->remaining_ns;
        credit_runners(s, running, count, step);
        for (uint32_t i = 0; i < count; i++) {
            running[i].op->started = 1;
            running[i].op->remaining_ns -= step;
        }
        for (uint32_t i = 0; i < copying; i++) copies[i].op->remaining_ns -= step;
        for (int d = 0; d < (int)s->config.devices; d++) {
            bool busy = false;
            for (uint32_t i = 0; i < count; i++) busy |= running[i].device == d;
            if (!busy) continue;
            s->devices[d].busy_ns += step;
            s->devices[d].slice_used_ns += step;
        }
        s->now_ns += step;
    }
    if (s->now_ns < until_ns) s->now_ns = until_ns;
}

void simgpu_drop_stream(uint32_t index) {
    struct simgpu_shared *s = S;
    struct simgpu_stream *stream = &s->streams[index];
    while (!is_empty(stream)) {
        struct simgpu_op *op = head_of(stream);
        if (op->kind == SIMGPU_RECORD || op->kind == SIMGPU_WAIT) {
            struct simgpu_event *event = &s->events[op->event];
            /* A record that will never happen must not block a survivor's wait. */
            if (op->kind == SIMGPU_RECORD && op->seq > event->done_seq) {
                event->done_seq = op->seq;
                event->done_ns = s->now_ns;
            }
            unpend(event);
        }
        pop(stream);
    }
    stream->done_seq = stream->last_seq;
    free_stream(stream);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < s->active_count; i++)
        if (s->active[i] != index) s->active[kept++] = s->active[i];
    s->active_count = kept;
}

void simgpu_release_event(uint32_t index) {
    struct simgpu_event *event = &S->events[index];
    event->doomed = 1;
    if (event->pending == 0) event->used = 0;
}
