#include "event_pool.h"

#include "stream.h"

#include <pthread.h>
#include <string.h>

#define POOL_SIZE 2048u

struct pooled {
    CUcontext context;
    CUevent event;
};

static struct pooled pool[POOL_SIZE];
static uint32_t pooled_count;
static uint32_t pool_lock;

/* Held for a few instructions, never in the driver and never while sleeping. */
static void lock(void) {
    while (__atomic_exchange_n(&pool_lock, 1u, __ATOMIC_ACQUIRE) != 0) {
    }
}

static void unlock(void) {
    SAIR_STORE_RELEASE(&pool_lock, 0u);
}

CUevent sair_event_take(CUcontext context) {
    CUevent event = NULL;
    lock();
    for (uint32_t i = pooled_count; i > 0 && event == NULL; i--) {
        if (pool[i - 1].context != context) continue;
        event = pool[i - 1].event;
        pool[i - 1] = pool[--pooled_count];
    }
    unlock();
    if (event != NULL) return event;
    const struct sair_driver *driver = sair_driver();
    if (driver == NULL || driver->cuEventCreate == NULL) return NULL;
    CUstreamCaptureMode mode = sair_capture_relax();
    if (driver->cuEventCreate(&event, CU_EVENT_DEFAULT) != CUDA_SUCCESS) event = NULL;
    sair_capture_restore(mode);
    return event;
}

void sair_event_give(CUcontext context, CUevent event) {
    if (event == NULL) return;
    int kept = 0;
    lock();
    if (pooled_count < POOL_SIZE) {
        pool[pooled_count++] = (struct pooled){context, event};
        kept = 1;
    }
    unlock();
    const struct sair_driver *driver = sair_driver();
    if (!kept && driver != NULL && driver->cuEventDestroy_v2 != NULL) (void)driver->cuEventDestroy_v2(event);
}

void sair_events_forget(CUcontext context) {
    lock();
    uint32_t kept = 0;
    for (uint32_t i = 0; i < pooled_count; i++)
        if (context != NULL && pool[i].context != context && pool[i].context != NULL) pool[kept++] = pool[i];
    pooled_count = kept;
    unlock();
}

void sair_events_reset(void) {
    pooled_count = 0;
    unlock();
}
