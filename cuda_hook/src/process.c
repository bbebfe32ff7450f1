#include "process.h"

#include "bucket.h"
#include "cost.h"
#include "grant.h"
#include "memory.h"
#include "page_guard.h"
#include "stream.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TICK_NS (100 * SAIR_MS)

struct sair_process sair_process;

static pthread_mutex_t start_lock = PTHREAD_MUTEX_INITIALIZER;
static int is_configured;
static uint64_t last_reap_ns;

static const char *environment(const char *name) {
    return getenv(name);
}

/* Longer by one than any path, so that one cut short is too long for the kernel as well. */
typedef char path_copy[PATH_MAX + 1];

static const char *kept(path_copy copy, const char *path) {
    return path != NULL ? strncpy(copy, path, sizeof(path_copy) - 1) : NULL;
}

/* Once: programs that set their title overwrite the memory of the environment, and a forked child has its parent's
 * limits whatever either did to its variables. */
static void configure(void) {
    static path_copy grant_path, stats_path;
    if (is_configured) return;
    sair_process.config = sair_config_parse(environment);
    sair_process.config.grant_path = kept(grant_path, sair_process.config.grant_path);
    sair_process.config.stats_path = kept(stats_path, sair_process.config.stats_path);
    sair_log_set(sair_process.config.log);
    if (sair_process.config.errors > 0)
        sair_log(SAIR_LOG_ERROR, "%u malformed settings took their defaults", sair_process.config.errors);
    is_configured = 1;
}

/* The child shares the page and its bucket but owns no slot, no context and no event of its parent's. */
static void after_fork_in_child(void) {
    pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    start_lock = fresh;
    if (!is_configured) return; /* nothing else was touched */
    memset(sair_process.devices, 0, sizeof sair_process.devices);
    sair_process.device_count = 0;
    sair_process.contexts = 0;
    sair_streams_forget();
    sair_memory_forget();
    sair_cost_reset_pending();
    SAIR_STORE_RELEASE(&sair_process.mode, SAIR_MODE_UNKNOWN);
}

/* From the beginning: a thread may fork while another holds the lock for the first time. */
__attribute__((constructor)) static void watch_forks(void) {
    (void)pthread_atfork(NULL, NULL, after_fork_in_child);
}

static void apply_rate(uint32_t rate_ppm, enum sair_grant_state state, uint64_t now_ns) {
    struct sair_page *page = sair_process.page;
    uint32_t old = SAIR_LOAD(&page->header.rate_ppm);
    SAIR_STORE(&page->header.grant_state, (uint32_t)state);
    SAIR_STORE(&sair_process.rate_ppm, rate_ppm);
    if (old != rate_ppm && SAIR_CAS(&page->header.rate_ppm, &old, rate_ppm)) {
        SAIR_STORE(&page->header.grant_changed_ns, now_ns);
        if (old != 0)
            for (unsigned i = 0; i < SAIR_PAGE_GPUS; i++) sair_bucket_rescale(&page->gpus[i], old, rate_ppm, now_ns);
        sair_log(SAIR_LOG_INFO, "rate %u ppm, was %u", rate_ppm, old);
    }
    SAIR_STORE_RELEASE(&sair_process.mode, rate_ppm >= SAIR_RATE_ONE_PPM ? SAIR_MODE_WHOLE : SAIR_MODE_LIMIT);
}

/* What siblings hold to, or the container's processes before this one: a process that starts while the grant is
 * unreadable goes on with it. 0: nothing was ever granted. */
static uint32_t last_good_rate(void) {
    const struct sair_page_header *header = &sair_process.page->header;
    uint32_t state = SAIR_LOAD(&header->grant_state), rate_ppm = SAIR_LOAD(&header->rate_ppm);
    int is_granted = state == SAIR_GRANT_VALID || state == SAIR_GRANT_MALFORMED;
    return is_granted && rate_ppm <= SAIR_RATE_ONE_PPM ? rate_ppm : 0;
}

static void look_at_grant(uint64_t now_ns) {
    static uint32_t in_force;
    static int told_absent;
    enum sair_grant_state state;
    int is_error;
    if (in_force == 0) in_force = last_good_rate();
    in_force = sair_grant_look(sair_process.config.grant_path, in_force, &state, &is_error);
    if (is_error) SAIR_ADD(&sair_process.page->header.grant_errors, UINT64_C(1));
    if (is_error) sair_log(SAIR_LOG_ERROR, "grant file unreadable or malformed; rate %u ppm stays", in_force);
    if (state == SAIR_GRANT_ABSENT && !told_absent) {
        told_absent = 1;
        sair_log(SAIR_LOG_ERROR, "no rate granted; held to the lowest, %u ppm", in_force);
    }
    apply_rate(in_force, state, now_ns);
}

int sair_process_start(void) {
    pthread_mutex_lock(&start_lock);
    int mode = SAIR_LOAD(&sair_process.mode);
    if (mode != SAIR_MODE_UNKNOWN) goto out;
    configure();
    if (sair_process.config.grant_path == NULL && sair_process.config.memory_bytes == 0) {
        SAIR_STORE_RELEASE(&sair_process.mode, SAIR_MODE_OFF);
        goto out;
    }
    if (sair_process.page == NULL) sair_process.page = sair_page_open(&sair_process.config, &sair_process.page_shared);
    if (sair_process.page == NULL) {
        SAIR_STORE_RELEASE(&sair_process.mode, SAIR_MODE_OFF);
        goto out;
    }
    if (sair_process.page_shared) sair_page_guard(sair_process.page, sizeof *sair_process.page);
    uint64_t now = sair_now_ns();
    SAIR_STORE(&sair_process.page->header.memory_granted_bytes, sair_process.config.memory_bytes);
    SAIR_STORE(&sair_process.page->header.window_ns, sair_process.config.window_ns);
    SAIR_STORE(&sair_process.next_tick_ns, now + TICK_NS);
    if (sair_process.config.grant_path == NULL) {
        SAIR_STORE(&sair_process.page->header.rate_ppm, SAIR_RATE_ONE_PPM);
        SAIR_STORE_RELEASE(&sair_process.mode, SAIR_MODE_OFF);
    } else {
        look_at_grant(now);
    }
out:
    mode = SAIR_LOAD(&sair_process.mode);
    pthread_mutex_unlock(&start_lock);
    return mode;
}

void sair_process_tick(uint64_t now_ns) {
    uint64_t due = SAIR_LOAD(&sair_process.next_tick_ns);
    if (now_ns < due || sair_process.config.grant_path == NULL) return;
    /* A second between two looks by this thread means the previous winner is long done: one looker at a time. */
    if (!SAIR_CAS(&sair_process.next_tick_ns, &due, now_ns + TICK_NS)) return;
    if (pthread_mutex_trylock(&start_lock) != 0) return;
    look_at_grant(now_ns);
    pthread_mutex_unlock(&start_lock);
    if (now_ns - SAIR_LOAD(&last_reap_ns) > 1000 * SAIR_MS) {
        SAIR_STORE(&last_reap_ns, now_ns);
        sair_memory_bring_up_to_date(NULL);
    }
}

/* By the one thread that found the device unused; without a lock, since it asks the driver and may wait for others. */
static void set_up(struct sair_device *device, int ordinal) {
    const struct sair_driver *driver = sair_driver();
    CUuuid uuid = {{0}};
    if (driver == NULL || driver->cuDeviceGetUuid == NULL || driver->cuDeviceGetUuid(&uuid, ordinal) != CUDA_SUCCESS)
        memcpy(uuid.bytes, "sair-ordinal", 12), uuid.bytes[15] = (char)(ordinal + 1);
    device->gpu = sair_page_gpu_for(sair_process.page, uuid.bytes);
    if (device->gpu == NULL) {
        sair_log(SAIR_LOG_ERROR, "more than %u GPUs in this container: ordinal %d is not limited", SAIR_PAGE_GPUS,
                 ordinal);
        SAIR_STORE_RELEASE(&device->state, 3);
        return;
    }
    uint64_t now = sair_now_ns();
    device->index = (unsigned)(device->gpu - sair_process.page->gpus);
    device->slot = sair_page_slot_take(sair_process.page, device->index, SAIR_LOAD(&sair_process.rate_ppm), now);
    if (device->slot == NULL) device->slot = &device->private_slot;
    device->factor_ppm = SAIR_RATE_ONE_PPM;
    SAIR_STORE_RELEASE(&device->state, 2);
}

struct sair_device *sair_device_at(int ordinal) {
    if (ordinal < 0 || (unsigned)ordinal >= SAIR_DEVICES || sair_process.page == NULL) return NULL;
    struct sair_device *device = &sair_process.devices[ordinal];
    int state = SAIR_LOAD_ACQUIRE(&device->state);
    if (__builtin_expect(state == 2, 1)) return device;
    if (state == 0 && SAIR_CAS(&device->state, &state, 1)) set_up(device, ordinal);
    while ((state = SAIR_LOAD_ACQUIRE(&device->state)) == 1) usleep(100);
    return state == 2 ? device : NULL;
}

struct sair_device *sair_device_of_context(void) {
    int count = SAIR_LOAD(&sair_process.device_count);
    if (count == 1) return sair_device_at(0);
    const struct sair_driver *driver = sair_driver();
    if (driver == NULL) return NULL;
    if (count == 0) {
        if (driver->cuDeviceGetCount == NULL || driver->cuDeviceGetCount(&count) != CUDA_SUCCESS || count < 1)
            return NULL;
        SAIR_STORE(&sair_process.device_count, count);
        if (count == 1) return sair_device_at(0);
    }
    CUdevice ordinal;
    if (driver->cuCtxGetDevice == NULL || driver->cuCtxGetDevice(&ordinal) != CUDA_SUCCESS) return NULL;
    return sair_device_at(ordinal);
}
