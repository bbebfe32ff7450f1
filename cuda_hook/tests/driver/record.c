/* Ground truth: who had the device when, in 1 ms bins per tenant, plus what NVML would sample per process. */
#include "simgpu.h"

#include <stdio.h>
#include <string.h>

/* The shared file of this process; attached before anything here is called. */
#define S (simgpu_attach())

uint32_t simgpu_tenant_named(const char *name) {
    struct simgpu_shared *s = S;
    uint32_t free_slot = SIMGPU_TENANTS;
    for (uint32_t i = 0; i < SIMGPU_TENANTS; i++) {
        if (strncmp(s->tenants[i].name, name, SIMGPU_NAME - 1) == 0) return i;
        if (s->tenants[i].name[0] == '\0' && free_slot == SIMGPU_TENANTS) free_slot = i;
    }
    if (free_slot == SIMGPU_TENANTS) return SIMGPU_TENANTS - 1; /* the last one collects what has no room */
    snprintf(s->tenants[free_slot].name, SIMGPU_NAME, "%s", name);
    return free_slot;
}

static void credit_sample(struct simgpu_process_device *on, uint64_t from, uint64_t until) {
    while (from < until) {
        if (from >= on->sample_end) {
            on->samples[on->sample_count % SIMGPU_SAMPLES] = (struct simgpu_sample){on->sample_end, on->sample_busy};
            on->sample_count++;
            on->sample_busy = 0;
            uint64_t idle = (from - on->sample_end) / SIMGPU_SAMPLE_NS;
            on->sample_end += SIMGPU_SAMPLE_NS;
            if (idle > 2 * SIMGPU_SAMPLES) on->sample_end += (idle - SIMGPU_SAMPLES) * SIMGPU_SAMPLE_NS;
            continue;
        }
        uint64_t end = until < on->sample_end ? until : on->sample_end;
        on->sample_busy += end - from;
        from = end;
    }
}

static void credit_bins(struct simgpu_bin *bins, uint64_t from, uint64_t until) {
    while (from < until) {
        uint64_t number = from / SIMGPU_BIN_NS;
        uint64_t end = (number + 1) * SIMGPU_BIN_NS;
        if (end > until) end = until;
        struct simgpu_bin *bin = &bins[number % SIMGPU_BINS];
        if (bin->number != (uint32_t)number) *bin = (struct simgpu_bin){(uint32_t)number, 0};
        bin->busy_ns += (uint32_t)(end - from);
        from = end;
    }
}

void simgpu_credit(int device, uint32_t process, uint64_t from_ns, uint64_t until_ns, bool tenant_new) {
    struct simgpu_shared *s = S;
    struct simgpu_process *p = &s->processes[process];
    p->on[device].busy_ns += until_ns - from_ns;
    credit_sample(&p->on[device], from_ns, until_ns);
    if (!tenant_new) return;
    struct simgpu_tenant *tenant = &s->tenants[p->tenant];
    tenant->busy_ns[device] += until_ns - from_ns;
    credit_bins(tenant->bins[device], from_ns, until_ns);
    struct simgpu_device *d = &s->devices[device];
    struct simgpu_interval *last = &d->intervals[(d->interval_count + SIMGPU_INTERVALS - 1) % SIMGPU_INTERVALS];
    if (d->interval_count > 0 && last->until_ns == from_ns && last->process == process) {
        last->until_ns = until_ns;
        return;
    }
    d->intervals[d->interval_count++ % SIMGPU_INTERVALS] =
        (struct simgpu_interval){from_ns, until_ns, p->tenant, process};
}

static int find_tenant(const char *name) {
    struct simgpu_shared *s = S;
    for (int i = 0; i < SIMGPU_TENANTS; i++)
        if (strncmp(s->tenants[i].name, name, SIMGPU_NAME - 1) == 0) return i;
    return -1;
}

static void lock_and_advance(void) {
    simgpu_lock();
    simgpu_advance(simgpu_clock_ns());
}

int simgpu_read_bins(const char *tenant, int device, uint64_t first_bin, uint32_t count, uint32_t *busy_ns) {
    if (S == NULL || device < 0 || device >= SIMGPU_DEVICES) return -1;
    lock_and_advance();
    int index = find_tenant(tenant), kept = 0;
    uint64_t now_bin = S->now_ns / SIMGPU_BIN_NS;
    for (uint32_t i = 0; i < count && index >= 0; i++) {
        uint64_t number = first_bin + i;
        const struct simgpu_bin *bin = &S->tenants[index].bins[device][number % SIMGPU_BINS];
        busy_ns[i] = bin->number == (uint32_t)number ? bin->busy_ns : 0;
        if (number <= now_bin && now_bin - number < SIMGPU_BINS) kept++;
    }
    simgpu_unlock();
    return index < 0 ? -1 : kept;
}

uint64_t simgpu_read_busy(const char *tenant, int device) {
    if (S == NULL || device < 0 || device >= SIMGPU_DEVICES) return 0;
    lock_and_advance();
    int index = find_tenant(tenant);
    uint64_t busy = index < 0 ? 0 : S->tenants[index].busy_ns[device];
    simgpu_unlock();
    return busy;
}

uint64_t simgpu_read_kernels(const char *tenant) {
    if (S == NULL) return 0;
    lock_and_advance();
    int index = find_tenant(tenant);
    uint64_t kernels = index < 0 ? 0 : S->tenants[index].kernels;
    simgpu_unlock();
    return kernels;
}

uint64_t simgpu_read_memory(const char *tenant, int device) {
    if (S == NULL || device < 0 || device >= SIMGPU_DEVICES) return 0;
    lock_and_advance();
    simgpu_reap();
    int index = find_tenant(tenant);
    uint64_t bytes = 0;
    for (int i = 0; i < SIMGPU_PROCESSES && index >= 0; i++)
        if (S->processes[i].used && S->processes[i].tenant == (uint32_t)index)
            bytes += S->processes[i].on[device].memory;
    simgpu_unlock();
    return bytes;
}

int simgpu_read_processes(void) {
    if (S == NULL) return -1;
    lock_and_advance();
    simgpu_reap();
    int count = 0;
    for (int i = 0; i < SIMGPU_PROCESSES; i++) count += S->processes[i].used != 0;
    simgpu_unlock();
    return count;
}

uint64_t simgpu_read_now(void) {
    return simgpu_clock_ns();
}

int simgpu_configure(const char *name, int64_t value) {
    struct simgpu_shared *s = S;
    if (s == NULL) return -1;
    lock_and_advance();
    int result = 0;
    if (strcmp(name, "arbiter") == 0)
        s->config.arbiter = (uint32_t)value;
    else if (strcmp(name, "slice_ns") == 0)
        s->config.slice_ns = (uint64_t)value;
    else if (strcmp(name, "nvml_bias_permille") == 0)
        s->config.nvml_bias_permille = (int32_t)value;
    else if (strcmp(name, "memory_bytes") == 0)
        for (int d = 0; d < SIMGPU_DEVICES; d++) s->devices[d].memory_bytes = (uint64_t)value;
    else
        result = -1;
    simgpu_unlock();
    return result;
}
