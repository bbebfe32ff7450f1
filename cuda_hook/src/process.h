/* What this process knows: its configuration, its page, its GPUs, the mode every launch looks at first. */
#ifndef SAIR_PROCESS_H
#define SAIR_PROCESS_H

#include "atomics.h"
#include "clock.h"
#include "config.h"
#include "driver.h"
#include "page.h"

#define SAIR_DEVICES SAIR_PAGE_GPUS

enum sair_mode {
    SAIR_MODE_UNKNOWN = 0, /* not initialised yet, or forked */
    SAIR_MODE_OFF = 1,     /* no grant file: nothing to enforce */
    SAIR_MODE_WHOLE = 2,   /* rate 1: count launches and watch the grant */
    SAIR_MODE_LIMIT = 3
};

/* One GPU as this process uses it. */
struct sair_device {
    int state; /* 0 unused, 1 being set up, 2 ready, 3 no section free: not limited */
    unsigned index;
    struct sair_page_gpu *gpu;
    struct sair_page_slot *slot;    /* in the page, or private_slot where the page is full */
    struct sair_page_slot private_slot;
    uint64_t small_bytes;           /* of memory, in allocations that share blocks; under the page's memory lock */
    uint32_t in_flight;             /* batches open or unharvested */
    uint32_t trusted;               /* alone on the card: event spans are our own busy time */
    uint32_t contended;             /* the agent says that others are active: NVML's figure corrects, not spans */
    uint32_t factor_ppm;            /* on the undisturbed cost while not trusted: overlap times scale */
    uint32_t stretched;             /* no agent, and launches take longer than they can: keep the quiet periods */
    uint32_t siblings, rank;        /* > 1: this many processes take turns in them, this one in that place */
    uint32_t refreshing;            /* try-lock of whoever takes up what the agent wrote */
    uint64_t probe_before_ns;       /* the next launch of a key that learned before that is measured by itself; 0 = none */
    int64_t usual_ns;               /* what a launch costs on average; 0 = none measured yet */
    int64_t usual_sum_ns;           /* of which it is the mean; the harvester's */
    uint32_t usual_launches;
};

struct sair_process {
    int mode;
    int page_shared;
    uint32_t rate_ppm;
    uint64_t next_tick_ns; /* when to look at the grant file again */
    struct sair_config config;
    struct sair_page *page;
    int device_count;
    uint32_t contexts; /* contexts created so far: with one, it need not be looked up */
    struct sair_device devices[SAIR_DEVICES];
};

extern struct sair_process sair_process;

/* Initialise if that is still to do; returns the mode. */
int sair_process_start(void);

static inline int sair_mode(void) {
    int mode = SAIR_LOAD_ACQUIRE(&sair_process.mode);
    return __builtin_expect(mode == SAIR_MODE_UNKNOWN, 0) ? sair_process_start() : mode;
}

/* Look at the grant file if 100 ms have passed since the last look, and at the page's health. */
void sair_process_tick(uint64_t now_ns);

/* The GPU of the calling thread's current context; NULL where there is none or it is not ours to limit. */
struct sair_device *sair_device_of_context(void);

/* The only GPU of the process; NULL where it has several, or has not looked yet. */
static inline struct sair_device *sair_device_only(void) {
    struct sair_device *first = &sair_process.devices[0];
    int is_it = SAIR_LOAD(&sair_process.device_count) == 1 && SAIR_LOAD_ACQUIRE(&first->state) == 2;
    return __builtin_expect(is_it, 1) ? first : NULL;
}

static inline struct sair_device *sair_device_current(void) {
    struct sair_device *only = sair_device_only();
    return only != NULL ? only : sair_device_of_context();
}

/* The memory limit's GPU where no launch has happened: also made at first use. */
struct sair_device *sair_device_at(int ordinal);

#endif
