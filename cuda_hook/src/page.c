#include "page.h"

#include "atomics.h"
#include "bucket.h"
#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* How long a creator may take before others use the page they see. */
#define CREATION_WAIT_MS 50

static uint64_t random_bits(void) {
    uint64_t bits = 0;
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd >= 0 ? read(fd, &bits, sizeof bits) : 0;
    if (fd >= 0) close(fd);
    return got == (ssize_t)sizeof bits ? bits : sair_now_ns() ^ (uint64_t)getpid() << 32;
}

static void fill_header(struct sair_page *page, const struct sair_config *config) {
    struct sair_page_header *h = &page->header;
    SAIR_STORE(&h->version, SAIR_PAGE_VERSION);
    SAIR_STORE(&h->size_bytes, (uint32_t)sizeof *page);
    SAIR_STORE(&h->gpu_count, SAIR_PAGE_GPUS);
    SAIR_STORE(&h->slot_count, SAIR_PAGE_SLOTS);
    SAIR_STORE(&h->rate_ppm, SAIR_RATE_FLOOR_PPM);
    SAIR_STORE(&h->memory_granted_bytes, config->memory_bytes);
    SAIR_STORE(&h->window_ns, config->window_ns);
    SAIR_STORE(&h->quiet_seed, random_bits());
    SAIR_STORE_RELEASE(&h->magic, SAIR_PAGE_MAGIC);
}

static int is_valid(const struct sair_page *page) {
    const struct sair_page_header *h = &page->header;
    return SAIR_LOAD_ACQUIRE(&h->magic) == SAIR_PAGE_MAGIC && SAIR_LOAD(&h->version) == SAIR_PAGE_VERSION &&
           SAIR_LOAD(&h->size_bytes) == sizeof *page;
}

/* The file as it should be: full size with its blocks allocated, because a store into a hole of a full file system is a
 * SIGBUS. A file lock makes creation one process's work; where locks are unsupported the loser finds a valid page. */
static int prepare_file(int fd) {
    struct stat status;
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) return -1;
    if ((size_t)status.st_size < sizeof(struct sair_page) || status.st_blocks * 512 < (off_t)sizeof(struct sair_page)) {
        int error = posix_fallocate(fd, 0, (off_t)sizeof(struct sair_page));
        if (error != 0) return -1;
    }
    return 0;
}

/* Every user of the container writes to the page: who could not would have a whole budget of his own. The volume is the
 * pod's alone. Opened before it is created, because some kernels let nobody create what another user's is already. */
static int open_file(const char *path) {
    int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;
    int fd = open(path, flags);
    if (fd < 0 && errno == ENOENT) fd = open(path, flags | O_CREAT, 0666);
    if (fd >= 0) (void)fchmod(fd, 0666); /* past the umask; only its owner can */
    return fd;
}

static struct sair_page *map_file(const struct sair_config *config) {
    int fd = open_file(config->stats_path);
    if (fd < 0) return NULL;
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int locked = 0;
    for (int waited_ms = 0; waited_ms < CREATION_WAIT_MS && !locked; waited_ms++) {
        locked = fcntl(fd, F_SETLK, &whole) == 0;
        if (!locked) usleep(1000);
    }
    struct sair_page *page = NULL;
    if (prepare_file(fd) != 0) goto out;
    page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) {
        page = NULL;
        goto out;
    }
    if (!is_valid(page)) {
        /* Garbage or another version: nothing in it can be trusted. */
        memset(page, 0, sizeof *page);
        fill_header(page, config);
    }
out:
    close(fd); /* drops the lock */
    return page;
}

struct sair_page *sair_page_open(const struct sair_config *config, int *is_shared) {
    struct sair_page *page = NULL;
    *is_shared = 0;
    if (config->stats_path != NULL) {
        page = map_file(config);
        if (page != NULL) {
            *is_shared = 1;
            return page;
        }
        sair_log(SAIR_LOG_ERROR, "stats page %s unusable: %s; limiting this process alone", config->stats_path,
                 strerror(errno));
    }
    page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return NULL;
    fill_header(page, config);
    return page;
}

/* ---- processes ---- */

struct look {
    int is_dead; /* for certain; one that cannot be looked at is not */
    uint64_t ticks; /* when it started; 0: unknown */
};

/* What /proc says. It may hide other users' processes, so that one without an entry need not be dead. */
static struct look look_at(int pid) {
    char path[40], text[1024];
    struct look look = {0};
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return look;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0) return look;
    text[length] = '\0';
    /* The second field, the name in parentheses, may hold anything; the start time is the 20th after it. */
    char *at = strrchr(text, ')');
    if (at == NULL) return look;
    char state = at[1] == ' ' ? at[2] : '?';
    look.is_dead = state == 'Z' || state == 'X';
    for (int field = 0; field < 20 && at != NULL; field++) at = strchr(at + 1, ' ');
    if (at != NULL) look.ticks = strtoull(at + 1, NULL, 10);
    return look;
}

static uint64_t own_ticks(void) {
    static uint64_t known; /* pid << 32 | ticks, the low half: a forked child asks anew */
    uint64_t pid = (uint64_t)(uint32_t)getpid(), seen = SAIR_LOAD(&known);
    if (seen >> 32 == pid) return seen & UINT32_MAX;
    uint64_t ticks = look_at((int)pid).ticks & UINT32_MAX;
    SAIR_STORE(&known, pid << 32 | ticks);
    return ticks;
}

/* Whether the process that had this pid and started at that tick is gone. Of the tick the low 32 bits count, which last
 * for more than a year; 0: unknown. */
static int is_gone(int pid, uint64_t started) {
    if (pid <= 0 || (kill(pid, 0) != 0 && errno == ESRCH)) return 1;
    struct look now = look_at(pid);
    return now.is_dead || (started != 0 && now.ticks != 0 && (uint32_t)started != (uint32_t)now.ticks);
}

static uint64_t own_mark(void) {
    return own_ticks() << 32 | (uint64_t)(uint32_t)getpid();
}

static int is_mark_of_dead(uint64_t mark) {
    return is_gone((int)(mark & UINT32_MAX), mark >> 32);
}

/* ---- sections ---- */

#define CLAIM_VALID UINT64_C(2)
/* While a section is being claimed, `claim` holds this bit and the claimant's pid. */
#define CLAIM_UNDER_WAY (UINT64_C(1) << 63)
#define CLAIM_WAIT_MS 100

/* Fill a section that this process has claimed. Whoever took it over meanwhile, thinking this process dead, has written
 * a UUID: it is not written over. Returns 0 then. */
static int fill_section(struct sair_page_gpu *gpu, const char uuid[16], uint64_t mine, int is_taken_over) {
    uint64_t words[2], *fields = (uint64_t *)(void *)gpu->uuid;
    memcpy(words, uuid, sizeof words);
    for (int i = 0; i < 2; i++) {
        uint64_t zero = 0;
        if (is_taken_over)
            SAIR_STORE(&fields[i], words[i]);
        else if (!SAIR_CAS(&fields[i], &zero, words[i]))
            return 0;
    }
    SAIR_STORE(&gpu->scale_ppm, SAIR_RATE_ONE_PPM);
    SAIR_STORE(&gpu->bias_ppm, SAIR_RATE_ONE_PPM);
    return SAIR_CAS(&gpu->claim, &mine, CLAIM_VALID);
}

struct sair_page_gpu *sair_page_gpu_for(struct sair_page *page, const char uuid[16]) {
    uint64_t mine = CLAIM_UNDER_WAY | (uint64_t)(uint32_t)getpid();
    for (int waited_ms = 0; waited_ms < 3 * CLAIM_WAIT_MS; waited_ms++) {
        struct sair_page_gpu *under_way = NULL;
        for (unsigned i = 0; i < SAIR_PAGE_GPUS; i++) {
            struct sair_page_gpu *gpu = &page->gpus[i];
            uint64_t state = SAIR_LOAD_ACQUIRE(&gpu->claim);
            if (state == CLAIM_VALID && memcmp(gpu->uuid, uuid, sizeof gpu->uuid) == 0) return gpu;
            if (state == 0 && under_way == NULL && SAIR_CAS(&gpu->claim, &state, mine) &&
                fill_section(gpu, uuid, mine, 0))
                return gpu;
            if (SAIR_LOAD_ACQUIRE(&gpu->claim) != CLAIM_VALID && under_way == NULL) under_way = gpu;
        }
        if (under_way == NULL) return NULL;
        uint64_t state = SAIR_LOAD_ACQUIRE(&under_way->claim);
        if (waited_ms >= CLAIM_WAIT_MS && state != 0 && state != CLAIM_VALID &&
            SAIR_CAS(&under_way->claim, &state, mine) && fill_section(under_way, uuid, mine, 1))
            return under_way;
        usleep(1000); /* another process is writing a UUID, or died there */
    }
    return NULL;
}

/* ---- the memory lock ---- */

void sair_page_memory_lock(struct sair_page_gpu *gpu) {
    uint64_t self = own_mark();
    for (unsigned round = 1;; round++) {
        uint64_t holder = 0;
        if (SAIR_CAS(&gpu->memory_lock, &holder, self)) return;
        if (round % 64 == 0 && holder != self && is_mark_of_dead(holder) && SAIR_CAS(&gpu->memory_lock, &holder, self))
            return;
        sched_yield();
    }
}

void sair_page_memory_unlock(struct sair_page_gpu *gpu) {
    SAIR_STORE_RELEASE(&gpu->memory_lock, UINT64_C(0));
}

/* ---- slots ---- */

/* In `owner`: its process is dead, and the one named there is clearing up after it. The start time in the slot is still
 * the dead one's. */
#define REAPING (UINT64_C(1) << 63)

static int owner_pid(uint64_t owner) {
    return (int)(owner & UINT64_C(0xffffffff));
}

static unsigned owner_gpu(uint64_t owner) {
    return (unsigned)((owner & ~REAPING) >> 32) - 1;
}

static int is_dead(const struct sair_page_slot *slot, uint64_t owner) {
    if ((owner & REAPING) != 0) return is_gone(owner_pid(owner), 0);
    /* Start time 0: the owner is between claiming and filling the slot, or died there. */
    return is_gone(owner_pid(owner), SAIR_LOAD(&slot->start_ticks));
}

void sair_page_slot_release(struct sair_page *page, struct sair_page_slot *slot, uint32_t rate_ppm, uint64_t now_ns) {
    uint64_t owner = SAIR_LOAD(&slot->owner);
    unsigned index = owner_gpu(owner);
    if (owner == 0 || index >= SAIR_PAGE_GPUS) {
        SAIR_STORE_RELEASE(&slot->owner, UINT64_C(0));
        return;
    }
    struct sair_page_gpu *gpu = &page->gpus[index];
    int64_t lease = SAIR_SWAP(&slot->lease_ns, 0);
    if (lease > 0) sair_bucket_correct(gpu, -lease, rate_ppm, now_ns);
    SAIR_ADD(&gpu->retired_launches, SAIR_SWAP(&slot->launches, UINT64_C(0)));
    SAIR_ADD(&gpu->retired_busy_ns, SAIR_SWAP(&slot->busy_ns, UINT64_C(0)));
    SAIR_ADD(&gpu->retired_throttled_ns, SAIR_SWAP(&slot->throttled_ns, UINT64_C(0)));
    size_t from = offsetof(struct sair_page_slot, start_ticks);
    memset((char *)slot + from, 0, sizeof *slot - from);
    SAIR_STORE_RELEASE(&slot->owner, UINT64_C(0));
}

unsigned sair_page_reap(struct sair_page *page, uint32_t rate_ppm, uint64_t now_ns) {
    unsigned found = 0;
    int self = (int)getpid();
    for (unsigned i = 0; i < SAIR_PAGE_SLOTS; i++) {
        struct sair_page_slot *slot = &page->slots[i];
        uint64_t owner = SAIR_LOAD_ACQUIRE(&slot->owner);
        if (owner == 0 || !is_dead(slot, owner)) continue;
        /* Whoever swings the owner to itself does the clean-up; a reaper that dies here is reaped in turn. */
        uint64_t mine = REAPING | (owner & ~UINT64_C(0xffffffff)) | (uint64_t)(uint32_t)self;
        if (!SAIR_CAS(&slot->owner, &owner, mine)) continue;
        sair_page_slot_release(page, slot, rate_ppm, now_ns);
        SAIR_ADD(&page->header.reaped, UINT64_C(1));
        found++;
    }
    return found;
}

struct sair_page_slot *sair_page_slot_take(struct sair_page *page, unsigned gpu, uint32_t rate_ppm, uint64_t now_ns) {
    sair_page_reap(page, rate_ppm, now_ns);
    uint64_t mine = ((uint64_t)gpu + 1) << 32 | (uint64_t)(uint32_t)getpid();
    for (unsigned i = 0; i < SAIR_PAGE_SLOTS; i++) {
        struct sair_page_slot *slot = &page->slots[i];
        uint64_t owner = 0;
        if (SAIR_LOAD(&slot->owner) != 0 || !SAIR_CAS(&slot->owner, &owner, mine)) continue;
        size_t from = offsetof(struct sair_page_slot, start_ticks);
        memset((char *)slot + from, 0, sizeof *slot - from);
        SAIR_STORE(&slot->virtual_time_ns, SAIR_LOAD(&page->gpus[gpu].virtual_time_ns));
        SAIR_STORE_RELEASE(&slot->start_ticks, look_at((int)getpid()).ticks);
        return slot;
    }
    SAIR_ADD(&page->header.slots_refused, UINT64_C(1));
    return NULL;
}

uint64_t sair_page_memory_used(struct sair_page *page, unsigned gpu) {
    uint64_t sum = SAIR_LOAD(&page->gpus[gpu].memory_unslotted);
    for (unsigned i = 0; i < SAIR_PAGE_SLOTS; i++) {
        const struct sair_page_slot *slot = &page->slots[i];
        uint64_t owner = SAIR_LOAD_ACQUIRE(&slot->owner);
        if (owner >> 32 == gpu + 1) sum += SAIR_LOAD(&slot->memory_bytes);
    }
    return sum;
}
