#include "pool.h"

#include "stream.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Memory whose work is still under way cannot be trimmed yet; this long is waited for it before an allocation is
 * refused. */
#define ROOM_WAIT_MS 100

enum { ATTRIBUTE_RESERVED = 5, ATTRIBUTE_USED = 7, GRAPH_ATTRIBUTE_RESERVED = 2, GRAPH_ATTRIBUTE_USED = 0 };

/* Records are never freed, only used again, so that a list can be walked without the lock. */
struct sair_pool {
    struct sair_pool *next;
    uint32_t is_used, is_gone; /* gone: destroyed, still holding what was not freed */
    uint32_t users;            /* threads that ask the driver about it */
    CUmemoryPool handle;       /* NULL: the memory of graphs */
    struct sair_device *device;
    uint64_t charged, needed, allocations, version;
    uint64_t asked, reserved; /* by allocations under way: their sizes, and the growth reserved for them */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* never held in the driver */
static struct sair_pool *pools;

/* Caller holds the lock. */
static struct sair_pool *find(CUmemoryPool handle, const struct sair_device *graphs_of) {
    for (struct sair_pool *pool = pools; pool != NULL; pool = pool->next) {
        if (!pool->is_used || pool->is_gone || pool->handle != handle) continue;
        if (handle != NULL || pool->device == graphs_of) return pool;
    }
    return NULL;
}

static struct sair_pool *find_or_add(CUmemoryPool handle, struct sair_device *device) {
    pthread_mutex_lock(&lock);
    struct sair_pool *pool = find(handle, device);
    if (pool == NULL) {
        for (pool = pools; pool != NULL && pool->is_used; pool = pool->next) {
        }
        int is_new = pool == NULL;
        if (is_new) pool = calloc(1, sizeof *pool);
        if (pool != NULL) {
            pool->handle = handle;
            SAIR_STORE(&pool->device, device);
            pool->allocations = pool->asked = pool->reserved = 0;
            SAIR_STORE(&pool->charged, UINT64_C(0));
            SAIR_STORE(&pool->needed, UINT64_C(0));
            SAIR_STORE(&pool->version, pool->version + 1);
            pool->is_gone = 0;
            pool->is_used = 1;
        }
        if (pool != NULL && is_new) {
            pool->next = pools;
            SAIR_STORE_RELEASE(&pools, pool);
        }
    }
    pthread_mutex_unlock(&lock);
    return pool;
}

static struct sair_pool *known(CUmemoryPool handle) {
    pthread_mutex_lock(&lock);
    struct sair_pool *pool = handle != NULL ? find(handle, NULL) : NULL;
    pthread_mutex_unlock(&lock);
    return pool;
}

/* ---- which pool ---- */

static struct sair_device *device_of_stream(CUstream stream) {
    const struct sair_driver *driver = sair_driver();
    CUcontext context = NULL;
    if (stream == NULL || stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD ||
        SAIR_LOAD(&sair_process.device_count) == 1 || driver->cuStreamGetCtx == NULL ||
        driver->cuCtxPushCurrent_v2 == NULL || driver->cuCtxPopCurrent_v2 == NULL ||
        driver->cuStreamGetCtx(stream, &context) != CUDA_SUCCESS ||
        driver->cuCtxPushCurrent_v2(context) != CUDA_SUCCESS)
        return sair_device_current();
    struct sair_device *device = sair_device_current();
    (void)driver->cuCtxPopCurrent_v2(&context);
    return device;
}

static int ordinal_of(const struct sair_device *device) {
    return (int)(device - sair_process.devices);
}

struct sair_pool *sair_pool_of_stream(CUstream stream) {
    const struct sair_driver *driver = sair_driver();
    struct sair_device *device = device_of_stream(stream);
    CUmemoryPool handle = NULL;
    if (device == NULL || driver->cuDeviceGetMemPool == NULL ||
        driver->cuDeviceGetMemPool(&handle, ordinal_of(device)) != CUDA_SUCCESS)
        return NULL;
    return find_or_add(handle, device);
}

struct sair_pool *sair_pool_named(CUmemoryPool handle, CUstream stream) {
    struct sair_pool *pool = known(handle);
    if (pool != NULL || handle == NULL) return pool;
    const struct sair_driver *driver = sair_driver();
    struct sair_device *device = device_of_stream(stream);
    /* Not created here: the default pool of some device, or one that a library got by a way of its own. */
    for (int ordinal = 0; driver->cuDeviceGetDefaultMemPool != NULL && ordinal < SAIR_LOAD(&sair_process.device_count);
         ordinal++) {
        CUmemoryPool standard = NULL;
        if (driver->cuDeviceGetDefaultMemPool(&standard, ordinal) == CUDA_SUCCESS && standard == handle)
            device = sair_device_at(ordinal);
    }
    return device != NULL ? find_or_add(handle, device) : NULL;
}

struct sair_pool *sair_pool_of_graphs(struct sair_device *device) {
    return find_or_add(NULL, device);
}

void sair_pool_created(CUmemoryPool handle, const CUmemPoolProps *props) {
    const CUmemLocation *location = &props->location;
    if (sair_location_is_host(location))
        (void)find_or_add(handle, NULL);
    else
        (void)find_or_add(handle, location->type == CU_MEM_LOCATION_TYPE_DEVICE ? sair_device_at(location->id)
                                                                               : sair_device_current());
}

/* ---- how much it holds ---- */

static int enter(struct sair_pool *pool) {
    pthread_mutex_lock(&lock);
    int is_there = pool->is_used && !pool->is_gone && pool->device != NULL;
    if (is_there) SAIR_ADD(&pool->users, 1u);
    pthread_mutex_unlock(&lock);
    return is_there;
}

static void leave(struct sair_pool *pool) {
    __atomic_fetch_sub(&pool->users, 1u, __ATOMIC_RELEASE);
}

/* What the driver holds for the pool, and how much of that is in use. Returns 0 where it does not say. */
static int ask(const struct sair_pool *pool, cuuint64_t *reserved, cuuint64_t *used) {
    const struct sair_driver *driver = sair_driver();
    CUstreamCaptureMode mode = sair_capture_relax();
    int is_known;
    *reserved = *used = 0;
    if (pool->handle != NULL)
        is_known = driver->cuMemPoolGetAttribute != NULL &&
                   driver->cuMemPoolGetAttribute(pool->handle, ATTRIBUTE_RESERVED, reserved) == CUDA_SUCCESS &&
                   driver->cuMemPoolGetAttribute(pool->handle, ATTRIBUTE_USED, used) == CUDA_SUCCESS;
    else
        is_known = driver->cuDeviceGetGraphMemAttribute != NULL &&
                   driver->cuDeviceGetGraphMemAttribute(ordinal_of(pool->device), GRAPH_ATTRIBUTE_RESERVED, reserved) ==
                       CUDA_SUCCESS &&
                   driver->cuDeviceGetGraphMemAttribute(ordinal_of(pool->device), GRAPH_ATTRIBUTE_USED, used) ==
                       CUDA_SUCCESS;
    sair_capture_restore(mode);
    return is_known;
}

/* Caller holds the lock. */
static void end_request(struct sair_pool *pool, const struct sair_reservation *reservation) {
    pool->asked -= reservation->asked;
    pool->reserved -= reservation->bytes;
}

/* Replace what is charged for the pool, and the reservation, by what the driver holds. The question and the answer's
 * use are one step, or an older answer would overwrite a newer one: a version instead of a lock, which must not be held
 * in the driver. */
static int settle(struct sair_pool *pool, struct sair_reservation *reservation, int *is_idle) {
    if (is_idle != NULL) *is_idle = 0;
    for (;;) {
        uint64_t version = SAIR_LOAD_ACQUIRE(&pool->version), reserved, used;
        if (!enter(pool)) {
            if (reservation != NULL) sair_pool_cancel(pool, reservation);
            return 1;
        }
        int is_known = ask(pool, &reserved, &used);
        leave(pool);
        pthread_mutex_lock(&lock);
        if (version != pool->version) {
            pthread_mutex_unlock(&lock);
            continue;
        }
        uint64_t before = pool->charged + (reservation != NULL ? reservation->bytes : 0);
        uint64_t holds = is_known || pool->handle == NULL ? reserved : before;
        if (pool->needed > holds) holds = pool->needed;
        int fits = sair_memory_exchange(pool->device, before, holds);
        SAIR_STORE(&pool->charged, holds);
        if (reservation != NULL) end_request(pool, reservation);
        SAIR_STORE_RELEASE(&pool->version, version + 1);
        pthread_mutex_unlock(&lock);
        if (reservation != NULL) reservation->device = NULL;
        if (is_idle != NULL) *is_idle = is_known && reserved > used;
        return fits;
    }
}

int sair_pool_settle(struct sair_pool *pool, struct sair_reservation *reservation) {
    return settle(pool, reservation, NULL);
}

void sair_pool_cancel(struct sair_pool *pool, struct sair_reservation *reservation) {
    pthread_mutex_lock(&lock);
    end_request(pool, reservation);
    pthread_mutex_unlock(&lock);
    sair_memory_cancel(reservation);
}

/* By how much the pool has to grow for one more request. What it has free now, requests under way may take as well. */
static uint64_t begin_request(struct sair_pool *pool, uint64_t bytes) {
    cuuint64_t reserved = 0, used = 0;
    if (enter(pool)) {
        if (!ask(pool, &reserved, &used)) reserved = used = 0;
        leave(pool);
    }
    pthread_mutex_lock(&lock);
    uint64_t needs = pool->asked + bytes, has = pool->reserved;
    if (pool->handle != NULL) {
        has += reserved > used ? reserved - used : 0;
    } else {
        needs += pool->needed;
        has += pool->charged;
    }
    uint64_t growth = needs > has ? sair_memory_blocks(needs - has) : 0;
    pool->asked += bytes;
    pool->reserved += growth;
    pthread_mutex_unlock(&lock);
    return growth;
}

/* Requests of other threads are being settled, which may make room. */
static int is_crowded(struct sair_pool *pool) {
    pthread_mutex_lock(&lock);
    int is = pool->asked > 0;
    pthread_mutex_unlock(&lock);
    return is;
}

int sair_pool_reserve(struct sair_pool *pool, uint64_t bytes, struct sair_reservation *reservation) {
    *reservation = (struct sair_reservation){0};
    if (pool->device == NULL) return 1;
    for (int waited_ms = 0; waited_ms < ROOM_WAIT_MS; waited_ms++) {
        uint64_t bytes_more = begin_request(pool, bytes);
        struct sair_reservation attempt = {.bytes = bytes_more, .asked = bytes};
        if (sair_memory_try(reservation, bytes_more, pool->device)) {
            reservation->asked = bytes;
            return 1;
        }
        pthread_mutex_lock(&lock);
        end_request(pool, &attempt);
        pthread_mutex_unlock(&lock);
        if (sair_pools_make_room(pool->device)) continue;
        if (!is_crowded(pool)) break;
        usleep(1000);
    }
    sair_memory_refused(pool->device);
    return 0;
}

void sair_pool_count(struct sair_pool *pool, int change) {
    pthread_mutex_lock(&lock);
    pool->allocations += (uint64_t)(int64_t)change;
    int is_over = pool->is_gone && pool->allocations == 0;
    if (is_over) {
        if (pool->device != NULL) (void)sair_memory_exchange(pool->device, pool->charged, 0);
        SAIR_STORE(&pool->charged, UINT64_C(0));
        pool->is_used = 0;
    }
    pthread_mutex_unlock(&lock);
    if (!is_over && change < 0) (void)settle(pool, NULL, NULL);
}

void sair_pool_need(struct sair_pool *pool, int64_t change) {
    pthread_mutex_lock(&lock);
    SAIR_STORE(&pool->needed, pool->needed + (uint64_t)change);
    pthread_mutex_unlock(&lock);
}

void sair_pool_trim(struct sair_pool *pool) {
    const struct sair_driver *driver = sair_driver();
    if (!enter(pool)) return;
    CUstreamCaptureMode mode = sair_capture_relax();
    if (pool->handle != NULL && driver->cuMemPoolTrimTo != NULL)
        (void)driver->cuMemPoolTrimTo(pool->handle, 0);
    else if (pool->handle == NULL && driver->cuDeviceGraphMemTrim != NULL)
        (void)driver->cuDeviceGraphMemTrim(ordinal_of(pool->device));
    sair_capture_restore(mode);
    leave(pool);
}

/* A destroyed pool ends with the last of its allocations; until then it holds what it held, less what can be let go. */
struct sair_pool *sair_pool_retire(CUmemoryPool handle) {
    struct sair_pool *pool = known(handle);
    if (pool == NULL) return NULL;
    sair_pool_trim(pool);
    (void)settle(pool, NULL, NULL);
    pthread_mutex_lock(&lock);
    pool->is_gone = 1;
    pthread_mutex_unlock(&lock);
    while (__atomic_load_n(&pool->users, __ATOMIC_ACQUIRE) > 0) sched_yield();
    return pool;
}

void sair_pool_retired(struct sair_pool *pool, int was_destroyed) {
    if (pool == NULL) return;
    if (was_destroyed) {
        sair_pool_count(pool, 0);
        return;
    }
    pthread_mutex_lock(&lock);
    pool->is_gone = 0;
    pthread_mutex_unlock(&lock);
}

/* ---- all of them ---- */

void sair_pools_refresh(const struct sair_device *device) {
    for (struct sair_pool *pool = SAIR_LOAD_ACQUIRE(&pools); pool != NULL; pool = pool->next)
        if (device == NULL || SAIR_LOAD(&pool->device) == device) (void)settle(pool, NULL, NULL);
}

int sair_pools_make_room(const struct sair_device *device) {
    for (int waited_ms = 0; waited_ms < ROOM_WAIT_MS; waited_ms++) {
        int has_released = 0, is_any_idle = 0, is_idle;
        for (struct sair_pool *pool = SAIR_LOAD_ACQUIRE(&pools); pool != NULL; pool = pool->next) {
            if (SAIR_LOAD(&pool->device) != device) continue;
            uint64_t before = SAIR_LOAD(&pool->charged);
            sair_pool_trim(pool);
            (void)settle(pool, NULL, &is_idle);
            has_released |= SAIR_LOAD(&pool->charged) < before;
            is_any_idle |= is_idle;
        }
        if (has_released) return 1;
        if (!is_any_idle) return 0;
        usleep(1000);
    }
    return 0;
}

void sair_pools_device_gone(const struct sair_device *device) {
    pthread_mutex_lock(&lock);
    for (struct sair_pool *pool = pools; pool != NULL; pool = pool->next) {
        if (!pool->is_used || pool->device == NULL || pool->device != device) continue;
        (void)sair_memory_exchange(pool->device, pool->charged, 0);
        SAIR_STORE(&pool->charged, UINT64_C(0));
        SAIR_STORE(&pool->needed, UINT64_C(0));
        pool->allocations = 0;
        SAIR_STORE(&pool->version, pool->version + 1);
        pool->is_used = 0;
    }
    pthread_mutex_unlock(&lock);
}

void sair_pools_forget(void) {
    pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    lock = fresh;
    pools = NULL;
}
