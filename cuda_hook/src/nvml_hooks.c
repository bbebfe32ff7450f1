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

static int digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "GPU-" and 32 digits with dashes between them. Returns 0 where it is something else: a part of a card, MIG-... */
static int parse_uuid(const char *text, uint8_t uuid[16]) {
    int digits = 0;
    if (strncmp(text, "GPU-", 4) != 0) return 0;
    memset(uuid, 0, 16);
    for (text += 4; *text != '\0'; text++) {
        if (*text == '-') continue;
        if (digit(*text) < 0 || digits == 32) return 0;
        uuid[digits / 2] = (uint8_t)(uuid[digits / 2] << 4 | digit(*text));
        digits++;
    }
    return digits == 32;
}

static int uuid_of(nvmlDevice_t device, uint8_t uuid[16]) {
    static nvmlReturn_t (*original)(nvmlDevice_t, char *, unsigned);
    nvmlReturn_t (*ask)(nvmlDevice_t, char *, unsigned) = SAIR_LOAD_ACQUIRE(&original);
    char text[96];
    if (ask == NULL) {
        ask = (nvmlReturn_t(*)(nvmlDevice_t, char *, unsigned))look_up("nvmlDeviceGetUUID");
        SAIR_STORE_RELEASE(&original, ask);
    }
    return ask != NULL && ask(device, text, sizeof text) == NVML_SUCCESS && parse_uuid(text, uuid);
}

/* Memory held on the GPU that is asked about; where it cannot be told which that is, the most held on any. */
static uint64_t used_bytes(nvmlDevice_t device) {
    uint8_t uuid[16];
    int is_known = uuid_of(device, uuid);
    uint64_t used = 0;
    for (unsigned i = 0; i < SAIR_PAGE_GPUS; i++) {
        const struct sair_page_gpu *gpu = &sair_process.page->gpus[i];
        if (SAIR_LOAD_ACQUIRE(&gpu->claim) != 2 || (is_known && memcmp(gpu->uuid, uuid, sizeof uuid) != 0)) continue;
        uint64_t on_gpu = sair_page_memory_used(sair_process.page, i);
        if (on_gpu > used) used = on_gpu;
    }
    return used;
}

/* The container's processes share one grant, whichever of its devices is asked about. */
#define CONFINE(device, memory)                                                                                        \
    do {                                                                                                               \
        uint64_t limit = sair_memory_limit();                                                                          \
        if (limit == 0 || sair_process.page == NULL) return result;                                                    \
        sair_memory_bring_up_to_date(NULL);                                                                            \
        if (limit < (memory)->total) (memory)->total = limit;                                                          \
        uint64_t used = used_bytes(device);                                                                            \
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
    CONFINE(device, memory);
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    nvmlReturn_t result = REAL(nvmlDeviceGetMemoryInfo_v2)(device, memory);
    if (result != NVML_SUCCESS || memory == NULL) return result;
    memory->reserved = sair_memory_limit() != 0 ? 0 : memory->reserved;
    CONFINE(device, memory);
}
