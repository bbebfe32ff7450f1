#include "stream.h"

#include "device_clock.h"
#include "event_pool.h"
#include "settle.h"

#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A handle that no stream has: the slot matches none any more. */
#define NO_STREAM ((CUstream)UINTPTR_MAX)
/* How long a flag that is held inside the driver is waited for. What cannot be had is left to the next harvester. */
#define PATIENCE_US 100000u
#define PATIENCE_STEP_US 50u

static struct sair_stream streams[SAIR_STREAMS];
static uint32_t stream_high; /* slots ever used */
static uint32_t harvesting;
static __thread struct sair_stream *recent;
static __thread uint64_t thread_id;
static pthread_key_t thread_key;
static pthread_once_t thread_key_once = PTHREAD_ONCE_INIT;

static void thread_ends(void *unused);

static void make_thread_key(void) {
    (void)pthread_key_create(&thread_key, thread_ends);
}

/* This thread's number. Whoever has one is told of its end. */
static uint64_t own_thread(void) {
    if (__builtin_expect(thread_id == 0, 0)) {
        thread_id = (uint64_t)syscall(SYS_gettid);
        pthread_once(&thread_key_once, make_thread_key);
        (void)pthread_setspecific(thread_key, &thread_id);
    }
    return thread_id;
}

struct sair_stream_id sair_stream_identify(CUstream handle, int per_thread) {
    struct sair_stream_id id = {.handle = handle};
    if (__builtin_expect(!sair_stream_is_default(handle), 1)) return id;
    int is_threads = handle == CU_STREAM_PER_THREAD || (handle == NULL && per_thread);
    id.handle = is_threads ? CU_STREAM_PER_THREAD : NULL;
    id.context = sair_context_current();
    if (is_threads) id.thread = own_thread();
    return id;
}

CUcontext sair_stream_context(const struct sair_stream_id *id) {
    const struct sair_driver *driver = sair_driver();
    CUcontext context = id->context;
    if (context != NULL) return context;
    if (SAIR_LOAD(&sair_process.contexts) > 1 && driver != NULL && driver->cuStreamGetCtx != NULL &&
        driver->cuStreamGetCtx(id->handle, &context) == CUDA_SUCCESS && context != NULL)
        return context;
    return sair_context_current();
}

static inline int is_same(const struct sair_stream *stream, const struct sair_stream_id *id) {
    if (SAIR_LOAD(&stream->id.handle) != id->handle) return 0;
    if (__builtin_expect(!sair_stream_is_default(id->handle), 1)) return 1;
    return SAIR_LOAD(&stream->id.thread) == id->thread && SAIR_LOAD(&stream->id.context) == id->context;
}

static inline int is_valid(const struct sair_stream *stream, const struct sair_stream_id *id) {
    return SAIR_LOAD_ACQUIRE(&stream->used) == 2 && is_same(stream, id);
}

static inline int try_take(struct sair_stream *stream) {
    return __atomic_exchange_n(&stream->busy, 1u, __ATOMIC_ACQUIRE) == 0;
}

static struct sair_stream *fill(struct sair_stream *stream, const struct sair_stream_id *id) {
    SAIR_STORE(&stream->end, (uint32_t)SAIR_STREAM_LIVES);
    stream->skipped = 0;
    stream->skipped_ns = stream->last_ns = 0;
    SAIR_STORE(&stream->foreign_charged_ns, INT64_C(0));
    SAIR_STORE(&stream->stuck, 0u);
    SAIR_STORE(&stream->id.handle, id->handle);
    SAIR_STORE(&stream->id.context, id->context);
    SAIR_STORE(&stream->id.thread, id->thread);
    stream->context = sair_stream_context(id);
    int was_entered = sair_context_enter(stream->context);
    stream->device = sair_device_of_context();
    sair_context_leave(was_entered);
    SAIR_STORE_RELEASE(&stream->used, 2u);
    return stream;
}

/* A slot that nobody uses, made `used` = 1; NULL if there is none. */
static struct sair_stream *claim(void) {
    for (uint32_t i = 0; i < SAIR_STREAMS; i++) {
        uint32_t used = 0;
        if (SAIR_LOAD(&streams[i].used) != 0 || !SAIR_CAS(&streams[i].used, &used, 1u)) continue;
        uint32_t seen = SAIR_LOAD(&stream_high);
        while (seen <= i && !SAIR_CAS(&stream_high, &seen, i + 1)) {
        }
        return &streams[i];
    }
    return NULL;
}

static int is_drained(const struct sair_stream *stream) {
    return !SAIR_LOAD(&stream->open) && SAIR_LOAD_ACQUIRE(&stream->head) == SAIR_LOAD_ACQUIRE(&stream->tail);
}

/* The slot of a stream without work in flight becomes another's: whoever found it before looks again once `busy` is
 * its own. */
static struct sair_stream *take_over(void) {
    static uint32_t next;
    for (uint32_t n = 0; n < SAIR_STREAMS; n++) {
        struct sair_stream *stream = &streams[SAIR_ADD(&next, 1u) % SAIR_STREAMS];
        uint32_t used = 2;
        if (SAIR_LOAD(&stream->used) != 2 || !is_drained(stream) || !try_take(stream)) continue;
        int is_taken = is_drained(stream) && SAIR_CAS(&stream->used, &used, 1u);
        sair_stream_release(stream);
        if (is_taken) return stream;
    }
    return NULL;
}

static struct sair_stream *search(const struct sair_stream_id *id) {
    uint32_t high = SAIR_LOAD(&stream_high);
    for (uint32_t i = 0; i < high; i++)
        if (is_valid(&streams[i], id)) return recent = &streams[i];
    struct sair_stream *stream = claim();
    if (stream == NULL) stream = take_over();
    return stream != NULL ? (recent = fill(stream, id)) : NULL;
}

struct sair_stream *sair_stream_find(CUstream handle, int per_thread) {
    struct sair_stream_id id = sair_stream_identify(handle, per_thread);
    struct sair_stream *last = recent;
    return last != NULL && is_valid(last, &id) ? last : search(&id);
}

struct sair_stream *sair_stream_hold(CUstream handle, int per_thread, struct sair_stream **taken) {
    struct sair_stream *stream = recent;
    *taken = NULL;
    if (__builtin_expect(stream != NULL && !sair_stream_is_default(handle) && SAIR_LOAD(&stream->id.handle) == handle, 1) &&
        SAIR_LOAD_ACQUIRE(&stream->used) == 2 && try_take(stream)) {
        if (__builtin_expect(SAIR_LOAD(&stream->used) == 2 && SAIR_LOAD(&stream->id.handle) == handle, 1))
            return stream;
        sair_stream_release(stream);
    }
    struct sair_stream_id id = sair_stream_identify(handle, per_thread);
    if (stream == NULL || !is_valid(stream, &id)) stream = search(&id);
    if (stream == NULL) return NULL;
    if (!try_take(stream)) {
        *taken = stream;
        return NULL;
    }
    if (__builtin_expect(is_valid(stream, &id), 1)) return stream;
    sair_stream_release(stream);
    return NULL;
}

int sair_stream_is_only_one(void) {
    return SAIR_LOAD(&stream_high) <= 1;
}

/* The context has to be current: it says which default stream is meant. */
static CUresult record(const struct sair_stream *stream, CUevent event) {
    return sair_driver()->cuEventRecord(event, stream->id.handle);
}

void sair_batch_drop_events(const struct sair_stream *stream, struct sair_batch *batch) {
    sair_event_give(stream->context, batch->start);
    sair_event_give(stream->context, batch->end);
    batch->start = batch->end = NULL;
}

int sair_batch_open(struct sair_stream *stream, struct sair_device *device) {
    if (stream->tail - SAIR_LOAD_ACQUIRE(&stream->head) >= SAIR_BATCHES) return 0;
    const struct sair_driver *driver = sair_driver();
    if (driver == NULL || driver->cuEventRecord == NULL || driver->cuEventQuery == NULL ||
        driver->cuEventElapsedTime == NULL)
        return 0;
    struct sair_batch *batch = &stream->current;
    memset(batch, 0, sizeof *batch);
    batch->device = device;
    int is_open = 0, was_entered = sair_context_enter(stream->context);
    if (!sair_stream_may_record(stream)) goto out;
    batch->start = sair_event_take(stream->context);
    batch->end = sair_event_take(stream->context);
    if (batch->start != NULL && batch->end != NULL) {
        batch->opened_ns = sair_now_ns();
        is_open = record(stream, batch->start) == CUDA_SUCCESS;
    }
    if (!is_open) {
        sair_batch_drop_events(stream, batch);
        goto out;
    }
    batch->recorded_ns = sair_now_ns();
    batch->skipped_ns = stream->skipped_ns;
    stream->skipped_ns = 0;
    batch->crowded = SAIR_ADD(&device->in_flight, 1u) > stream->tail - SAIR_LOAD(&stream->head);
    stream->polled = 0;
    SAIR_STORE(&stream->open, (uint8_t)1);
out:
    sair_context_leave(was_entered);
    return is_open;
}

/* The open batch goes into the ring; there is room, because it was opened. Its launches are told only now: two locked
 * instructions a batch instead of two a launch. */
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
    if (SAIR_LOAD(&batch->device->in_flight) > stream->tail - SAIR_LOAD(&stream->head) + 1) batch->crowded = 1;
    stream->last_ns = batch->unmeasured ? 0 : batch->estimate_ns;
    stream->ring[stream->tail % SAIR_BATCHES] = *batch;
    SAIR_STORE_RELEASE(&stream->tail, stream->tail + 1);
}

void sair_batch_close(struct sair_stream *stream) {
    if (!stream->open) return;
    stream->current.submitted_ns = sair_now_ns();
    int was_entered = sair_context_enter(stream->context);
    stream->current.broken = !sair_stream_may_record(stream) || record(stream, stream->current.end) != CUDA_SUCCESS;
    sair_context_leave(was_entered);
    finish(stream);
}

/* Where the driver must not be called: the prediction stands. */
static void close_unmeasured(struct sair_stream *stream) {
    if (!stream->open) return;
    stream->current.broken = 1;
    finish(stream);
}

static int is_ours_to_close(const struct sair_stream *stream) {
    if (SAIR_LOAD_ACQUIRE(&stream->used) != 2 || !SAIR_LOAD(&stream->open)) return 0;
    if (SAIR_LOAD(&stream->end) != SAIR_STREAM_LIVES) return 0;
    uint64_t thread = SAIR_LOAD(&stream->id.thread);
    return thread == 0 || thread == thread_id;
}

/* Close the batches that may be closed; with `only_polled` those that had no launch since it was last asked for. */
static void close_batches(int only_polled) {
    uint32_t high = SAIR_LOAD(&stream_high);
    for (uint32_t i = 0; i < high; i++) {
        struct sair_stream *stream = &streams[i];
        if (!is_ours_to_close(stream) || !try_take(stream)) continue;
        int is_due = is_ours_to_close(stream) && (!only_polled || stream->polled == stream->current.launches);
        if (is_due) sair_batch_close(stream);
        stream->polled = stream->current.launches;
        sair_stream_release(stream);
    }
}

void sair_streams_close_batches(void) {
    close_batches(0);
}

void sair_streams_polled(void) {
    close_batches(1);
}

/* A slot whose stream has ended: free it once nothing of it is left. */
static void retire(struct sair_stream *stream, uint64_t now_ns) {
    if (!try_take(stream)) return;
    /* Taken over meanwhile it is another's. */
    int is_left = SAIR_LOAD(&stream->used) == 2 && SAIR_LOAD(&stream->end) != SAIR_STREAM_LIVES;
    if (is_left) close_unmeasured(stream);
    while (is_left && stream->head != stream->tail && sair_settle_head(stream, now_ns)) {
    }
    if (is_left && stream->head == stream->tail) SAIR_STORE_RELEASE(&stream->used, 0u);
    sair_stream_release(stream);
}

unsigned sair_streams_harvest(uint64_t now_ns) {
    /* An event query breaks a capture in global mode, unless this thread says that it does not mean it. */
    if (SAIR_LOAD(&sair_captures_active) != 0 && !sair_capture_can_relax()) return 0;
    if (__atomic_exchange_n(&harvesting, 1u, __ATOMIC_ACQUIRE) != 0) return 0;
    unsigned settled = 0;
    CUstreamCaptureMode mode = sair_capture_relax();
    uint32_t high = SAIR_LOAD(&stream_high);
    for (uint32_t i = 0; i < high; i++) {
        struct sair_stream *stream = &streams[i];
        if (SAIR_LOAD_ACQUIRE(&stream->used) != 2) continue;
        while (stream->head != SAIR_LOAD_ACQUIRE(&stream->tail) && sair_settle_head(stream, now_ns)) settled++;
        if (__builtin_expect(SAIR_LOAD_ACQUIRE(&stream->end) != SAIR_STREAM_LIVES, 0)) retire(stream, now_ns);
    }
    sair_capture_restore(mode);
    SAIR_STORE_RELEASE(&harvesting, 0u);
    return settled;
}

/* Take a flag that its holder may hold inside the driver; 0 if that takes too long. */
static int take_patiently(uint32_t *flag, unsigned *waited_us) {
    while (__atomic_exchange_n(flag, 1u, __ATOMIC_ACQUIRE) != 0) {
        if (*waited_us >= PATIENCE_US) return 0;
        usleep(PATIENCE_STEP_US);
        *waited_us += PATIENCE_STEP_US;
    }
    return 1;
}

/* Nobody finds it any more; the harvester frees it. */
static void mark_ended(struct sair_stream *stream, enum sair_stream_end end) {
    SAIR_STORE(&stream->id.handle, NO_STREAM);
    SAIR_STORE_RELEASE(&stream->end, (uint32_t)end);
}

/* Its thread ends. The driver is not called from here: it may have forgotten the thread already. */
static void thread_ends(void *unused) {
    (void)unused;
    uint64_t self = thread_id;
    unsigned waited_us = 0;
    if (self == 0) return; /* forked: what it had is forgotten */
    thread_id = 0; /* whatever launches later from another destructor asks for a new one */
    recent = NULL;
    sair_capture_thread_gone(self);
    uint32_t high = SAIR_LOAD(&stream_high);
    for (uint32_t i = 0; i < high; i++) {
        struct sair_stream *stream = &streams[i];
        if (SAIR_LOAD_ACQUIRE(&stream->used) != 2 || SAIR_LOAD(&stream->id.thread) != self) continue;
        if (!take_patiently(&stream->busy, &waited_us)) continue;
        if (SAIR_LOAD(&stream->used) == 2 && SAIR_LOAD(&stream->id.thread) == self) {
            close_unmeasured(stream);
            mark_ended(stream, SAIR_STREAM_ENDED);
        }
        sair_stream_release(stream);
    }
}

void sair_stream_gone(CUstream handle) {
    if (sair_stream_is_default(handle)) return;
    uint32_t high = SAIR_LOAD(&stream_high);
    unsigned waited_us = 0;
    for (uint32_t i = 0; i < high; i++) {
        struct sair_stream *stream = &streams[i];
        struct sair_stream_id id = {.handle = handle};
        if (!is_valid(stream, &id)) continue;
        int is_taken = take_patiently(&stream->busy, &waited_us);
        if (is_valid(stream, &id)) {
            if (is_taken) sair_batch_close(stream);
            mark_ended(stream, SAIR_STREAM_ENDED);
        }
        if (is_taken) sair_stream_release(stream);
    }
    sair_streams_harvest(sair_now_ns());
}

void sair_context_gone(CUcontext context) {
    uint64_t now = sair_now_ns();
    unsigned waited_us = 0;
    sair_streams_close_batches();
    sair_streams_harvest(now);
    int is_locked = take_patiently(&harvesting, &waited_us);
    uint32_t high = SAIR_LOAD(&stream_high);
    for (uint32_t i = 0; i < high; i++) {
        struct sair_stream *stream = &streams[i];
        if (SAIR_LOAD_ACQUIRE(&stream->used) != 2 || (context != NULL && stream->context != context)) continue;
        mark_ended(stream, SAIR_STREAM_DEAD);
        if (is_locked) retire(stream, now);
    }
    sair_events_forget(context);
    sair_device_clocks_forget(context);
    sair_capture_context_gone(context);
    if (is_locked) SAIR_STORE_RELEASE(&harvesting, 0u);
}

void sair_streams_forget(void) {
    memset(streams, 0, sizeof streams);
    stream_high = 0;
    harvesting = 0;
    sair_context_forget();
    recent = NULL;
    thread_id = 0;
    sair_captures_forget();
    sair_events_reset();
    sair_device_clocks_forget(NULL);
}
