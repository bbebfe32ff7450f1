/* A program whose static constructor calls the driver, and launches, before main and before other libraries'
 * constructors. */
#include <stddef.h>

extern int cuInit(unsigned);
extern int cuDevicePrimaryCtxRetain(void **, int);
extern int cuCtxSetCurrent(void *);
extern int cuCtxSynchronize(void);
extern int cuModuleLoadData(void **, const void *);
extern int cuModuleGetFunction(void **, void *, const char *);
extern int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                          void **);

static int failures;
static void *kernel;

static void launch(int count) {
    for (int i = 0; i < count; i++) failures += cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, NULL, NULL, NULL) != 0;
}

__attribute__((constructor(101))) static void early(void) {
    void *context, *module;
    failures += cuInit(0) != 0 || cuDevicePrimaryCtxRetain(&context, 0) != 0 || cuCtxSetCurrent(context) != 0;
    failures += cuModuleLoadData(&module, "\177ELF simulated") != 0;
    failures += cuModuleGetFunction(&kernel, module, "spin_us_100") != 0;
    launch(10);
}

__attribute__((destructor)) static void late(void) {
    launch(5);
    if (failures == 0) failures = cuCtxSynchronize();
}

int main(void) {
    launch(10);
    return failures == 0 ? 0 : 1;
}
