#include "fair.h"

/* A waiter whose heartbeat is older has stopped waiting, or is gone. */
#define HEARTBEAT_NS (40 * SAIR_MS)
/* Budget that nobody has taken for this long is anybody's. */
#define UNCLAIMED_NS ((int64_t)(700 * SAIR_US))

static uint64_t larger(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

void sair_fair_arrive(struct sair_device *device) {
    uint64_t own = SAIR_LOAD(&device->slot->virtual_time_ns);
    SAIR_STORE(&device->slot->virtual_time_ns, larger(own, SAIR_LOAD(&device->gpu->virtual_time_ns)));
}

void sair_fair_serve(struct sair_device *device, int64_t chunk_ns) {
    uint64_t own = SAIR_LOAD(&device->slot->virtual_time_ns), seen = SAIR_LOAD(&device->gpu->virtual_time_ns);
    while (own > seen && !SAIR_CAS(&device->gpu->virtual_time_ns, &seen, own)) {
    }
    SAIR_ADD(&device->slot->virtual_time_ns, (uint64_t)chunk_ns);
}

static int waits_before(const struct sair_page_slot *other, const struct sair_device *device, uint64_t now_ns) {
    uint64_t owner = SAIR_LOAD(&other->owner);
    if (owner == 0 || (owner >> 32) != (uint64_t)device->index + 1 || other == device->slot) return 0;
    if (SAIR_LOAD(&other->waiting_since_ns) == 0) return 0;
    if (now_ns > SAIR_LOAD(&other->waiting_seen_ns) + HEARTBEAT_NS) return 0;
    return SAIR_LOAD(&other->virtual_time_ns) < SAIR_LOAD(&device->slot->virtual_time_ns);
}

int sair_fair_turn(const struct sair_device *device, int64_t ahead_ns, uint64_t now_ns) {
    if (!sair_process.page_shared || -ahead_ns > UNCLAIMED_NS) return 1;
    for (unsigned i = 0; i < SAIR_PAGE_SLOTS; i++)
        if (waits_before(&sair_process.page->slots[i], device, now_ns)) return 0;
    return 1;
}

void sair_fair_wait_begins(struct sair_device *device, uint64_t now_ns) {
    SAIR_STORE(&device->slot->waiting_seen_ns, now_ns);
    SAIR_STORE(&device->slot->waiting_since_ns, now_ns);
}

void sair_fair_wait_goes_on(struct sair_device *device, uint64_t now_ns) {
    SAIR_STORE(&device->slot->waiting_seen_ns, now_ns);
    /* Another thread of this process may have ended its wait. */
    if (SAIR_LOAD(&device->slot->waiting_since_ns) == 0) SAIR_STORE(&device->slot->waiting_since_ns, now_ns);
}

void sair_fair_wait_ends(struct sair_device *device) {
    SAIR_STORE(&device->slot->waiting_since_ns, UINT64_C(0));
}
