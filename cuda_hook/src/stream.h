/*
 * Streams of this process and the batches of launches measured on them.
 *
 * A batch is [start event, launches, end event] on one stream. `busy` is a try-lock held from the decision about a
 * launch until the launch is submitted, so that events bracket what they are meant to; nobody ever waits for it: a
 * thread that finds it taken submits without measuring. Closed batches queue in a ring, filled by the holder of `busy`
 * and emptied by the one harvester.
 */
#ifndef SAIR_STREAM_H
#define SAIR_STREAM_H

#include "cost.h"
#include "process.h"

#define SAIR_STREAMS 256u
#define SAIR_BATCHES 16u /* unharvested batches of one stream, a power of two */

struct sair_batch {
    CUevent start, end;
    struct sair_device *device;
    struct sair_cost *cost;    /* the one key of all its launches; NULL if they differ */
    int64_t charged_ns;        /* taken from the budget for it */
    int64_t estimate_ns;       /* sum of the undisturbed costs of its launches */
    uint32_t launches;
    uint8_t unmeasured;        /* holds a launch whose cost was unknown */
    uint8_t crowded;           /* other batches of this process ran beside it */
    uint8_t broken;            /* an event could not be recorded */
    uint8_t pad;
    uint64_t opened_ns, recorded_ns; /* host time before and after the start event was recorded */
    uint64_t submitted_ns;           /* host time after the last launch */
};

struct sair_stream {
    uint32_t used; /* 0 free, 1 being filled, 2 valid */
    uint32_t busy; /* try-lock */
    CUstream handle;
    uint64_t owner;    /* of per-thread and legacy default streams: thread or context; 0 = the handle says it all */
    uint8_t per_thread; /* submit through the _ptsz twins */
    uint8_t open;       /* batch `current` is open */
    uint8_t foreign;    /* submissions by other threads while busy was taken, since the batch opened */
    uint8_t skipped;    /* launches not measured since the last batch */
    int64_t last_ns;    /* predicted work of the last batch */
    CUcontext context;
    int64_t foreign_charged_ns;
    struct sair_batch current;
    uint32_t head, tail; /* of the ring, free-running */
    struct sair_batch ring[SAIR_BATCHES];
};

/* The state of the stream that `handle` means to the calling thread; NULL where the table is full. */
struct sair_stream *sair_stream_find(CUstream handle, int per_thread);

static inline int sair_stream_try(struct sair_stream *stream) {
    return __atomic_exchange_n(&stream->busy, 1u, __ATOMIC_ACQUIRE) == 0;
}

static inline void sair_stream_release(struct sair_stream *stream) {
    SAIR_STORE_RELEASE(&stream->busy, 0u);
}

/* Caller holds `busy` in these two. Opening records the start event; returns 0 where no batch could be opened. */
int sair_batch_open(struct sair_stream *stream, struct sair_device *device);
void sair_batch_close(struct sair_stream *stream);

/* Whether half the ring waits to be harvested. */
static inline int sair_stream_is_filling(const struct sair_stream *stream) {
    return stream->tail - SAIR_LOAD_ACQUIRE(&stream->head) >= SAIR_BATCHES / 2;
}

/* Close the open batches that the calling thread may close: all but other threads' per-thread streams. */
void sair_streams_close_batches(void);

/* Settle the batches whose end has been reached. Never waits. Returns how many were settled. */
unsigned sair_streams_harvest(uint64_t now_ns);

/* The stream or context is about to be destroyed. NULL context: the one whose device is released or reset, all streams.
 */
void sair_stream_gone(CUstream handle);
void sair_context_gone(CUcontext context);

/* After fork, in the child. */
void sair_streams_forget(void);

/* Whether the process has used one stream only so far. */
int sair_stream_is_only_one(void);

/* Streams that are being captured into graphs. */
void sair_capture_begins(CUstream handle, int per_thread);
void sair_capture_ends(CUstream handle, int per_thread);
extern uint32_t sair_captures_active;
/* What this thread asks of events in between breaks no capture of another thread, whenever that begins: a look at
 * sair_captures_active alone may be too early. Returns the mode to restore. */
CUstreamCaptureMode sair_capture_relax(void);
void sair_capture_restore(CUstreamCaptureMode mode);
/* Whether this stream is being captured; only asks the driver while any capture is active. */
int sair_stream_is_capturing(CUstream handle, int per_thread);

#endif
