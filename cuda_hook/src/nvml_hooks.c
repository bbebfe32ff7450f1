#include "nvml_hooks.h"

#include "memory.h"
#include "nvml_abi.h"

#include <dlfcn.h>
#include <string.h>

/* NVML is resolved apart from the driver: many programs load it alone. */
#define NVML_HOOKS(X)                                                                                                  \
    X(nvmlDeviceGetMemoryInfo, nvmlMemory_t)                                                                           \
    X(nvmlDeviceGetMemoryInfo_v2, nvmlMemory_v2_t)

#define DECLARE(symbol, type)                                                                                          \
    __attribute__((visibility("default"))) nvmlReturn_t symbol(nvmlDevice_t device, type *memory);
NVML_HOOKS(DECLARE)

#define ORIGINAL(symbol, type) static nvmlReturn_t (*original_##symbol)(nvmlDevice_t, type *);
NVML_HOOKS(ORIGINAL)

void *sair_nvml_hook_named(const char *name) {
#define MATCH(symbol, type)                                                                                            \
    if (strcmp(name, #symbol) == 0) return (void *)symbol;
    NVML_HOOKS(MATCH)
    return NULL;
}

int sair_nvml_found(const char *name, void *real) {
#define REMEMBER(symbol, type)                                                                                         \
    if (strcmp(name, #symbol) == 0 && real != (void *)symbol) {                                                        \
        SAIR_STORE_RELEASE(&original_##symbol, (nvmlReturn_t(*)(nvmlDevice_t, type *))real);                           \
        return 1;                                                                                                      \
    }
    NVML_HOOKS(REMEMBER)
    return 0;
}

/* A program linked straight to NVML never looks the name up. */
static void *look_up(const char *name) {
    void *library = dlopen("libnvidia-ml.so.1", RTLD_LAZY | RTLD_NOLOAD);
    void *real = library != NULL ? sair_real_dlsym_call(library, name) : NULL;
    return real != NULL && sair_nvml_hook_named(name) != real ? real : NULL;
}

/* The container's processes share one grant, whichever of its devices is asked about; used memory counts what they hold
 * on the GPU that they use. */
static uint64_t used_bytes(void) {
    uint64_t used = 0;
    for (unsigned i = 0; i < SAIR_PAGE_GPUS; i++) {
        uint64_t on_gpu = sair_page_memory_used(sair_process.page, i);
        if (on_gpu > used) used = on_gpu;
    }
    return used;
}

#define CONFINE(memory)                                                                                                \
    do {                                                                                                               \
        uint64_t limit = sair_memory_limit();                                                                          \
        if (limit == 0 || sair_process.page == NULL) return result;                                                    \
        if (limit < (memory)->total) (memory)->total = limit;                                                          \
        uint64_t used = used_bytes();                                                                                  \
        (memory)->used = used < (memory)->total ? used : (memory)->total;                                              \
        (memory)->free = (memory)->total - (memory)->used;                                                             \
        return result;                                                                                                 \
    } while (0)

#define REAL(symbol)                                                                                                   \
    ({                                                                                                                 \
        __typeof__(original_##symbol) real_ = SAIR_LOAD_ACQUIRE(&original_##symbol);                                   \
        if (real_ == NULL) {                                                                                           \
            real_ = (__typeof__(original_##symbol))look_up(#symbol);                                                   \
            SAIR_STORE_RELEASE(&original_##symbol, real_);                                                             \
        }                                                                                                              \
        if (real_ == NULL) return NVML_ERROR_FUNCTION_NOT_FOUND;                                                       \
        real_;                                                                                                         \
    })

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    nvmlReturn_t result = REAL(nvmlDeviceGetMemoryInfo)(device, memory);
    if (result != NVML_SUCCESS || memory == NULL) return result;
    CONFINE(memory);
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    nvmlReturn_t result = REAL(nvmlDeviceGetMemoryInfo_v2)(device, memory);
    if (result != NVML_SUCCESS || memory == NULL) return result;
    memory->reserved = sair_memory_limit() != 0 ? 0 : memory->reserved;
    CONFINE(memory);
}
