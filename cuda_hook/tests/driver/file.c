/* The shared file: mapping it, its lock, who is attached, and the device memory each holds. */
#include "simgpu.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static struct simgpu_shared *shared;
static int liveness_fd = -1;
static int self_slot = -1;
static pid_t self_pid;
static pthread_mutex_t attach_lock = PTHREAD_MUTEX_INITIALIZER;

#define REAP_PERIOD_NS UINT64_C(20000000)

uint64_t simgpu_clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static int64_t setting(const char *name, int64_t otherwise) {
    const char *text = getenv(name);
    if (text == NULL || *text == '\0') return otherwise;
    char *end = NULL;
    long long value = strtoll(text, &end, 0);
    return end != NULL && *end == '\0' ? (int64_t)value : otherwise;
}

static uint32_t arbiter_setting(void) {
    const char *text = getenv("SAIR_SIMGPU_ARBITER");
    if (text == NULL || strcmp(text, "fifo") == 0) return SIMGPU_FIFO;
    if (strcmp(text, "rr") == 0) return SIMGPU_RR;
    if (strcmp(text, "concurrent") == 0) return SIMGPU_CONCURRENT;
    if (strcmp(text, "mps") == 0) return SIMGPU_MPS;
    return SIMGPU_FIFO;
}

static void initialise(struct simgpu_shared *s) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&s->lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    s->config.arbiter = arbiter_setting();
    int64_t devices = setting("SAIR_SIMGPU_DEVICES", 1);
    s->config.devices = (uint32_t)(devices < 1 ? 1 : devices > SIMGPU_DEVICES ? SIMGPU_DEVICES : devices);
    s->config.slice_ns = (uint64_t)setting("SAIR_SIMGPU_SLICE_NS", 2000000);
    s->config.memory_bytes = (uint64_t)setting("SAIR_SIMGPU_MEMORY_MIB", 81920) << 20;
    s->config.context_bytes = (uint64_t)setting("SAIR_SIMGPU_CONTEXT_MIB", 0) << 20;
    s->config.default_kernel_ns = (uint64_t)setting("SAIR_SIMGPU_KERNEL_NS", 10000);
    s->config.nvml_bias_permille = (int32_t)setting("SAIR_SIMGPU_NVML_BIAS_PERMILLE", 0);
    s->now_ns = simgpu_clock_ns();
    s->next_seq = 1;
    for (int d = 0; d < SIMGPU_DEVICES; d++) {
        s->devices[d].memory_bytes = s->config.memory_bytes;
        s->devices[d].current_context = SIMGPU_CONTEXTS;
    }
    s->layout = SIMGPU_LAYOUT;
    s->magic = SIMGPU_MAGIC;
    __atomic_store_n(&s->ready, 1u, __ATOMIC_RELEASE);
}

static struct simgpu_shared *map_file(const char *path) {
    /* World-writable on purpose: containers of different users share the simulated card. */
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return NULL;
    (void)fchmod(fd, 0666);
    struct flock creation = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    struct simgpu_shared *s = NULL;
    struct stat status;
    /* The creator's lock is an open-file-description lock: closing other descriptors of the file cannot drop it. */
    if (fcntl(fd, F_OFD_SETLKW, &creation) != 0) goto done;
    if (fstat(fd, &status) != 0) goto done;
    bool fresh = status.st_size < (off_t)sizeof *s;
    if (fresh && ftruncate(fd, (off_t)sizeof *s) != 0) goto done;
    s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (s == MAP_FAILED) {
        s = NULL;
        goto done;
    }
    if (s->ready == 0) initialise(s);
    if (s->magic != SIMGPU_MAGIC || s->layout != SIMGPU_LAYOUT) {
        munmap(s, sizeof *s);
        s = NULL;
    }
done:
    /* The mapping keeps the open file description, and with it the lock, alive beyond close. */
    creation.l_type = F_UNLCK;
    (void)fcntl(fd, F_OFD_SETLK, &creation);
    close(fd);
    return s;
}

struct simgpu_shared *simgpu_attach(void) {
    struct simgpu_shared *known = __atomic_load_n(&shared, __ATOMIC_ACQUIRE);
    if (known != NULL) return known;
    pthread_mutex_lock(&attach_lock);
    if (shared == NULL) {
        char path[512], liveness[520];
        const char *named = getenv("SAIR_SIMGPU_PATH");
        if (named != NULL && *named != '\0')
            snprintf(path, sizeof path, "%s", named);
        else
            snprintf(path, sizeof path, "/dev/shm/sair-simgpu-%u", (unsigned)getuid());
        snprintf(liveness, sizeof liveness, "%s.live", path);
        /* Never closed: closing any descriptor of this file would drop the process's locks on it. */
        liveness_fd = open(liveness, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (liveness_fd >= 0) (void)fchmod(liveness_fd, 0666);
        __atomic_store_n(&shared, map_file(path), __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&attach_lock);
    return shared;
}

void simgpu_lock(void) {
    if (pthread_mutex_lock(&shared->lock) == EOWNERDEAD) {
        pthread_mutex_consistent(&shared->lock);
        shared->owner_died++;
    }
}

void simgpu_unlock(void) {
    pthread_mutex_unlock(&shared->lock);
}

static uint64_t start_ticks_of(pid_t pid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0) return 0;
    text[length] = '\0';
    char *cursor = strrchr(text, ')'); /* the command name may hold spaces and parentheses */
    if (cursor == NULL) return 0;
    for (int field = 2; field < 22 && cursor != NULL; field++) cursor = strchr(cursor + 1, ' ');
    return cursor == NULL ? 0 : strtoull(cursor + 1, NULL, 10);
}

/* A process sees no conflict with its own locks, taken by whichever of the simulated libraries. */
static bool is_own(const struct simgpu_process *p) {
    static _Thread_local pid_t known;
    static _Thread_local uint64_t ticks;
    pid_t pid = getpid();
    if (p->pid != (int32_t)pid) return false;
    if (known != pid) {
        ticks = start_ticks_of(pid);
        known = pid;
    }
    return p->start_ticks == ticks;
}

int simgpu_pid_of(int process) {
    struct simgpu_process *p = &shared->processes[process];
    if (!p->used) return 0;
    if (is_own(p)) return (int)p->pid;
    struct flock probe = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = process, .l_len = 1};
    /* A process's lock dies with it and is visible across pid namespaces, where its pid is not. */
    if (fcntl(liveness_fd, F_GETLK, &probe) != 0) return (int)p->pid;
    if (probe.l_type == F_UNLCK) return 0;
    return probe.l_pid > 0 ? (int)probe.l_pid : (int)p->pid;
}

static void release_process(int slot) {
    struct simgpu_shared *s = shared;
    for (uint32_t i = 0; i < s->stream_high; i++)
        if (s->streams[i].used && s->contexts[s->streams[i].context].process == slot) simgpu_drop_stream(i);
    for (uint32_t i = 0; i < s->context_high; i++)
        if (s->contexts[i].used && s->contexts[i].process == slot) s->contexts[i].used = 0;
    for (uint32_t i = 0; i < SIMGPU_EVENTS; i++)
        if (s->events[i].used && s->events[i].process == (uint32_t)slot) simgpu_release_event(i);
    uint32_t generation = s->processes[slot].generation + 1;
    memset(&s->processes[slot], 0, sizeof s->processes[slot]);
    s->processes[slot].generation = generation;
}

void simgpu_reap(void) {
    for (int i = 0; i < SIMGPU_PROCESSES; i++)
        if (shared->processes[i].used && simgpu_pid_of(i) == 0) release_process(i);
    shared->reaped_ns = simgpu_clock_ns();
}

int simgpu_self(void) {
    return self_pid == getpid() ? self_slot : -1;
}

int simgpu_register(void) {
    if (simgpu_self() >= 0) return self_slot;
    struct simgpu_shared *s = simgpu_attach();
    if (s == NULL || liveness_fd < 0) return -1;
    simgpu_lock();
    simgpu_reap();
    int slot = -1;
    for (int i = 0; i < SIMGPU_PROCESSES && slot < 0; i++)
        if (!s->processes[i].used) slot = i;
    if (slot >= 0) {
        struct flock alive = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = slot, .l_len = 1};
        if (fcntl(liveness_fd, F_SETLK, &alive) != 0) {
            slot = -1;
        } else {
            char unnamed[SIMGPU_NAME];
            const char *tenant = getenv("SAIR_SIMGPU_TENANT");
            if (tenant == NULL || *tenant == '\0') {
                snprintf(unnamed, sizeof unnamed, "pid-%d", (int)getpid());
                tenant = unnamed;
            }
            struct simgpu_process *p = &s->processes[slot];
            p->pid = (int32_t)getpid();
            p->start_ticks = start_ticks_of(getpid());
            p->tenant = simgpu_tenant_named(tenant);
            uint64_t now = simgpu_clock_ns();
            for (int d = 0; d < SIMGPU_DEVICES; d++)
                p->on[d].sample_end = now - now % SIMGPU_SAMPLE_NS + SIMGPU_SAMPLE_NS;
            p->used = 1;
            self_slot = slot;
            self_pid = getpid();
        }
    }
    simgpu_unlock();
    return slot;
}

static uint64_t memory_used(int device) {
    uint64_t used = 0;
    for (int i = 0; i < SIMGPU_PROCESSES; i++)
        if (shared->processes[i].used)
            used += shared->processes[i].on[device].memory + shared->processes[i].on[device].context_bytes;
    return used;
}

bool simgpu_memory_take(int device, uint64_t bytes) {
    int slot = simgpu_self();
    if (slot < 0) return false;
    simgpu_lock();
    uint64_t total = shared->devices[device].memory_bytes;
    bool fits = bytes <= total && memory_used(device) <= total - bytes;
    if (!fits) {
        simgpu_reap();
        fits = bytes <= total && memory_used(device) <= total - bytes;
    }
    if (fits) shared->processes[slot].on[device].memory += bytes;
    simgpu_unlock();
    return fits;
}

void simgpu_memory_give(int device, uint64_t bytes) {
    int slot = simgpu_self();
    if (slot < 0) return;
    simgpu_lock();
    uint64_t *held = &shared->processes[slot].on[device].memory;
    *held -= bytes < *held ? bytes : *held;
    simgpu_unlock();
}

void simgpu_memory_info(int device, uint64_t *free_bytes, uint64_t *total_bytes) {
    simgpu_lock();
    if (simgpu_clock_ns() - shared->reaped_ns > REAP_PERIOD_NS) simgpu_reap();
    uint64_t total = shared->devices[device].memory_bytes, used = memory_used(device);
    simgpu_unlock();
    *free_bytes = used < total ? total - used : 0;
    *total_bytes = total;
}
