#include "memory.h"

#include "graph_memory.h"
#include "pool.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct sair_memory_record {
    struct sair_memory_record *next;
    struct sair_device *device;
    CUcontext context;
    uint64_t handle, bytes;
    uint64_t target; /* of a mapping: the handle mapped */
    void *pool;
    uint32_t references;
    enum sair_memory_kind kind;
};

#define BUCKETS 4096u

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER; /* never held in the driver */
static struct sair_memory_record *table[BUCKETS];

static struct sair_memory_record **bucket_of(enum sair_memory_kind kind, uint64_t handle) {
    uint64_t h = (handle ^ (uint64_t)kind << 56) * UINT64_C(0x9e3779b97f4a7c15);
    return &table[(h >> 40) % BUCKETS];
}

static struct sair_memory_record **find(enum sair_memory_kind kind, uint64_t handle) {
    struct sair_memory_record **at = bucket_of(kind, handle);
    while (*at != NULL && ((*at)->kind != kind || (*at)->handle != handle)) at = &(*at)->next;
    return at;
}

static int is_slotted(const struct sair_device *device) {
    return device->slot != &device->private_slot;
}

static void add(struct sair_device *device, uint64_t bytes) {
    uint64_t held = SAIR_ADD(&device->slot->memory_bytes, bytes) + bytes;
    if (!is_slotted(device)) SAIR_ADD(&device->gpu->memory_unslotted, bytes);
    if (held > SAIR_LOAD(&device->slot->memory_peak_bytes)) SAIR_STORE(&device->slot->memory_peak_bytes, held);
}

static void subtract(struct sair_device *device, uint64_t bytes) {
    SAIR_SUB(&device->slot->memory_bytes, bytes);
    if (!is_slotted(device)) SAIR_SUB(&device->gpu->memory_unslotted, bytes);
}

uint64_t sair_memory_limit(void) {
    return sair_mode() == SAIR_MODE_UNKNOWN ? 0 : sair_process.config.memory_bytes;
}

uint64_t sair_memory_used(const struct sair_device *device) {
    return sair_page_memory_used(sair_process.page, device->index);
}

void sair_memory_bring_up_to_date(const struct sair_device *device) {
    (void)sair_page_reap(sair_process.page, SAIR_LOAD(&sair_process.rate_ppm), sair_now_ns());
    sair_pools_refresh(device);
}

static int fits(const struct sair_device *device, uint64_t bytes, uint64_t limit) {
    uint64_t used = sair_memory_used(device);
    return used <= limit && bytes <= limit - used;
}

#define GRAIN UINT64_C(512) /* what small allocations are rounded to */

static uint64_t rounded(uint64_t bytes) {
    return bytes < SAIR_MEMORY_BLOCK ? (bytes + GRAIN - 1) / GRAIN * GRAIN : bytes;
}

/* How much of the card `bytes` more take: small allocations fill up the blocks that those before them began. */
static uint64_t footprint(const struct sair_device *device, uint64_t bytes) {
    if (bytes >= SAIR_MEMORY_BLOCK) return sair_memory_blocks(bytes);
    return sair_memory_blocks(device->small_bytes + bytes) - sair_memory_blocks(device->small_bytes);
}

/* Caller holds the page's lock in these two. */
static void take(struct sair_device *device, uint64_t bytes) {
    add(device, footprint(device, bytes));
    if (bytes < SAIR_MEMORY_BLOCK) device->small_bytes += bytes;
}

static void give(struct sair_device *device, uint64_t bytes) {
    if (bytes < SAIR_MEMORY_BLOCK) device->small_bytes -= bytes;
    subtract(device, footprint(device, bytes));
}

static void refund(struct sair_device *device, uint64_t bytes) {
    sair_page_memory_lock(device->gpu);
    give(device, bytes);
    sair_page_memory_unlock(device->gpu);
}

int sair_memory_try(struct sair_reservation *reservation, uint64_t bytes, struct sair_device *device) {
    uint64_t limit = sair_memory_limit();
    bytes = rounded(bytes);
    for (int attempt = 0; attempt < 2; attempt++) {
        sair_page_memory_lock(device->gpu);
        int granted = limit == 0 || fits(device, footprint(device, bytes), limit);
        if (granted) take(device, bytes);
        sair_page_memory_unlock(device->gpu);
        if (granted) {
            *reservation = (struct sair_reservation){.device = device, .bytes = bytes};
            return 1;
        }
        /* What dead siblings held may be what is lacking. */
        if (sair_page_reap(sair_process.page, SAIR_LOAD(&sair_process.rate_ppm), sair_now_ns()) == 0) break;
    }
    return 0;
}

void sair_memory_refused(struct sair_device *device) {
    SAIR_ADD(&device->slot->memory_refused, UINT64_C(1));
}

int sair_memory_reserve(struct sair_reservation *reservation, uint64_t bytes, int ordinal) {
    *reservation = (struct sair_reservation){0};
    if (sair_process.page == NULL) return 1;
    struct sair_device *device = ordinal >= 0 ? sair_device_at(ordinal) : sair_device_current();
    if (device == NULL) return 1;
    do {
        if (sair_memory_try(reservation, bytes, device)) return 1;
    } while (sair_pools_make_room(device));
    sair_memory_refused(device);
    return 0;
}

void sair_memory_cancel(struct sair_reservation *reservation) {
    if (reservation->device != NULL) refund(reservation->device, reservation->bytes);
    reservation->device = NULL;
}

int sair_memory_resize(struct sair_reservation *reservation, uint64_t bytes) {
    struct sair_device *device = reservation->device;
    bytes = rounded(bytes);
    if (device == NULL || bytes == reservation->bytes) return 1;
    uint64_t limit = sair_memory_limit();
    sair_page_memory_lock(device->gpu);
    give(device, reservation->bytes);
    int granted = bytes < reservation->bytes || limit == 0 || fits(device, footprint(device, bytes), limit);
    if (granted) reservation->bytes = bytes;
    take(device, reservation->bytes);
    sair_page_memory_unlock(device->gpu);
    return granted;
}

int sair_memory_exchange(struct sair_device *device, uint64_t before, uint64_t after) {
    uint64_t limit = sair_memory_limit();
    sair_page_memory_lock(device->gpu);
    subtract(device, before);
    add(device, after);
    int is_within = after <= before || limit == 0 || sair_memory_used(device) <= limit;
    sair_page_memory_unlock(device->gpu);
    return is_within;
}

/* The context with which an allocation made now dies; NULL: it is freed one by one. Physical allocations and external
 * memory belong to the process. */
static CUcontext context_of(enum sair_memory_kind kind) {
    CUcontext context = NULL;
    const struct sair_driver *driver = sair_driver();
    if (kind == SAIR_MEMORY_HANDLE || kind == SAIR_MEMORY_EXTERNAL) return NULL;
    if (driver == NULL || driver->cuCtxGetCurrent == NULL) return NULL;
    (void)driver->cuCtxGetCurrent(&context);
    return context;
}

static void insert(struct sair_memory_record *record) {
    struct sair_memory_record **bucket = bucket_of(record->kind, record->handle);
    record->next = *bucket;
    *bucket = record;
}

void sair_memory_keep(struct sair_reservation *reservation, enum sair_memory_kind kind, uint64_t handle) {
    if (reservation->device == NULL) return;
    struct sair_memory_record *allocation = calloc(1, sizeof *allocation);
    /* Without a record the bytes stay charged until the process ends: never too little. */
    if (allocation == NULL) return;
    allocation->device = reservation->device;
    allocation->handle = handle;
    allocation->bytes = reservation->bytes;
    allocation->kind = kind;
    allocation->references = 1;
    allocation->context = context_of(kind);
    pthread_mutex_lock(&table_lock);
    insert(allocation);
    pthread_mutex_unlock(&table_lock);
}

void sair_memory_keep_pooled(struct sair_device *device, uint64_t handle, void *pool) {
    struct sair_memory_record *allocation = calloc(1, sizeof *allocation);
    if (allocation == NULL) return;
    allocation->device = device;
    allocation->handle = handle;
    allocation->kind = SAIR_MEMORY_ASYNC;
    allocation->references = 1;
    allocation->pool = pool;
    pthread_mutex_lock(&table_lock);
    insert(allocation);
    pthread_mutex_unlock(&table_lock);
}

void *sair_memory_pool_of(const struct sair_memory_record *record) {
    return record != NULL ? record->pool : NULL;
}

void sair_memory_retain(enum sair_memory_kind kind, uint64_t handle) {
    pthread_mutex_lock(&table_lock);
    struct sair_memory_record *allocation = *find(kind, handle);
    if (allocation != NULL) allocation->references++;
    pthread_mutex_unlock(&table_lock);
}

/* Take one reference away; the record itself comes out with the last. Caller holds the lock. */
static struct sair_memory_record *detach(enum sair_memory_kind kind, uint64_t handle) {
    struct sair_memory_record **at = find(kind, handle), *record = *at;
    if (record == NULL || --record->references > 0) return NULL;
    *at = record->next;
    return record;
}

struct sair_memory_record *sair_memory_detach(enum sair_memory_kind kind, uint64_t handle) {
    pthread_mutex_lock(&table_lock);
    struct sair_memory_record *record = detach(kind, handle);
    pthread_mutex_unlock(&table_lock);
    return record;
}

void sair_memory_settle(struct sair_memory_record *record, int was_freed) {
    if (record == NULL) return;
    if (was_freed) {
        if (record->pool == NULL) refund(record->device, record->bytes);
        free(record);
        return;
    }
    record->references = 1;
    pthread_mutex_lock(&table_lock);
    insert(record);
    pthread_mutex_unlock(&table_lock);
}

void sair_memory_map(enum sair_memory_kind kind, uint64_t key, uint64_t bytes, uint64_t handle) {
    struct sair_memory_record *use = calloc(1, sizeof *use);
    pthread_mutex_lock(&table_lock);
    struct sair_memory_record *target = *find(SAIR_MEMORY_HANDLE, handle);
    if (target != NULL) target->references++;
    if (target != NULL && use != NULL) {
        use->device = target->device;
        use->handle = key;
        use->bytes = bytes;
        use->target = handle;
        use->references = 1;
        use->kind = kind;
        insert(use);
        use = NULL;
    }
    pthread_mutex_unlock(&table_lock);
    free(use);
}

/* Caller holds the lock. */
static void end_use(struct sair_memory_record **at) {
    struct sair_memory_record *use = *at;
    *at = use->next;
    struct sair_memory_record *physical = detach(SAIR_MEMORY_HANDLE, use->target);
    if (physical != NULL) {
        refund(physical->device, physical->bytes);
        free(physical);
    }
    free(use);
}

/* One unmap may cover several mappings. */
void sair_memory_unmap(uint64_t address, uint64_t bytes) {
    pthread_mutex_lock(&table_lock);
    for (uint64_t at = address; at - address < bytes;) {
        struct sair_memory_record **found = find(SAIR_MEMORY_MAPPING, at);
        if (*found == NULL || (*found)->bytes == 0) break;
        at += (*found)->bytes;
        end_use(found);
    }
    pthread_mutex_unlock(&table_lock);
}

void sair_memory_unuse(enum sair_memory_kind kind, uint64_t key) {
    pthread_mutex_lock(&table_lock);
    for (struct sair_memory_record **found = find(kind, key); *found != NULL; found = find(kind, key)) end_use(found);
    pthread_mutex_unlock(&table_lock);
}

uint64_t sair_memory_mapped_at(uint64_t address) {
    uint64_t handle = 0;
    pthread_mutex_lock(&table_lock);
    for (unsigned i = 0; i < BUCKETS && handle == 0; i++)
        for (struct sair_memory_record *record = table[i]; record != NULL && handle == 0; record = record->next)
            if (record->kind == SAIR_MEMORY_MAPPING && address - record->handle < record->bytes)
                handle = record->target;
    pthread_mutex_unlock(&table_lock);
    return handle;
}

/* Pools belong to the device, which is reset with its primary context. */
static int dies_with(const struct sair_memory_record *allocation, CUcontext context, const struct sair_device *reset) {
    if (allocation->pool != NULL) return reset != NULL && allocation->device == reset;
    return allocation->context == context;
}

void sair_memory_context_gone(CUcontext context) {
    if (context == NULL) return;
    int ordinal = sair_context_primary_device(context);
    const struct sair_device *reset =
        ordinal >= 0 && (unsigned)ordinal < SAIR_DEVICES ? &sair_process.devices[ordinal] : NULL;
    pthread_mutex_lock(&table_lock);
    for (unsigned i = 0; i < BUCKETS; i++) {
        for (struct sair_memory_record **at = &table[i]; *at != NULL;) {
            struct sair_memory_record *allocation = *at;
            if (!dies_with(allocation, context, reset)) {
                at = &allocation->next;
                continue;
            }
            *at = allocation->next;
            if (allocation->pool == NULL) refund(allocation->device, allocation->bytes);
            free(allocation);
        }
    }
    pthread_mutex_unlock(&table_lock);
    if (reset != NULL) sair_pools_device_gone(reset);
}

void sair_memory_forget(void) {
    pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    table_lock = fresh;
    /* The records are the parent's; the few bytes are not worth walking lists that a thread may have left half-written.
     */
    memset(table, 0, sizeof table);
    sair_pools_forget();
    sair_graph_memory_forget();
}
