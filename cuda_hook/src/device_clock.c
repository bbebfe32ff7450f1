#include "device_clock.h"

#include "atomics.h"
#include "clock.h"
#include "driver.h"

#include <string.h>

#define CLOCKS 16
/* Events give milliseconds as a float: after 4 s the step is 0.25 us. */
#define REFERENCE_AGE_NS (4000 * SAIR_MS)
/* The clocks drift apart by at most this much. */
#define DRIFT_PPM 100

static struct sair_device_clock clocks[CLOCKS];

struct sair_device_clock *sair_device_clock_of(CUcontext context) {
    for (int i = 0; i < CLOCKS; i++)
        if (SAIR_SWAP(&clocks[i].is_gone, 0) != 0) clocks[i].is_set = 0;
    for (int i = 0; i < CLOCKS; i++)
        if (clocks[i].is_set && clocks[i].context == context) return &clocks[i];
    for (int i = 0; i < CLOCKS; i++) {
        if (clocks[i].is_set) continue;
        memset(&clocks[i], 0, sizeof clocks[i]);
        SAIR_STORE(&clocks[i].context, context);
        return &clocks[i];
    }
    return NULL;
}

static void adopt(struct sair_device_clock *clock, CUevent event, int64_t host_ns, uint64_t now_ns, int *adopted,
                  CUevent *released) {
    *released = clock->reference;
    *adopted = 1;
    clock->reference = event;
    clock->offset_ns = host_ns;
    clock->set_ns = now_ns;
    clock->is_set = 1;
}

int sair_device_clock_map(struct sair_device_clock *clock, CUevent start, CUevent end, uint64_t span_ns,
                          uint64_t opened_ns, uint64_t seen_ns, uint64_t *until_ns, int *adopted, CUevent *released) {
    *adopted = 0;
    *released = NULL;
    if (!clock->is_set) {
        /* The first interval is placed as early as it can have been: on an idle stream it is. */
        *until_ns = opened_ns + span_ns < seen_ns ? opened_ns + span_ns : seen_ns;
        adopt(clock, end, (int64_t)*until_ns, seen_ns, adopted, released);
        return 0;
    }
    float milliseconds;
    if (sair_driver()->cuEventElapsedTime(&milliseconds, clock->reference, end) != CUDA_SUCCESS) return -1;
    (void)start;
    int64_t end_gpu = (int64_t)((double)milliseconds * 1e6), start_gpu = end_gpu - (int64_t)span_ns;
    /* The start cannot lie before it was recorded, nor the end after it was seen. In between the earlier offset holds,
     * less what drift may have taken from it. */
    int64_t low = (int64_t)opened_ns - start_gpu, high = (int64_t)seen_ns - end_gpu;
    int64_t drift = (int64_t)((seen_ns - clock->set_ns) / 1000000 * DRIFT_PPM);
    int64_t offset = clock->offset_ns - drift;
    if (offset < low) offset = low;
    if (offset > high) offset = high;
    clock->offset_ns = offset;
    clock->set_ns = seen_ns;
    *until_ns = (uint64_t)(end_gpu + offset);
    if (end_gpu > (int64_t)REFERENCE_AGE_NS) adopt(clock, end, end_gpu + offset, seen_ns, adopted, released);
    return 0;
}

void sair_device_clocks_forget(CUcontext context) {
    for (int i = 0; i < CLOCKS; i++)
        if (context == NULL || SAIR_LOAD(&clocks[i].context) == context) SAIR_STORE(&clocks[i].is_gone, 1);
}
