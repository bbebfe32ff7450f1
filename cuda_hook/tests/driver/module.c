/* Modules and kernels. A kernel's name is its duration law. */
#include "driver.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CUmod_st {
    char *ptx; /* NULL: not PTX text, any name is accepted */
    CUfunction functions;
};

struct CUlib_st {
    CUmodule module;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* A number after `prefix` anywhere in the name, so that mangled C++ names work too. */
static bool number_after(const char *name, const char *prefix, uint64_t *value) {
    const char *at = strstr(name, prefix);
    if (at == NULL || !isdigit((unsigned char)at[strlen(prefix)])) return false;
    *value = strtoull(at + strlen(prefix), NULL, 10);
    return true;
}

/* spin_ns_N, spin_us_N, spin_ms_N: that long. spin_grid_ns_N: N per block. spin_arg: the first parameter, a 64-bit
 * count of nanoseconds. Any of them with _jitter_P: uniformly within P percent around it. */
static void read_law(CUfunction f) {
    uint64_t value;
    f->law = SIM_LAW_FIXED;
    f->ns = simgpu_attach()->config.default_kernel_ns;
    if (number_after(f->name, "spin_grid_ns_", &value)) {
        f->law = SIM_LAW_PER_BLOCK;
        f->ns = value;
    } else if (strstr(f->name, "spin_arg") != NULL)
        f->law = SIM_LAW_ARGUMENT;
    else if (number_after(f->name, "spin_ns_", &value))
        f->ns = value;
    else if (number_after(f->name, "spin_us_", &value))
        f->ns = value * 1000;
    else if (number_after(f->name, "spin_ms_", &value))
        f->ns = value * 1000000;
    if (number_after(f->name, "_jitter_", &value)) f->jitter_percent = (unsigned)(value > 100 ? 100 : value);
}

static uint64_t jittered(uint64_t ns, unsigned percent) {
    static _Thread_local uint64_t state = 0;
    if (state == 0) state = (simgpu_clock_ns() | 1) ^ (uint64_t)(uintptr_t)&state;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    uint64_t width = ns * percent / 100;
    return width == 0 ? ns : ns - width + state % (2 * width + 1);
}

static uint64_t first_argument(void **params, void **extra) {
    uint64_t value = 0;
    if (params != NULL) memcpy(&value, params[0], sizeof value);
    for (void **at = extra; params == NULL && at != NULL && *at != NULL; at += 2)
        if (*at == (void *)1) memcpy(&value, at[1], sizeof value); /* CU_LAUNCH_PARAM_BUFFER_POINTER */
    return value;
}

CUresult sim_work_of(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned threads, void **params, void **extra,
                     struct sim_work *work) {
    if (f == NULL) return CUDA_ERROR_INVALID_HANDLE;
    if (gx == 0 || gy == 0 || gz == 0 || threads == 0 || threads > SIM_BLOCK_THREADS) return CUDA_ERROR_INVALID_VALUE;
    uint64_t blocks = (uint64_t)gx * gy * gz, ns = f->ns;
    if (f->law == SIM_LAW_PER_BLOCK) ns = f->ns * blocks;
    if (f->law == SIM_LAW_ARGUMENT) {
        if (params == NULL && extra == NULL) return CUDA_ERROR_INVALID_VALUE;
        ns = first_argument(params, extra);
    }
    if (f->jitter_percent > 0) ns = jittered(ns, f->jitter_percent);
    work->ns = ns;
    work->blocks = (uint32_t)(blocks > SIMGPU_BLOCK_SLOTS ? SIMGPU_BLOCK_SLOTS : blocks);
    return CUDA_SUCCESS;
}

static bool has_entry(const char *ptx, const char *name) {
    size_t length = strlen(name);
    for (const char *at = strstr(ptx, ".entry"); at != NULL; at = strstr(at, ".entry")) {
        at += strlen(".entry");
        while (isspace((unsigned char)*at)) at++;
        char after = at[length < strlen(at) ? length : strlen(at)];
        if (strncmp(at, name, length) == 0 && (after == '(' || isspace((unsigned char)after))) return true;
    }
    return false;
}

SIM_EXPORT CUresult cuModuleLoadData(CUmodule *out, const void *image) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (sim_current() == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    if (out == NULL || image == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUresult result = sim_unsafe();
    if (result != CUDA_SUCCESS) return result;
    CUmodule module = calloc(1, sizeof *module);
    if (module == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    const char *text = image;
    /* PTX is text that declares its version; a cubin (ELF) or fatbin carries names this simulation cannot read. */
    if (isprint((unsigned char)text[0]) || isspace((unsigned char)text[0])) {
        if (strstr(text, ".version") == NULL) {
            free(module);
            return SIM_ERROR_INVALID_IMAGE;
        }
        module->ptx = strdup(text);
    }
    *out = module;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuModuleLoadDataEx(CUmodule *out, const void *image, unsigned count, int *options, void **values) {
    (void)count, (void)options, (void)values;
    return cuModuleLoadData(out, image);
}
SIM_EXPORT CUresult cuModuleLoadFatBinary(CUmodule *out, const void *image) { return cuModuleLoadData(out, image); }

SIM_EXPORT CUresult cuModuleLoad(CUmodule *out, const char *path) {
    FILE *file = fopen(path, "rbe");
    if (file == NULL) return 301; /* CUDA_ERROR_FILE_NOT_FOUND */
    char *text = calloc(1, 1 << 20);
    if (text == NULL) {
        fclose(file);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    size_t length = fread(text, 1, (1 << 20) - 1, file);
    fclose(file);
    CUresult result = length == 0 ? SIM_ERROR_INVALID_IMAGE : cuModuleLoadData(out, text);
    free(text);
    return result;
}

SIM_EXPORT CUresult cuModuleUnload(CUmodule module) {
    if (module == NULL) return CUDA_ERROR_INVALID_HANDLE;
    while (module->functions != NULL) {
        CUfunction f = module->functions;
        module->functions = f->next;
        free(f->name);
        free(f);
    }
    free(module->ptx);
    free(module);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuModuleGetFunction(CUfunction *out, CUmodule module, const char *name) {
    if (sim_ready()) return CUDA_ERROR_NOT_INITIALIZED;
    if (out == NULL || module == NULL || name == NULL) return CUDA_ERROR_INVALID_VALUE;
    if (*name == '\0' || (module->ptx != NULL && !has_entry(module->ptx, name))) return CUDA_ERROR_NOT_FOUND;
    pthread_mutex_lock(&lock);
    CUfunction f = module->functions;
    while (f != NULL && strcmp(f->name, name) != 0) f = f->next;
    if (f == NULL && (f = calloc(1, sizeof *f)) != NULL) {
        f->name = strdup(name);
        f->module = module;
        read_law(f);
        f->next = module->functions;
        module->functions = f;
    }
    pthread_mutex_unlock(&lock);
    *out = f;
    return f == NULL ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuModuleGetGlobal_v2(CUdeviceptr *pointer, size_t *bytes, CUmodule module, const char *name) {
    (void)pointer, (void)bytes, (void)module, (void)name;
    return CUDA_ERROR_NOT_FOUND;
}
SIM_EXPORT CUresult cuModuleGetLoadingMode(int *mode) {
    *mode = 2; /* lazy */
    return CUDA_SUCCESS;
}

/* ---- libraries: the same images without a context; a CUkernel is launched as a CUfunction is ---- */

SIM_EXPORT CUresult cuLibraryLoadData(CUlibrary *out, const void *code, int *jit, void **jit_values, unsigned jit_count,
                                      int *options, void **values, unsigned count) {
    (void)jit, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    CUlibrary library = calloc(1, sizeof *library);
    if (library == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = cuModuleLoadData(&library->module, code);
    if (result != CUDA_SUCCESS) {
        free(library);
        return result;
    }
    *out = library;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuLibraryUnload(CUlibrary library) {
    if (library == NULL) return CUDA_ERROR_INVALID_HANDLE;
    CUresult result = cuModuleUnload(library->module);
    free(library);
    return result;
}
SIM_EXPORT CUresult cuLibraryGetModule(CUmodule *module, CUlibrary library) {
    *module = library->module;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuLibraryGetKernel(CUfunction *kernel, CUlibrary library, const char *name) {
    return cuModuleGetFunction(kernel, library->module, name);
}
SIM_EXPORT CUresult cuKernelGetFunction(CUfunction *function, CUfunction kernel) {
    *function = kernel;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuKernelGetName(const char **name, CUfunction kernel) {
    *name = kernel->name;
    return CUDA_SUCCESS;
}

/* ---- functions ---- */

SIM_EXPORT CUresult cuFuncGetName(const char **name, CUfunction f) {
    if (f == NULL) return CUDA_ERROR_INVALID_HANDLE;
    *name = f->name;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuFuncGetModule(CUmodule *module, CUfunction f) {
    if (f == NULL) return CUDA_ERROR_INVALID_HANDLE;
    *module = f->module;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuFuncGetAttribute(int *value, int attribute, CUfunction f) {
    if (f == NULL) return CUDA_ERROR_INVALID_HANDLE;
    *value = attribute == 0 ? (int)SIM_BLOCK_THREADS : 0;
    return CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuFuncSetAttribute(CUfunction f, int attribute, int value) {
    (void)attribute, (void)value;
    return f == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuFuncSetCacheConfig(CUfunction f, int config) {
    (void)config;
    return f == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuFuncSetBlockShape(CUfunction f, int x, int y, int z) {
    (void)x, (void)y, (void)z;
    return f == NULL ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}
SIM_EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction f, int threads, size_t shared) {
    (void)threads, (void)shared;
    if (f == NULL) return CUDA_ERROR_INVALID_HANDLE;
    *blocks = SIMGPU_BLOCK_SLOTS / SIMGPU_SM;
    return CUDA_SUCCESS;
}
