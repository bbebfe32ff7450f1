/* The real driver: its functions, resolved once it is loaded, and which hook stands before each. */
#ifndef SAIR_DRIVER_H
#define SAIR_DRIVER_H

#include "cuda_abi.h"

struct sair_driver {
#define SAIR_HOOK(symbol, base, since, streams, params, args) CUresult(*symbol) params;
#define SAIR_USE(symbol, params) CUresult(*symbol) params;
#include "hooks.def"
};

enum sair_hook_index {
#define SAIR_HOOK(symbol, base, since, streams, params, args) SAIR_HOOK_##symbol,
#include "hooks.def"
    SAIR_HOOK_COUNT
};

/* Prototypes of the hooks: the definitions are what the host program calls. */
#define SAIR_HOOK(symbol, base, since, streams, params, args)                                                          \
    __attribute__((visibility("default"))) CUresult symbol params;
#include "hooks.def"

extern const struct sair_driver *sair_driver_published;

/* Resolve the driver if it is loaded; NULL while it is not. Safe from any thread, also while the loader's lock is held.
 */
const struct sair_driver *sair_driver_resolve(void);

static inline const struct sair_driver *sair_driver(void) {
    const struct sair_driver *driver = __atomic_load_n(&sair_driver_published, __ATOMIC_ACQUIRE);
    return __builtin_expect(driver != NULL, 1) ? driver : sair_driver_resolve();
}

/* The real function, or a return of CUDA_ERROR_NOT_FOUND from the hook where this driver has none. */
#define SAIR_REAL(symbol)                                                                                              \
    ({                                                                                                                 \
        const struct sair_driver *driver_ = sair_driver();                                                             \
        if (__builtin_expect(driver_ == NULL || driver_->symbol == NULL, 0)) return CUDA_ERROR_NOT_FOUND;              \
        driver_->symbol;                                                                                               \
    })

/* The hook that replaces the exported symbol `name`; NULL if none does. */
void *sair_hook_named(const char *name);
/* The hook that stands before the driver function at `real`; NULL if none does. */
void *sair_hook_before(const void *real);
/* The hook for what cuGetProcAddress(name, version, flags) answered with `real`, an address that the driver does not
 * export; NULL if none stands before it. */
void *sair_hook_for(const char *name, int version, cuuint64_t flags, const void *real);
/* Whether `address` is one of our own hooks. */
int sair_is_hook(const void *address);

/* The C library's own functions. */
void *sair_real_dlsym_call(void *handle, const char *name);

#endif
