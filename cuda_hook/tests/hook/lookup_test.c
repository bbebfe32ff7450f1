/*
 * Every way in which a program finds driver functions, run with the hook preloaded and the driver in the library path:
 * each must end in the hook, with the ABI and default-stream twin that was asked for.
 */
#include "check.h"

#include "../../src/cuda_abi.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef CUresult (*get_v1)(const char *, void **, int, cuuint64_t);
typedef CUresult (*get_v2)(const char *, void **, int, cuuint64_t, CUdriverProcAddressQueryResult *);

static void *driver;

static const char *file_of(const void *address) {
    Dl_info info;
    if (address == NULL || dladdr(address, &info) == 0 || info.dli_fname == NULL) return "nowhere";
    return info.dli_fname;
}

static const char *symbol_of(const void *address) {
    Dl_info info;
    if (address == NULL || dladdr(address, &info) == 0 || info.dli_sname == NULL) return "?";
    return info.dli_sname;
}

static int is_hook(const void *address, const char *symbol) {
    return strstr(file_of(address), "libsair_cuda.so") != NULL && strcmp(symbol_of(address), symbol) == 0;
}

static void before_the_driver_is_loaded_nothing_is_found(void) {
    CHECK(dlsym(RTLD_DEFAULT, "cuLaunchKernel") == NULL);
    CHECK(dlerror() != NULL);
    CHECK(dlsym(RTLD_NEXT, "cuLaunchKernel") == NULL);
    CHECK(dlsym(RTLD_DEFAULT, "malloc") != NULL);
}

static void dlsym_with_a_handle(void) {
    driver = dlopen("libcuda.so.1", RTLD_NOW);
    CHECK(driver != NULL);
    CHECK(is_hook(dlsym(driver, "cuLaunchKernel"), "cuLaunchKernel"));
    CHECK(is_hook(dlsym(driver, "cuLaunchKernel_ptsz"), "cuLaunchKernel_ptsz"));
    CHECK(is_hook(dlsym(driver, "cuMemAlloc_v2"), "cuMemAlloc_v2"));
}

static void what_is_not_hooked_is_the_drivers(void) {
    CHECK(strstr(file_of(dlsym(driver, "cuInit")), "libcuda.so") != NULL);
    CHECK(dlsym(driver, "cuNoSuchFunction") == NULL && dlerror() != NULL);
}

static void every_version_of_dlsym_and_dlvsym(void) {
    /* The versions under which the C libraries export them: x86-64, aarch64, and merged into libc. */
    const char *versions[] = {"GLIBC_2.2.5", "GLIBC_2.17", "GLIBC_2.34"};
    int found = 0;
    for (size_t i = 0; i < sizeof versions / sizeof versions[0]; i++) {
        void *at = dlvsym(RTLD_DEFAULT, "dlsym", versions[i]);
        if (at == NULL) continue;
        found++;
        void *(*as_dlsym)(void *, const char *);
        memcpy(&as_dlsym, &at, sizeof at);
        CHECK(as_dlsym(RTLD_DEFAULT, "malloc") != NULL);
    }
    CHECK(found >= 1);
    CHECK(dlvsym(driver, "cuLaunchKernel", "NO_SUCH_VERSION") == NULL);
}

/* A program keeps the version of dlsym and dlvsym that it was linked against, whatever the C library's newest is. */
#if defined(__x86_64__)
#define OLDEST "GLIBC_2.2.5"
#else
#define OLDEST "GLIBC_2.17"
#endif
extern void *oldest_dlsym(void *, const char *);
extern void *oldest_dlvsym(void *, const char *, const char *);
__asm__(".symver oldest_dlsym,dlsym@" OLDEST);
__asm__(".symver oldest_dlvsym,dlvsym@" OLDEST);
#if __GLIBC_PREREQ(2, 34)
extern void *merged_dlsym(void *, const char *);
extern void *merged_dlvsym(void *, const char *, const char *);
__asm__(".symver merged_dlsym,dlsym@GLIBC_2.34");
__asm__(".symver merged_dlvsym,dlvsym@GLIBC_2.34");
#else
#define merged_dlsym dlsym
#define merged_dlvsym dlvsym
#endif

static void programs_linked_against_any_version_meet_the_hook(void) {
    CHECK(is_hook(oldest_dlsym(driver, "cuLaunchKernel"), "cuLaunchKernel"));
    CHECK(is_hook(merged_dlsym(driver, "cuLaunchKernel"), "cuLaunchKernel"));
    /* The library's own functions come back as they would without us, by any version. */
    CHECK(oldest_dlvsym(RTLD_DEFAULT, "malloc", OLDEST) == merged_dlvsym(RTLD_DEFAULT, "malloc", OLDEST));
    CHECK(oldest_dlsym(RTLD_DEFAULT, "malloc") == merged_dlsym(RTLD_DEFAULT, "malloc"));
    CHECK(oldest_dlsym(driver, "cuInit") == merged_dlsym(driver, "cuInit"));
    CHECK(oldest_dlvsym(driver, "cuLaunchKernel", "NO_SUCH_VERSION") == NULL);
}

/* Two libraries define the same name; the first looks for the next after itself. */
static void rtld_next_means_next_after_the_caller(void) {
    int (*ask)(void);
    void *at = dlsym(RTLD_DEFAULT, "first_asks_for_next");
    CHECK(at != NULL);
    memcpy(&ask, &at, sizeof at);
    CHECK(ask() == 2);
}

static get_v1 get;
static get_v2 get2;

static int gets(const char *name, int version, cuuint64_t flags, const char *symbol) {
    void *one = NULL, *two = NULL;
    CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    if (get(name, &one, version, flags) != CUDA_SUCCESS || get2(name, &two, version, flags, &status) != CUDA_SUCCESS)
        return 0;
    return one == two && status == CU_GET_PROC_ADDRESS_SUCCESS && is_hook(one, symbol);
}

static void cu_get_proc_address_honours_version_and_flags(void) {
    void *one = dlsym(driver, "cuGetProcAddress"), *two = dlsym(driver, "cuGetProcAddress_v2");
    CHECK(is_hook(one, "cuGetProcAddress") && is_hook(two, "cuGetProcAddress_v2"));
    memcpy(&get, &one, sizeof one);
    memcpy(&get2, &two, sizeof two);
    CHECK(gets("cuLaunchKernel", 12000, CU_GET_PROC_ADDRESS_DEFAULT, "cuLaunchKernel"));
    CHECK(gets("cuLaunchKernel", 12000, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, "cuLaunchKernel_ptsz"));
    CHECK(gets("cuMemAlloc", 12000, 0, "cuMemAlloc_v2"));
    CHECK(gets("cuMemAlloc", 2000, 0, "cuMemAlloc"));
    CHECK(gets("cuStreamBeginCapture", 10000, 0, "cuStreamBeginCapture"));
    CHECK(gets("cuStreamBeginCapture", 10010, 0, "cuStreamBeginCapture_v2"));
    CHECK(gets("cuStreamBeginCapture", 10010, 2, "cuStreamBeginCapture_v2_ptsz"));
    CHECK(gets("cuGetProcAddress", 11030, 0, "cuGetProcAddress"));
    CHECK(gets("cuGetProcAddress", 12000, 0, "cuGetProcAddress_v2"));
}

static void cu_get_proc_address_passes_refusals_through(void) {
    void *at = NULL;
    CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SUCCESS;
    get2("cuNoSuchFunction", &at, 12000, 0, &status);
    CHECK(at == NULL && status == CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
    get2("cuLaunchKernelEx", &at, 9000, 0, &status);
    CHECK(at == NULL && status != CU_GET_PROC_ADDRESS_SUCCESS);
}

static void an_abi_of_a_later_driver_passes_through(void) {
    void *at = NULL, *known = NULL;
    CUdriverProcAddressQueryResult status;
    CHECK(get2("cuEventSynchronize", &at, 99000, 0, &status) == CUDA_SUCCESS && at != NULL);
    CHECK(strstr(file_of(at), "libcuda.so") != NULL);
    CUresult (*later)(CUevent, uint64_t);
    memcpy(&later, &at, sizeof at);
    CHECK(later(NULL, 0) == CUDA_ERROR_NOT_READY && later(NULL, 1) == CUDA_SUCCESS);
    CHECK(get("cuEventSynchronize", &at, 99000, 0) == CUDA_SUCCESS && strstr(file_of(at), "libcuda.so") != NULL);
    CHECK(get2("cuEventSynchronize", &known, 13000, 0, &status) == CUDA_SUCCESS);
    CHECK(is_hook(known, "cuEventSynchronize"));
}

static void an_address_that_the_driver_does_not_export_is_known_by_its_name(void) {
    CHECK(gets("cuGraphNodeSetEnabled", 11060, 0, "cuGraphNodeSetEnabled"));
    CHECK(gets("cuGraphNodeSetEnabled", 13000, 2, "cuGraphNodeSetEnabled"));
}

static void after_dlclose_the_addresses_still_work(void) {
    void *at = dlsym(driver, "cuDeviceTotalMem_v2");
    dlclose(driver);
    driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    CHECK(driver != NULL && dlsym(driver, "cuDeviceTotalMem_v2") == at);
    CUresult (*total)(size_t *, CUdevice);
    memcpy(&total, &at, sizeof at);
    size_t bytes = 0;
    (void)total(&bytes, 0);
    CHECK(is_hook(dlsym(RTLD_DEFAULT, "cuLaunchKernel"), "cuLaunchKernel"));
    CHECK(strstr(file_of(dlsym(RTLD_DEFAULT, "cuInit")), "libcuda.so") != NULL);
}

static void nvml_is_found_through_dlsym(void) {
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    CHECK(nvml != NULL);
    CHECK(is_hook(dlsym(nvml, "nvmlDeviceGetMemoryInfo"), "nvmlDeviceGetMemoryInfo"));
    CHECK(strstr(file_of(dlsym(nvml, "nvmlInit_v2")), "libnvidia-ml") != NULL);
}

int main(void) {
    RUN(before_the_driver_is_loaded_nothing_is_found);
    RUN(dlsym_with_a_handle);
    RUN(what_is_not_hooked_is_the_drivers);
    RUN(every_version_of_dlsym_and_dlvsym);
    RUN(programs_linked_against_any_version_meet_the_hook);
    RUN(rtld_next_means_next_after_the_caller);
    RUN(cu_get_proc_address_honours_version_and_flags);
    RUN(cu_get_proc_address_passes_refusals_through);
    RUN(an_abi_of_a_later_driver_passes_through);
    RUN(an_address_that_the_driver_does_not_export_is_known_by_its_name);
    RUN(after_dlclose_the_addresses_still_work);
    RUN(nvml_is_found_through_dlsym);
    return CHECK_RESULT();
}
