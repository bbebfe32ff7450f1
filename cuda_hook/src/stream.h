/*
 * Streams of this process and the batches of launches measured on them.
 *
 * A batch is [start event, launches, end event] on one stream. `busy` is a try-lock held from the decision about a
 * launch until the launch is submitted, so that events bracket what they are meant to; nobody waits for it without
 * bound: a thread that finds it taken submits without measuring. Closed batches queue in a ring, filled by the holder
 * of `busy` and emptied by the one harvester. A slot whose stream is gone is freed by the harvester once its ring is
 * empty.
 */
#ifndef SAIR_STREAM_H
#define SAIR_STREAM_H

#include "cost.h"
#include "process.h"

#define SAIR_STREAMS 256u
#define SAIR_BATCHES 16u /* unharvested batches of one stream, a power of two */

/* What a handle means to the calling thread. `thread` and `context` are 0 where the handle says it all. */
struct sair_stream_id {
    CUstream handle;   /* NULL: the legacy default stream of the context; CU_STREAM_PER_THREAD; any other: itself */
    CUcontext context; /* of a default stream */
    uint64_t thread;   /* of a per-thread one */
};

struct sair_batch {
    struct sair_device *device;
    struct sair_cost *cost;    /* the one key of all its launches; NULL if they differ */
    int64_t charged_ns;        /* taken from the budget for it */
    int64_t estimate_ns;       /* sum of the undisturbed costs of its launches */
    uint32_t launches;
    uint32_t generation;       /* of `cost` when it was found */
    int64_t skipped_ns;        /* estimate of the launches before it that were not measured: it stands for them too */
    CUevent start, end;
    uint8_t unmeasured;        /* holds a launch whose cost was unknown */
    uint8_t crowded;           /* other batches of this process ran beside it */
    uint8_t broken;            /* an event could not be recorded */
    uint8_t pad;
    uint64_t opened_ns, recorded_ns; /* host time before and after the start event was recorded */
    uint64_t submitted_ns;           /* host time after the last launch */
};

enum sair_stream_end {
    SAIR_STREAM_LIVES = 0,
    SAIR_STREAM_ENDED = 1, /* destroyed, or its thread has ended; what it did is still measured */
    SAIR_STREAM_DEAD = 2   /* its context died, and the events with it */
};

struct sair_stream {
    uint32_t used; /* 0 free, 1 being filled, 2 valid */
    uint32_t busy; /* try-lock */
    uint32_t end;  /* enum sair_stream_end */
    struct sair_stream_id id;
    uint8_t open;       /* batch `current` is open */
    uint8_t skipped;    /* launches not measured since the last batch */
    int64_t skipped_ns; /* their estimate */
    uint32_t polled;    /* launches of the open batch when the program last asked whether work is done */
    int64_t last_ns;    /* predicted work of the last batch; 0 = not known */
    CUcontext context;  /* in which its events live */
    struct sair_device *device; /* of that context; NULL: not ours to limit */
    int64_t foreign_charged_ns; /* by other threads' launches while `busy` was taken, since the batch opened */
    uint32_t stuck;     /* `head` at which a launch waited in vain for the ring to drain, plus 1 */
    struct sair_batch current;
    uint32_t head, tail; /* of the ring, free-running, also from one stream of the slot to the next */
    struct sair_batch ring[SAIR_BATCHES];
};

/* Whether a handle means something else to each context or thread. */
static inline int sair_stream_is_default(CUstream handle) {
    return (uintptr_t)handle <= (uintptr_t)CU_STREAM_PER_THREAD;
}

struct sair_stream_id sair_stream_identify(CUstream handle, int per_thread);
/* The context that a stream belongs to. */
CUcontext sair_stream_context(const struct sair_stream_id *id);

/* The state of a stream; NULL where the table is full of streams with work in flight. It may end at any moment unless
 * `busy` is held. */
struct sair_stream *sair_stream_find(CUstream handle, int per_thread);
/* The same with `busy` taken. NULL where another thread has it; then *taken is that stream, or NULL. */
struct sair_stream *sair_stream_hold(CUstream handle, int per_thread, struct sair_stream **taken);

static inline void sair_stream_release(struct sair_stream *stream) {
    SAIR_STORE_RELEASE(&stream->busy, 0u);
}

/* The GPU that work on this stream runs on; NULL where it is not ours to limit. */
struct sair_device *sair_stream_device(CUstream handle, int per_thread);

/* Caller holds `busy` in these two. Opening records the start event; returns 0 where no batch could be opened. */
int sair_batch_open(struct sair_stream *stream, struct sair_device *device);
void sair_batch_close(struct sair_stream *stream);
/* Its events may be recorded again. */
void sair_batch_drop_events(const struct sair_stream *stream, struct sair_batch *batch);

/* Whether half the ring waits to be harvested. */
static inline int sair_stream_is_filling(const struct sair_stream *stream) {
    return SAIR_LOAD_ACQUIRE(&stream->tail) - SAIR_LOAD_ACQUIRE(&stream->head) >= SAIR_BATCHES / 2;
}

/* Close the open batches that the calling thread may close: all but other threads' per-thread streams. */
void sair_streams_close_batches(void);
/* The program asked whether some work is done. One that asks again without having launched meanwhile waits for it: its
 * batches are closed. */
void sair_streams_polled(void);

/* Settle the batches whose end has been reached. Never waits. Returns how many were settled. */
unsigned sair_streams_harvest(uint64_t now_ns);

/* The stream or context is about to be destroyed. NULL context: the one whose device is released or reset, all streams.
 */
void sair_stream_gone(CUstream handle);
void sair_context_gone(CUcontext context);
/* A context came into being: while it is the only one, it need not be asked for. */
void sair_context_born(CUcontext context);
void sair_context_forget(void);
CUcontext sair_context_current(void);
/* Make a context current for as long as something is done in it. Returns whether to leave it. */
int sair_context_enter(CUcontext context);
void sair_context_leave(int was_entered);

/* After fork, in the child. */
void sair_streams_forget(void);

/* Whether the process has used one stream only so far. */
int sair_stream_is_only_one(void);

/* Streams that are being captured into graphs. */
void sair_capture_begins(CUstream handle, int per_thread);
void sair_capture_ends(CUstream handle, int per_thread);
/* Captures on the streams of a context (NULL: of all) or of a thread are over. */
void sair_capture_context_gone(CUcontext context);
void sair_capture_thread_gone(uint64_t thread);
void sair_captures_forget(void);
extern uint32_t sair_captures_active;
/* What this thread asks of events in between breaks no capture of another thread, whenever that begins: a look at
 * sair_captures_active alone may be too early. Returns the mode to restore. */
CUstreamCaptureMode sair_capture_relax(void);
void sair_capture_restore(CUstreamCaptureMode mode);
int sair_capture_can_relax(void);
/* Whether this stream is being captured; only asks the driver while any capture is active. */
int sair_stream_is_capturing(CUstream handle, int per_thread);
/* Whether an event may be recorded in a stream: in one that is being captured it would end up in the graph, in the legacy
 * one it would break the capture of any stream that the legacy one waits for. */
int sair_stream_may_record(const struct sair_stream *stream);

#endif
