#include "driver.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

enum streams { ONE, LEGACY, THREAD };

struct hook {
    const char *symbol, *base;
    int since;
    enum streams streams;
    void *replacement;
    size_t original; /* offset in struct sair_driver */
};

static const struct hook hooks[SAIR_HOOK_COUNT] = {
#define SAIR_HOOK(symbol, base, since, streams, params, args)                                                          \
    {#symbol, base, since, streams, (void *)symbol, offsetof(struct sair_driver, symbol)},
#include "hooks.def"
};

static const struct {
    const char *symbol;
    size_t original;
} uses[] = {
#define SAIR_USE(symbol, params) {#symbol, offsetof(struct sair_driver, symbol)},
#include "hooks.def"
};

const struct sair_driver *sair_driver_published;

static void *original(const struct sair_driver *driver, size_t offset) {
    void *address;
    memcpy(&address, (const char *)driver + offset, sizeof address);
    return address;
}

static void look_up(struct sair_driver *driver, void *library, const char *symbol, size_t offset) {
    void *address = sair_real_dlsym_call(library, symbol);
    /* With library RTLD_NEXT an interposer could hand us ourselves; never call ourselves. */
    if (address != NULL && sair_is_hook(address)) address = NULL;
    memcpy((char *)driver + offset, &address, sizeof address);
}

/* No lock: it would be taken against the loader's lock in both orders. Threads that race resolve the same addresses and
 * the first publishes. The library found stays pinned by its handle, so the addresses never go stale. */
const struct sair_driver *sair_driver_resolve(void) {
    const struct sair_driver *published = __atomic_load_n(&sair_driver_published, __ATOMIC_ACQUIRE);
    if (published != NULL) return published;
    void *library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    if (library == NULL) library = dlopen("libcuda.so", RTLD_LAZY | RTLD_NOLOAD);
    if (library == NULL) return NULL;
    struct sair_driver *driver = calloc(1, sizeof *driver);
    if (driver == NULL) return NULL;
    for (size_t i = 0; i < SAIR_HOOK_COUNT; i++) look_up(driver, library, hooks[i].symbol, hooks[i].original);
    for (size_t i = 0; i < sizeof uses / sizeof uses[0]; i++)
        look_up(driver, library, uses[i].symbol, uses[i].original);
    if (!__atomic_compare_exchange_n(&sair_driver_published, &published, driver, 0, __ATOMIC_ACQ_REL,
                                     __ATOMIC_ACQUIRE)) {
        free(driver);
        return published;
    }
    return driver;
}

void *sair_hook_named(const char *name) {
    for (size_t i = 0; i < SAIR_HOOK_COUNT; i++)
        if (strcmp(hooks[i].symbol, name) == 0) return hooks[i].replacement;
    return NULL;
}

void *sair_hook_before(const void *real) {
    const struct sair_driver *driver = sair_driver();
    if (driver == NULL || real == NULL) return NULL;
    for (size_t i = 0; i < SAIR_HOOK_COUNT; i++)
        if (original(driver, hooks[i].original) == real) return hooks[i].replacement;
    return NULL;
}

static void *ask(const struct sair_driver *driver, const char *name, int version, cuuint64_t flags) {
    void *address = NULL;
    CUdriverProcAddressQueryResult status;
    if (driver->cuGetProcAddress_v2 != NULL)
        (void)driver->cuGetProcAddress_v2(name, &address, version, flags, &status);
    else if (driver->cuGetProcAddress != NULL)
        (void)driver->cuGetProcAddress(name, &address, version, flags);
    return address;
}

void *sair_hook_for(const char *name, int version, cuuint64_t flags, const void *real) {
    const struct sair_driver *driver = sair_driver();
    int per_thread = (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0;
    const struct hook *best = NULL;
    for (size_t i = 0; i < SAIR_HOOK_COUNT; i++) {
        const struct hook *hook = &hooks[i];
        if (strcmp(hook->base, name) != 0 || hook->since > version) continue;
        if (hook->streams == (per_thread ? LEGACY : THREAD)) continue;
        if (driver == NULL || original(driver, hook->original) == NULL) continue;
        if (best == NULL || hook->since >= best->since) best = hook;
    }
    /* At a newer version than ours the name may mean an ABI that we do not know. */
    return best != NULL && ask(driver, name, best->since, flags) == real ? best->replacement : NULL;
}

int sair_is_hook(const void *address) {
    for (size_t i = 0; i < SAIR_HOOK_COUNT; i++)
        if (hooks[i].replacement == address) return 1;
    return 0;
}
