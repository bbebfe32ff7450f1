/*
 * The stats page: one file per container, shared by every process of the container (which enforce the rate through it)
 * and by the node agent (which reads the counters and writes the agent block).
 *
 * Plain C11, fixed-width fields, no pointers. All times are CLOCK_MONOTONIC nanoseconds of the node, "gpu_ns" are
 * nanoseconds of GPU busy time. Every 8-byte field is naturally aligned and accessed with atomic 64-bit operations; a
 * reader needs no lock. Each field names its one writer: "hook" is any process of the container, "agent" the node
 * agent.
 */
#ifndef SAIR_STATS_PAGE_H
#define SAIR_STATS_PAGE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define SAIR_PAGE_MAGIC UINT64_C(0x3145474150524153) /* "SARPAGE1" in little-endian bytes */
#define SAIR_PAGE_VERSION 1u
#define SAIR_PAGE_GPUS 4u
#define SAIR_PAGE_SLOTS 128u
#define SAIR_PAGE_BUSY_WORDS 2048u
/* One bin of the busy map: 2^14 ns = 16.384 us; a word holds 32 bins (524 us), the map 1.07 s. */
#define SAIR_PAGE_BIN_SHIFT 14u
#define SAIR_PAGE_BINS_PER_WORD 32u

/* rate_ppm: parts per million of one GPU's time. */
#define SAIR_RATE_ONE_PPM 1000000u
#define SAIR_RATE_FLOOR_PPM 50000u

enum sair_grant_state {
    SAIR_GRANT_NONE = 0,     /* no grant file configured: pass-through */
    SAIR_GRANT_VALID = 1,    /* rate_ppm is the last content of the grant file */
    SAIR_GRANT_ABSENT = 2,   /* file empty or never readable: held to the lowest rate */
    SAIR_GRANT_MALFORMED = 3 /* the newest content is unreadable or garbage: the last good rate stays in force */
};

struct sair_page_header {
    uint64_t magic;                /* hook; written last when a page is created */
    uint32_t version;              /* hook */
    uint32_t size_bytes;           /* hook; sizeof(struct sair_page) */
    uint32_t gpu_count;            /* hook; SAIR_PAGE_GPUS */
    uint32_t slot_count;           /* hook; SAIR_PAGE_SLOTS */
    uint32_t rate_ppm;             /* hook; rate in force for every GPU of the container; 1000000 = pass-through */
    uint32_t grant_state;          /* hook; enum sair_grant_state */
    uint64_t grant_changed_ns;     /* hook; when rate_ppm last changed */
    uint64_t grant_errors;         /* hook; malformed or unreadable contents seen */
    uint64_t memory_granted_bytes; /* hook; 0 = no limit */
    uint64_t window_ns;            /* hook; configured burst window W */
    uint64_t slots_refused;        /* hook; processes that found no free slot */
    uint64_t reaped;               /* hook; slots taken back from dead processes */
    uint64_t quiet_seed;           /* hook; random: which quiet periods this container has to itself, see quiet.h */
    uint8_t reserved[40];
};

/* Written by the agent only. It bumps `sequence` to odd, writes, and bumps it to even (a reader retries a few times,
 * then skips this round). The hook regards the block as absent when sequence is 0 or updated_ns is more than 2 s old.
 */
struct sair_page_agent {
    uint64_t sequence;
    uint64_t updated_ns;           /* time of this update */
    uint64_t peers_last_active_ns; /* latest time at which another tenant of this GPU was seen active; 0 = never */
    uint64_t own_busy_ns;          /* cumulative gpu_ns of this container by NVML, uncorrected for NVML's bias */
    uint64_t own_busy_from_ns;     /* time from which own_busy_ns counts */
    uint64_t own_busy_until_ns;    /* time up to which own_busy_ns counts (NVML lags by one sample) */
    uint32_t peers_active;         /* other tenants active at updated_ns */
    uint32_t period_ms;            /* the agent's update period */
    uint64_t reserved;
};

/* One GPU of the container. */
struct sair_page_gpu {
    uint8_t uuid[16];             /* hook; all zero = section unused */
    uint64_t claim;               /* hook; 0 free, 2 uuid valid, else being claimed: 1 << 63 | the claimant's pid */
    uint64_t next_admissible_ns;  /* hook; the limiter's one word: wall time at which the budget is in balance */
    uint64_t queue_to_done_ns;    /* hook; submission to completion of the last batch */
    int64_t charged_ns;           /* hook; cumulative gpu_ns charged to the budget, corrections included */
    int64_t estimated_ns; /* hook; cumulative gpu_ns of completed work by the uncontended per-key cost, unscaled */
    int64_t measured_ns;          /* hook; cumulative union of event spans of completed work */
    uint64_t scale_ppm;           /* hook; factor on the per-key cost under contention, 1000000 = 1 */
    uint64_t bias_ppm;            /* hook; NVML figure over own spans while alone, 1000000 = 1 */
    uint64_t memory_lock;         /* hook; holder of the short memory section: start time << 32 | pid; 0 = free */
    uint64_t memory_unslotted;    /* hook; bytes held by processes without a slot */
    uint64_t retired_launches;    /* hook; counters of slots that were given back or reaped */
    uint64_t retired_busy_ns;     /* hook */
    uint64_t retired_throttled_ns; /* hook */
    uint64_t virtual_time_ns;     /* hook; fair queueing: virtual time of the process served last */
    struct sair_page_agent agent; /* agent */
    uint64_t scale_sequence;      /* hook; agent sequence up to which scale and bias are brought forward */
    uint64_t stretched_ns;        /* hook; when a launch last took clearly longer than it can */
    uint8_t reserved[40];
    uint64_t busy_map[SAIR_PAGE_BUSY_WORDS]; /* hook; high 32 bits: tag, low 32: bins */
};

/* One process on one GPU. Counters only grow while the slot is owned. */
struct sair_page_slot {
    uint64_t owner;          /* hook; (gpu_index + 1) << 32 | pid (as the container sees it); 0 = free; bit 63: that
                              * process clears up after the owner's death */
    uint64_t start_ticks;    /* hook; the process's start time from /proc/<pid>/stat, guards against pid reuse */
    int64_t lease_ns;        /* hook; gpu_ns taken from the bucket and not yet spent */
    int64_t outstanding_ns;  /* hook; gpu_ns charged for work that has not completed */
    uint64_t virtual_time_ns; /* hook; fair queueing */
    uint64_t waiting_since_ns; /* hook; 0 = not waiting for budget */
    uint64_t waiting_seen_ns; /* hook; heartbeat of the waiter */
    uint64_t launches;       /* hook; kernels, cooperative kernels and graphs submitted */
    uint64_t graph_launches; /* hook; of which graphs */
    uint64_t busy_ns;        /* hook; gpu_ns of completed work attributed to this process */
    uint64_t throttled_ns;   /* hook; wall time its threads slept for budget */
    uint64_t batches;        /* hook; measured batches */
    uint64_t unmeasured;     /* hook; launches admitted without a known cost */
    uint64_t memory_bytes;   /* hook; device memory held */
    uint64_t memory_peak_bytes; /* hook */
    uint64_t memory_refused; /* hook; allocations refused by the limit */
    uint64_t last_seen_ns;   /* hook; latest time at which the process renewed its lease */
    uint8_t reserved[112];
    uint64_t unmeasurable;   /* hook; launches of unknown cost that could not be measured: charged what one usually costs */
};

struct sair_page {
    struct sair_page_header header;
    struct sair_page_gpu gpus[SAIR_PAGE_GPUS];
    struct sair_page_slot slots[SAIR_PAGE_SLOTS];
};

static_assert(sizeof(struct sair_page_header) == 128, "header layout");
static_assert(offsetof(struct sair_page_header, rate_ppm) == 24, "header layout");
static_assert(offsetof(struct sair_page_header, memory_granted_bytes) == 48, "header layout");
static_assert(offsetof(struct sair_page_header, reaped) == 72, "header layout");
static_assert(sizeof(struct sair_page_agent) == 64, "agent layout");
static_assert(offsetof(struct sair_page_agent, own_busy_ns) == 24, "agent layout");
static_assert(offsetof(struct sair_page_agent, peers_active) == 48, "agent layout");
static_assert(offsetof(struct sair_page_gpu, next_admissible_ns) == 24, "gpu layout");
static_assert(offsetof(struct sair_page_gpu, agent) == 128, "gpu layout");
static_assert(offsetof(struct sair_page_header, quiet_seed) == 80, "header layout");
static_assert(offsetof(struct sair_page_gpu, stretched_ns) == 200, "gpu layout");
static_assert(offsetof(struct sair_page_gpu, scale_sequence) == 192, "gpu layout");
static_assert(offsetof(struct sair_page_gpu, busy_map) == 248, "gpu layout");
static_assert(sizeof(struct sair_page_gpu) == 248 + 8 * SAIR_PAGE_BUSY_WORDS, "gpu layout");
static_assert(sizeof(struct sair_page_slot) == 256, "slot layout");
static_assert(offsetof(struct sair_page_slot, launches) == 56, "slot layout");
static_assert(offsetof(struct sair_page_slot, memory_bytes) == 104, "slot layout");
static_assert(offsetof(struct sair_page, gpus) == 128, "page layout");
static_assert(offsetof(struct sair_page, slots) == 128 + 16632 * SAIR_PAGE_GPUS, "page layout");
static_assert(sizeof(struct sair_page) == 128 + 16632 * SAIR_PAGE_GPUS + 256 * SAIR_PAGE_SLOTS, "page size");

#endif
