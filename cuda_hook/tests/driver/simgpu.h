/*
 * The simulated GPU: one serial device (or several) whose execution is shared by all processes that map one file.
 *
 * Nothing executes. Work is queued into per-stream rings in the shared file, and whoever takes the lock advances the
 * simulation from the last instant to now (CLOCK_MONOTONIC): which operation held the device in between follows from
 * the queues and the arbitration alone, so that a kernel of 50 ms costs no CPU and its completion time is exact however
 * late anybody looked. Waiting means sleeping until the earliest possible completion.
 *
 * Every nanosecond of compute is credited to the tenant that had it, in bins of 1 ms: the ground truth that a rate
 * limiter is judged by.
 */
#ifndef SAIR_SIMGPU_H
#define SAIR_SIMGPU_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIMGPU_MAGIC UINT64_C(0x3155504753414952)
#define SIMGPU_LAYOUT 3u
#define SIMGPU_DEVICES 4
#define SIMGPU_PROCESSES 128
#define SIMGPU_CONTEXTS 512
#define SIMGPU_STREAMS 1024
#define SIMGPU_RING 1024 /* launches in flight per stream before a launch blocks, as in the real driver */
#define SIMGPU_EVENTS 65536
#define SIMGPU_TENANTS 32
#define SIMGPU_BINS 131072 /* ring of 1 ms bins: 131 s of ground truth */
#define SIMGPU_BIN_NS UINT64_C(1000000)
#define SIMGPU_SAMPLES 128
/* NVML samples utilisation every 1/6 s. */
#define SIMGPU_SAMPLE_NS UINT64_C(166666667)
#define SIMGPU_SM 132
#define SIMGPU_BLOCK_SLOTS (SIMGPU_SM * 16)
#define SIMGPU_INTERVALS 65536
#define SIMGPU_NAME 64

enum simgpu_arbiter {
    SIMGPU_FIFO = 0,       /* one queue for everybody, no preemption */
    SIMGPU_RR = 1,         /* contexts take turns of slice_ns, running kernels are preempted */
    SIMGPU_CONCURRENT = 2, /* contexts take turns; inside a context the streams' kernels overlap where blocks fit */
    SIMGPU_MPS = 3         /* kernels of all contexts overlap where blocks fit */
};

enum simgpu_kind { SIMGPU_KERNEL = 1, SIMGPU_COPY = 2, SIMGPU_RECORD = 3, SIMGPU_WAIT = 4, SIMGPU_HOST = 5 };

struct simgpu_op {
    uint64_t seq;          /* global submission order */
    uint64_t remaining_ns; /* KERNEL, COPY */
    uint64_t cumulative_ns; /* stream's work up to and including this operation */
    uint64_t event_seq;    /* WAIT: the record waited for */
    uint32_t event;        /* RECORD, WAIT */
    uint32_t blocks;       /* KERNEL: resident blocks wanted, at most SIMGPU_BLOCK_SLOTS */
    uint8_t kind;
    uint8_t started;
    uint8_t host_state; /* HOST: 0 waiting, 1 due, 2 done */
    uint8_t pad[5];
};

struct simgpu_stream {
    uint8_t used;
    uint8_t blocking; /* ordered against the context's legacy stream */
    uint8_t legacy;
    uint8_t dying; /* freed once drained */
    uint32_t context;
    uint32_t head, tail; /* ring indices, free-running */
    uint64_t last_seq, done_seq;
    uint64_t queued_ns, finished_ns; /* cumulative */
    struct simgpu_op ring[SIMGPU_RING];
};

struct simgpu_event {
    uint8_t used;
    uint8_t doomed; /* destroyed; the slot is free once `pending` is 0 */
    uint16_t pad;
    uint32_t pending; /* operations in rings that name this event */
    uint32_t stream;
    uint32_t process;
    uint64_t recorded_seq; /* latest record; 0 = never */
    uint64_t done_seq;     /* latest completed record */
    uint64_t done_ns;      /* its time */
};

struct simgpu_context {
    uint8_t used;
    uint8_t device;
    uint16_t process;
    uint32_t legacy_stream; /* SIMGPU_STREAMS = none */
};

struct simgpu_sample {
    uint64_t end_ns;
    uint64_t busy_ns;
};

struct simgpu_process_device {
    uint64_t memory;      /* bytes held */
    uint64_t context_bytes;
    uint64_t busy_ns;     /* cumulative */
    uint64_t sample_end;  /* end of the sample being filled */
    uint64_t sample_busy;
    uint64_t sample_count;
    struct simgpu_sample samples[SIMGPU_SAMPLES];
};

struct simgpu_process {
    uint32_t used;
    int32_t pid; /* as the process sees itself */
    uint64_t start_ticks;
    uint32_t tenant;
    uint32_t generation;
    struct simgpu_process_device on[SIMGPU_DEVICES];
};

struct simgpu_bin {
    uint32_t number; /* ms since the epoch of CLOCK_MONOTONIC, truncated */
    uint32_t busy_ns;
};

struct simgpu_tenant {
    char name[SIMGPU_NAME];
    uint64_t busy_ns[SIMGPU_DEVICES]; /* cumulative */
    uint64_t kernels;                 /* completed */
    struct simgpu_bin bins[SIMGPU_DEVICES][SIMGPU_BINS];
};

struct simgpu_interval {
    uint64_t from_ns, until_ns;
    uint32_t tenant, process;
};

struct simgpu_device {
    uint64_t memory_bytes;
    uint64_t busy_ns;
    uint64_t slice_used_ns;
    uint32_t current_context;
    uint64_t interval_count;
    struct simgpu_interval intervals[SIMGPU_INTERVALS];
};

struct simgpu_config {
    uint32_t arbiter;
    uint32_t devices;
    uint64_t slice_ns;
    uint64_t memory_bytes;
    uint64_t context_bytes;   /* device memory a context costs */
    uint64_t default_kernel_ns; /* kernels whose name says nothing */
    int32_t nvml_bias_permille; /* added to every utilisation, relative */
    uint32_t launch_limit;      /* unused rings below SIMGPU_RING block earlier; 0 = SIMGPU_RING */
};

struct simgpu_shared {
    uint64_t magic;
    uint32_t layout;
    uint32_t ready;
    pthread_mutex_t lock;
    struct simgpu_config config;
    uint64_t now_ns;      /* simulated up to here */
    uint64_t next_seq;
    uint64_t reaped_ns;   /* last look for dead processes */
    uint64_t owner_died;  /* times the lock's owner was found dead */
    uint32_t active[SIMGPU_STREAMS]; /* streams with queued work */
    uint32_t active_count;
    uint32_t stream_high, event_hint, context_high;
    struct simgpu_device devices[SIMGPU_DEVICES];
    struct simgpu_process processes[SIMGPU_PROCESSES];
    struct simgpu_context contexts[SIMGPU_CONTEXTS];
    struct simgpu_tenant tenants[SIMGPU_TENANTS];
    struct simgpu_event events[SIMGPU_EVENTS];
    struct simgpu_stream streams[SIMGPU_STREAMS];
};

/* ---- file.c: mapping, locking, processes, memory ---- */

/* Map the file named by SAIR_SIMGPU_PATH (default /dev/shm/sair-simgpu-<uid>), creating it from the SAIR_SIMGPU_*
 * settings where it does not exist. NULL where it cannot be mapped. */
struct simgpu_shared *simgpu_attach(void);
/* Register the calling process (tenant from SAIR_SIMGPU_TENANT). Its slot, or -1 where all are taken. */
int simgpu_register(void);
/* Slot of this process, -1 if it never registered (or is a child of one that did). */
int simgpu_self(void);
void simgpu_lock(void);
void simgpu_unlock(void);
uint64_t simgpu_clock_ns(void);
/* Release everything held by processes that are gone. Caller holds the lock. */
void simgpu_reap(void);
/* The pid of a slot's process as the caller's pid namespace sees it; 0 if it is gone. */
int simgpu_pid_of(int process);
/* Account `bytes` on a device for the calling process; false where the device lacks them. Takes the lock. */
bool simgpu_memory_take(int device, uint64_t bytes);
void simgpu_memory_give(int device, uint64_t bytes);
void simgpu_memory_info(int device, uint64_t *free_bytes, uint64_t *total_bytes);

/* ---- engine.c: queues and arbitration ---- */

/* Caller holds the lock in all of these. */
void simgpu_advance(uint64_t until_ns);
void simgpu_drop_stream(uint32_t stream);
void simgpu_release_event(uint32_t event);

/* These take the lock themselves. */
int simgpu_context_open(int device);
void simgpu_context_close(int context);
int simgpu_stream_open(int context, bool blocking, bool legacy);
void simgpu_stream_close(int stream);
int simgpu_event_open(void);
void simgpu_event_close(int event);
/* Queue one operation, blocking while the stream's ring is full; returns its sequence number. */
uint64_t simgpu_submit(int stream, const struct simgpu_op *op);
/* Several operations that stand next to each other in the stream. */
uint64_t simgpu_submit_all(int stream, const struct simgpu_op *ops, size_t count);
bool simgpu_stream_done(int stream, uint64_t seq);
uint64_t simgpu_stream_last(int stream);
void simgpu_stream_wait(int stream, uint64_t seq);
void simgpu_context_wait(int context);
/* 0 done (time in *done_ns), 1 pending, 2 never recorded. */
int simgpu_event_state(int event, uint64_t *done_ns);
void simgpu_event_wait(int event);
/* Sequence number of the event's latest record, 0 = none. */
uint64_t simgpu_event_recorded(int event);
/* Host operation `seq` of `stream`: 1 due (run it, then mark it done), 0 not before *earliest_ns, -1 the stream is
 * gone. */
int simgpu_host_state(int stream, uint64_t seq, uint64_t *earliest_ns);
void simgpu_host_done(int stream, uint64_t seq);

/* ---- record.c: ground truth ---- */

/* Credit [from, until) to a process and, when `tenant_new`, to its tenant. Caller holds the lock. */
void simgpu_credit(int device, uint32_t process, uint64_t from_ns, uint64_t until_ns, bool tenant_new);
uint32_t simgpu_tenant_named(const char *name);

/* For the suite, through ctypes: advance to now, then copy the busy nanoseconds of bins [first, first + count).
 * Returns how many were still in the ring, -1 where the tenant is unknown. */
int simgpu_read_bins(const char *tenant, int device, uint64_t first_bin, uint32_t count, uint32_t *busy_ns);
uint64_t simgpu_read_busy(const char *tenant, int device);
uint64_t simgpu_read_kernels(const char *tenant);
uint64_t simgpu_read_memory(const char *tenant, int device);
int simgpu_read_processes(void);
uint64_t simgpu_read_now(void);
/* Change a setting of the mapped device: "arbiter", "slice_ns", "nvml_bias_permille", ... 0 or -1. */
int simgpu_configure(const char *name, int64_t value);

#endif
