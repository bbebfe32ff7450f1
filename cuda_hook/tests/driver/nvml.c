/* The simulated libnvidia-ml.so.1: inventory, memory, processes, and utilisation as coarse as the real one's. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "../../src/nvml_abi.h"
#include "simgpu.h"

#define EXPORT __attribute__((visibility("default")))
#define UUID_FORMAT "GPU-53414952-2d53-494d-2d47-50552d0000%02x" /* cuDeviceGetUuid's bytes, printed */

struct nvmlDevice_st {
    int index;
};

typedef struct {
    unsigned pid;
    unsigned long long used;
    unsigned gpu_instance, compute_instance;
} process_info;

typedef struct {
    char legacy_bus_id[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} pci_info;

static struct nvmlDevice_st devices[SIMGPU_DEVICES];
static int users;

static struct simgpu_shared *shared(void) {
    return users > 0 ? simgpu_attach() : NULL;
}

static bool is_device(nvmlDevice_t device) {
    return device >= devices && device < devices + SIMGPU_DEVICES && shared() != NULL &&
           device->index < (int)shared()->config.devices;
}

EXPORT nvmlReturn_t nvmlInit_v2(void) {
    if (simgpu_attach() == NULL) return 9; /* NVML_ERROR_DRIVER_NOT_LOADED */
    for (int i = 0; i < SIMGPU_DEVICES; i++) devices[i].index = i;
    users++;
    return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlInit(void) { return nvmlInit_v2(); }
EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    return nvmlInit_v2();
}
EXPORT nvmlReturn_t nvmlShutdown(void) {
    if (users == 0) return NVML_ERROR_UNINITIALIZED;
    users--;
    return NVML_SUCCESS;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t code) {
    switch (code) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NOT_FOUND: return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "Insufficient Size";
    default: return "Unknown Error";
    }
}

static nvmlReturn_t text(char *out, unsigned length, const char *value) {
    if (strlen(value) + 1 > length) return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(out, value, strlen(value) + 1);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned length) {
    return text(out, length, "570.00-simulated");
}
EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *out, unsigned length) { return text(out, length, "12.570.00"); }
EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = 12080;
    return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    if (shared() == NULL) return NVML_ERROR_UNINITIALIZED;
    *count = shared()->config.devices;
    return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }
EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
    if (shared() == NULL) return NVML_ERROR_UNINITIALIZED;
    if (index >= shared()->config.devices) return NVML_ERROR_INVALID_ARGUMENT;
    *device = &devices[index];
    return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned index, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}
EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    char own[96];
    for (unsigned i = 0; shared() != NULL && i < shared()->config.devices; i++) {
        snprintf(own, sizeof own, UUID_FORMAT, i);
        if (strcmp(own, uuid) != 0) continue;
        *device = &devices[i];
        return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_FOUND;
}
EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index) {
    if (!is_device(device)) return NVML_ERROR_INVALID_ARGUMENT;
    *index = (unsigned)device->index;
    return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *out, unsigned length) {
    if (!is_device(device)) return NVML_ERROR_INVALID_ARGUMENT;
    char name[64];
    snprintf(name, sizeof name, "Simulated GPU %d", device->index);
    return text(out, length, name);
}
EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *out, unsigned length) {
    if (!is_device(device)) return NVML_ERROR_INVALID_ARGUMENT;
    char uuid[96];
    snprintf(uuid, sizeof uuid, UUID_FORMAT, device->index);
    return text(out, length, uuid);
}
EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, pci_info *info) {
    if (!is_device(device)) return NVML_ERROR_INVALID_ARGUMENT;
    memset(info, 0, sizeof *info);
    info->bus = (unsigned)device->index + 1;
    snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02x:00.0", device->index + 1);
    snprintf(info->legacy_bus_id, sizeof info->legacy_bus_id, "0000:%02x:00.0", (unsigned char)(device->index + 1));
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    if (!is_device(device)) return NVML_ERROR_INVALID_ARGUMENT;
    uint64_t free_bytes, total_bytes;
    simgpu_memory_info(device->index, &free_bytes, &total_bytes);
    *memory = (nvmlMemory_t){total_bytes, free_bytes, total_bytes - free_bytes};
    return NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    nvmlMemory_t plain;
    if (memory->version != nvmlMemory_v2) return 25; /* NVML_ERROR_ARGUMENT_VERSION_MISMATCH */
    nvmlReturn_t result = nvmlDeviceGetMemoryInfo(device, &plain);
    if (result == NVML_SUCCESS) *memory = (nvmlMemory_v2_t){memory->version, plain.total, 0, plain.free, plain.used};
    return result;
}

/* ---- processes ---- */

static nvmlReturn_t processes(nvmlDevice_t device, unsigned *count, process_info *infos) {
    if (!is_device(device)) return NVML_ERROR_INVALID_ARGUMENT;
    unsigned room = *count, found = 0;
    simgpu_lock();
    simgpu_reap();
    for (int i = 0; i < SIMGPU_PROCESSES; i++) {
        const struct simgpu_process *p = &shared()->processes[i];
        if (!p->used) continue;
        if (found < room && infos != NULL)
            infos[found] = (process_info){(unsigned)simgpu_pid_of(i),
                                          p->on[device->index].memory + p->on[device->index].context_bytes, 0xFFFFFFFFu,
                                          0xFFFFFFFFu};
        found++;
    }
    simgpu_unlock();
    *count = found;
    return found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}
EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count, process_info *infos) {
    return processes(device, count, infos);
}
EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned *count, process_info *infos) {
    return processes(device, count, infos);
}
EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned *count,
                                                             process_info *infos) {
    (void)infos;
    if (!is_device(device)) return NVML_ERROR_INVALID_ARGUMENT;
    *count = 0;
    return NVML_SUCCESS;
}

/* ---- utilisation: samples of 1/6 s, whole percents, a bias that is settable ---- */

static unsigned percent(uint64_t busy_ns) {
    double exact = 100.0 * (double)busy_ns / (double)SIMGPU_SAMPLE_NS;
    exact *= 1.0 + (double)shared()->config.nvml_bias_permille / 1000.0;
    return (unsigned)(exact < 0 ? 0 : exact > 100 ? 100 : lround(exact));
}

/* Close samples that ended without work since, so that an idle process reads as idle. Caller holds the lock. */
static void close_samples(struct simgpu_process_device *on, uint64_t now_ns) {
    while (on->sample_end <= now_ns) {
        on->samples[on->sample_count % SIMGPU_SAMPLES] = (struct simgpu_sample){on->sample_end, on->sample_busy};
        on->sample_count++;
        on->sample_busy = 0;
        on->sample_end += SIMGPU_SAMPLE_NS;
    }
}

static uint64_t realtime_offset_ns(void) {
    struct timespec real;
    clock_gettime(CLOCK_REALTIME, &real);
    return (uint64_t)real.tv_sec * UINT64_C(1000000000) + (uint64_t)real.tv_nsec - simgpu_clock_ns();
}

/* What a process did on the device, its samples complete up to now; NULL where there is no such process. */
static const struct simgpu_process_device *sampled(int process, nvmlDevice_t device) {
    struct simgpu_process *p = &shared()->processes[process];
    if (!p->used) return NULL;
    close_samples(&p->on[device->index], shared()->now_ns);
    return &p->on[device->index];
}

EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *out,
                                                    unsigned *count, unsigned long long last_seen_us) {
    if (!is_device(device) || count == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    unsigned room = *count, found = 0;
    uint64_t offset = realtime_offset_ns();
    simgpu_lock();
    simgpu_advance(simgpu_clock_ns());
    for (int i = 0; i < SIMGPU_PROCESSES; i++) {
        const struct simgpu_process_device *on = sampled(i, device);
        if (on == NULL) continue;
        uint64_t kept = on->sample_count < SIMGPU_SAMPLES ? on->sample_count : SIMGPU_SAMPLES;
        for (uint64_t k = on->sample_count - kept; k < on->sample_count; k++) {
            const struct simgpu_sample *sample = &on->samples[k % SIMGPU_SAMPLES];
            unsigned long long stamp = (sample->end_ns + offset) / 1000;
            if (stamp <= last_seen_us || percent(sample->busy_ns) == 0) continue; /* idle samples are not reported */
            if (out != NULL && found < room)
                out[found] = (nvmlProcessUtilizationSample_t){
                    (unsigned)simgpu_pid_of(i), stamp, percent(sample->busy_ns), 0, 0, 0};
            found++;
        }
    }
    simgpu_unlock();
    *count = found;
    if (found == 0) return NVML_ERROR_NOT_FOUND;
    return out == NULL || found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization) {
    if (!is_device(device)) return NVML_ERROR_INVALID_ARGUMENT;
    uint64_t busy = 0;
    simgpu_lock();
    simgpu_advance(simgpu_clock_ns());
    for (int i = 0; i < SIMGPU_PROCESSES; i++) {
        const struct simgpu_process_device *on = sampled(i, device);
        if (on == NULL) continue;
        if (on->sample_count > 0) busy += on->samples[(on->sample_count - 1) % SIMGPU_SAMPLES].busy_ns;
    }
    simgpu_unlock();
    *utilization = (nvmlUtilization_t){percent(busy > SIMGPU_SAMPLE_NS ? SIMGPU_SAMPLE_NS : busy), 0};
    return NVML_SUCCESS;
}
