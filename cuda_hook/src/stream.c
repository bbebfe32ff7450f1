#include "stream.h"

#include "device_clock.h"
#include "event_pool.h"
#include "settle.h"

#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct sair_stream streams[SAIR_STREAMS];
static uint32_t stream_high; /* slots ever used */
static uint32_t harvesting;
static __thread struct sair_stream *recent;
static __thread uint64_t thread_id;

/* A per-thread default stream belongs to the thread, the legacy one to the context; where the process has one context
 * only, asking which is needless. */
static uint64_t owner_of(CUstream handle, int per_thread) {
    if (handle == CU_STREAM_PER_THREAD || (handle == NULL && per_thread)) {
        if (thread_id == 0) thread_id = (uint64_t)syscall(SYS_gettid);
        return thread_id;
    }
    if (handle != NULL && handle != CU_STREAM_LEGACY) return 0;
    if (SAIR_LOAD(&sair_process.contexts) <= 1) return UINT64_MAX;
    CUcontext context = NULL;
    const struct sair_driver *driver = sair_driver();
    if (driver != NULL && driver->cuCtxGetCurrent != NULL) (void)driver->cuCtxGetCurrent(&context);
    return (uint64_t)(uintptr_t)context;
}

static int is_same(const struct sair_stream *stream, CUstream handle, int per_thread, uint64_t owner) {
    return stream->handle == handle && stream->per_thread == per_thread && stream->owner == owner;
}

static struct sair_stream *fill(struct sair_stream *stream, CUstream handle, int per_thread, uint64_t owner) {
    memset((char *)stream + offsetof(struct sair_stream, handle), 0,
           sizeof *stream - offsetof(struct sair_stream, handle));
    stream->handle = handle;
    stream->per_thread = (uint8_t)per_thread;
    stream->owner = owner;
    const struct sair_driver *driver = sair_driver();
    if (driver != NULL && driver->cuCtxGetCurrent != NULL) (void)driver->cuCtxGetCurrent(&stream->context);
    SAIR_STORE_RELEASE(&stream->used, 2u);
    return stream;
}

struct sair_stream *sair_stream_find(CUstream handle, int per_thread) {
    uint64_t owner = owner_of(handle, per_thread);
    struct sair_stream *last = recent;
    if (last != NULL && SAIR_LOAD_ACQUIRE(&last->used) == 2 && is_same(last, handle, per_thread, owner)) return last;
    uint32_t high = SAIR_LOAD(&stream_high), vacant = SAIR_STREAMS;
    for (uint32_t i = 0; i < high; i++) {
        uint32_t used = SAIR_LOAD_ACQUIRE(&streams[i].used);
        if (used == 2 && is_same(&streams[i], handle, per_thread, owner)) return recent = &streams[i];
        if (used == 0 && vacant == SAIR_STREAMS) vacant = i;
    }
    for (uint32_t i = vacant < high ? vacant : high; i < SAIR_STREAMS; i++) {
        uint32_t used = 0;
        if (!SAIR_CAS(&streams[i].used, &used, 1u)) continue;
        uint32_t seen = SAIR_LOAD(&stream_high);
        while (seen <= i && !SAIR_CAS(&stream_high, &seen, i + 1)) {
        }
        return recent = fill(&streams[i], handle, per_thread, owner);
    }
    return NULL;
}

int sair_stream_is_only_one(void) {
    return SAIR_LOAD(&stream_high) <= 1;
}

static CUresult record(const struct sair_stream *stream, CUevent event) {
    const struct sair_driver *driver = sair_driver();
    if (stream->per_thread && driver->cuEventRecord_ptsz != NULL)
        return driver->cuEventRecord_ptsz(event, stream->handle);
    return driver->cuEventRecord(event, stream->handle);
}

static void drop_events(const struct sair_stream *stream, struct sair_batch *batch) {
    sair_event_give(stream->context, batch->start);
    sair_event_give(stream->context, batch->end);
    batch->start = batch->end = NULL;
}

int sair_batch_open(struct sair_stream *stream, struct sair_device *device) {
    if (stream->tail - SAIR_LOAD_ACQUIRE(&stream->head) >= SAIR_BATCHES) return 0;
    if (SAIR_LOAD(&sair_captures_active) != 0) return 0;
    const struct sair_driver *driver = sair_driver();
    if (driver == NULL || driver->cuEventRecord == NULL || driver->cuEventQuery == NULL ||
        driver->cuEventElapsedTime == NULL)
        return 0;
    struct sair_batch *batch = &stream->current;
    memset(batch, 0, sizeof *batch);
    batch->device = device;
    batch->start = sair_event_take(stream->context);
    batch->end = sair_event_take(stream->context);
    if (batch->start == NULL || batch->end == NULL) goto fail;
    batch->opened_ns = sair_now_ns();
    if (record(stream, batch->start) != CUDA_SUCCESS) goto fail;
    batch->recorded_ns = sair_now_ns();
    batch->crowded = SAIR_ADD(&device->in_flight, 1u) > stream->tail - SAIR_LOAD(&stream->head);
    SAIR_STORE(&stream->open, (uint8_t)1);
    return 1;
fail:
    drop_events(stream, batch);
    return 0;
}

/* The open batch is over. Its launches are told only now: two locked instructions a batch instead of two a launch. */
static void finish(struct sair_stream *stream) {
    struct sair_batch *batch = &stream->current;
    SAIR_STORE(&stream->open, (uint8_t)0);
    int64_t foreign = SAIR_SWAP(&stream->foreign_charged_ns, (int64_t)0);
    if (foreign != 0) {
        batch->charged_ns += foreign;
        batch->estimate_ns += foreign;
        batch->cost = NULL;
    }
    SAIR_ADD(&batch->device->slot->launches, (uint64_t)batch->launches);
    SAIR_ADD(&batch->device->slot->outstanding_ns, batch->charged_ns);
}

void sair_batch_close(struct sair_stream *stream) {
    if (!stream->open) return;
    struct sair_batch *batch = &stream->current;
    batch->submitted_ns = sair_now_ns();
    batch->broken = SAIR_LOAD(&sair_captures_active) != 0 || record(stream, batch->end) != CUDA_SUCCESS;
    finish(stream);
    if (SAIR_LOAD(&batch->device->in_flight) > stream->tail - SAIR_LOAD(&stream->head) + 1) batch->crowded = 1;
    stream->last_ns = batch->estimate_ns;
    stream->ring[stream->tail % SAIR_BATCHES] = *batch;
    SAIR_STORE_RELEASE(&stream->tail, stream->tail + 1);
}

void sair_streams_close_batches(void) {
    uint32_t high = SAIR_LOAD(&stream_high);
    int one_context = SAIR_LOAD(&sair_process.contexts) <= 1;
    for (uint32_t i = 0; i < high; i++) {
        struct sair_stream *stream = &streams[i];
        if (SAIR_LOAD_ACQUIRE(&stream->used) != 2 || !SAIR_LOAD(&stream->open)) continue;
        int shared = stream->owner == 0 || (stream->owner == UINT64_MAX && one_context);
        if (!shared && stream->owner != thread_id) continue;
        if (!sair_stream_try(stream)) continue;
        if (SAIR_LOAD(&stream->used) == 2) sair_batch_close(stream);
        sair_stream_release(stream);
    }
}

/* One finished batch at the head of a stream's ring. Returns 0 if it is not finished. */
static int settle_head(struct sair_stream *stream, uint64_t now_ns) {
    struct sair_batch *batch = &stream->ring[stream->head % SAIR_BATCHES];
    const struct sair_driver *driver = sair_driver();
    CUresult state = batch->broken ? CUDA_ERROR_UNKNOWN : driver->cuEventQuery(batch->end);
    if (state == CUDA_ERROR_NOT_READY) return 0;
    int keep_end = 0;
    float milliseconds = 0;
    if (state == CUDA_SUCCESS && driver->cuEventElapsedTime(&milliseconds, batch->start, batch->end) == CUDA_SUCCESS) {
        struct sair_interval interval = {.span_ns = (uint64_t)((double)milliseconds * 1e6), .seen_ns = now_ns};
        struct sair_device_clock *clock = sair_device_clock_of(stream->context);
        CUevent released = NULL;
        if (clock == NULL || sair_device_clock_map(clock, batch->start, batch->end, interval.span_ns, batch->opened_ns,
                                                   now_ns, &interval.until_ns, &keep_end, &released) != 0)
            interval.until_ns = now_ns;
        if (released != NULL) sair_event_give(stream->context, released);
        sair_settle(batch, &interval);
    } else {
        sair_settle_unknown(batch);
    }
    if (keep_end) batch->end = NULL;
    drop_events(stream, batch);
    SAIR_SUB(&batch->device->in_flight, 1u);
    SAIR_STORE_RELEASE(&stream->head, stream->head + 1);
    return 1;
}

unsigned sair_streams_harvest(uint64_t now_ns) {
    if (SAIR_LOAD(&sair_captures_active) != 0) return 0; /* an event query breaks a global-mode capture */
    if (__atomic_exchange_n(&harvesting, 1u, __ATOMIC_ACQUIRE) != 0) return 0;
    unsigned settled = 0;
    CUstreamCaptureMode mode = sair_capture_relax();
    uint32_t high = SAIR_LOAD(&stream_high);
    for (uint32_t i = 0; i < high; i++) {
        struct sair_stream *stream = &streams[i];
        if (SAIR_LOAD_ACQUIRE(&stream->used) != 2) continue;
        while (stream->head != SAIR_LOAD_ACQUIRE(&stream->tail) && settle_head(stream, now_ns)) settled++;
    }
    sair_capture_restore(mode);
    SAIR_STORE_RELEASE(&harvesting, 0u);
    return settled;
}

/* Both the harvester and the holder of `busy` are out of it for a moment; neither ever blocks. */
static void evict(struct sair_stream *stream, int events_survive) {
    while (!sair_stream_try(stream)) sched_yield();
    if (SAIR_LOAD(&stream->used) == 2) {
        if (stream->open) {
            finish(stream);
            sair_settle_unknown(&stream->current);
            if (events_survive) drop_events(stream, &stream->current);
            SAIR_SUB(&stream->current.device->in_flight, 1u);
        }
        for (; stream->head != stream->tail; stream->head++) {
            struct sair_batch *batch = &stream->ring[stream->head % SAIR_BATCHES];
            sair_settle_unknown(batch);
            if (events_survive) drop_events(stream, batch);
            SAIR_SUB(&batch->device->in_flight, 1u);
        }
        SAIR_STORE_RELEASE(&stream->used, 0u);
    }
    sair_stream_release(stream);
}

static void lock_harvest(void) {
    while (__atomic_exchange_n(&harvesting, 1u, __ATOMIC_ACQUIRE) != 0) sched_yield();
}

void sair_stream_gone(CUstream handle) {
    sair_streams_close_batches();
    sair_streams_harvest(sair_now_ns());
    lock_harvest();
    uint32_t high = SAIR_LOAD(&stream_high);
    for (uint32_t i = 0; i < high; i++)
        if (SAIR_LOAD_ACQUIRE(&streams[i].used) == 2 && streams[i].handle == handle) evict(&streams[i], 1);
    SAIR_STORE_RELEASE(&harvesting, 0u);
}

void sair_context_gone(CUcontext context) {
    sair_streams_close_batches();
    sair_streams_harvest(sair_now_ns());
    lock_harvest();
    uint32_t high = SAIR_LOAD(&stream_high);
    for (uint32_t i = 0; i < high; i++)
        if (SAIR_LOAD_ACQUIRE(&streams[i].used) == 2 && (context == NULL || streams[i].context == context))
            evict(&streams[i], 0);
    sair_events_forget(context);
    sair_device_clocks_forget(context);
    SAIR_STORE_RELEASE(&harvesting, 0u);
}

void sair_streams_forget(void) {
    memset(streams, 0, sizeof streams);
    stream_high = 0;
    harvesting = 0;
    recent = NULL;
    thread_id = 0;
    SAIR_STORE(&sair_captures_active, 0u);
    sair_events_forget(NULL);
    sair_device_clocks_forget(NULL);
}
