#include "page.h"

#include "atomics.h"
#include "bucket.h"
#include "clock.h"

#include <errno.h>
#include <fcntl.h>
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

static struct sair_page *map_file(const struct sair_config *config) {
    int fd = open(config->stats_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
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

struct sair_page_gpu *sair_page_gpu_for(struct sair_page *page, const char uuid[16]) {
    for (int round = 0; round < 100; round++) {
        int busy = 0;
        for (unsigned i = 0; i < SAIR_PAGE_GPUS; i++) {
            struct sair_page_gpu *gpu = &page->gpus[i];
            uint64_t state = SAIR_LOAD_ACQUIRE(&gpu->claim);
            if (state == 2 && memcmp(gpu->uuid, uuid, sizeof gpu->uuid) == 0) return gpu;
            if (state == 0 && busy == 0 && SAIR_CAS(&gpu->claim, &state, 1)) {
                memcpy(gpu->uuid, uuid, sizeof gpu->uuid);
                SAIR_STORE(&gpu->scale_ppm, SAIR_RATE_ONE_PPM);
                SAIR_STORE(&gpu->bias_ppm, SAIR_RATE_ONE_PPM);
                SAIR_STORE_RELEASE(&gpu->claim, UINT64_C(2));
                return gpu;
            }
            if (state == 1) busy = 1;
        }
        if (!busy) return NULL;
        usleep(1000); /* another process is writing a UUID; if it died there, give up after 100 ms */
    }
    return NULL;
}

uint64_t sair_process_start_ticks(int pid) {
    char path[40], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0) return 0;
    text[length] = '\0';
    /* The second field, the name in parentheses, may hold anything; the start time is the 20th after it. */
    char *at = strrchr(text, ')');
    if (at == NULL) return 0;
    char state = at[1] == ' ' ? at[2] : '?';
    if (state == 'Z' || state == 'X') return 0;
    for (int field = 0; field < 20 && at != NULL; field++) at = strchr(at + 1, ' ');
    return at != NULL ? strtoull(at + 1, NULL, 10) : 0;
}

static int owner_pid(uint64_t owner) {
    return (int)(owner & UINT64_C(0xffffffff));
}

static unsigned owner_gpu(uint64_t owner) {
    return (unsigned)(owner >> 32) - 1;
}

static int is_dead(const struct sair_page_slot *slot, uint64_t owner) {
    int pid = owner_pid(owner);
    if (kill(pid, 0) != 0 && errno == ESRCH) return 1;
    uint64_t started = SAIR_LOAD(&slot->start_ticks);
    uint64_t now = sair_process_start_ticks(pid);
    /* started 0: the owner is between claiming and filling the slot, or died there. */
    return now == 0 || (started != 0 && started != now);
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
        if (owner == 0 || owner_pid(owner) == self || !is_dead(slot, owner)) continue;
        /* Whoever swings the owner to itself does the clean-up; a reaper that dies here is reaped in turn. */
        uint64_t mine = (owner & ~UINT64_C(0xffffffff)) | (uint64_t)(uint32_t)self;
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
        SAIR_STORE_RELEASE(&slot->start_ticks, sair_process_start_ticks((int)getpid()));
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
        if (owner != 0 && owner_gpu(owner) == gpu) sum += SAIR_LOAD(&slot->memory_bytes);
    }
    return sum;
}
