/*
 * The ways in: a program finds driver functions through dlsym, dlvsym, cuGetProcAddress or its own link map. Exporting
 * the names serves the last; the others are answered here.
 */
#include "driver.h"
#include "elf_symbol.h"
#include "nvml_hooks.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

typedef void *(*dlsym_fn)(void *, const char *);
typedef void *(*dlvsym_fn)(void *, const char *, const char *);

static void *no_dlsym(void *handle, const char *name) {
    (void)handle, (void)name;
    return NULL;
}

static void *no_dlvsym(void *handle, const char *name, const char *version) {
    (void)handle, (void)name, (void)version;
    return NULL;
}

/* Read by the trampolines below. */
__attribute__((visibility("hidden"), used)) dlsym_fn sair_next_dlsym;
__attribute__((visibility("hidden"), used)) dlvsym_fn sair_next_dlvsym;

static void find_originals(void) {
    if (__atomic_load_n(&sair_next_dlsym, __ATOMIC_ACQUIRE) != NULL) return;
    void *found_v = sair_libc_symbol("dlvsym"), *found = sair_libc_symbol("dlsym");
    __atomic_store_n(&sair_next_dlvsym, found_v != NULL ? (dlvsym_fn)found_v : no_dlvsym, __ATOMIC_RELEASE);
    __atomic_store_n(&sair_next_dlsym, found != NULL ? (dlsym_fn)found : no_dlsym, __ATOMIC_RELEASE);
}

void *sair_real_dlsym_call(void *handle, const char *name) {
    find_originals();
    return sair_next_dlsym(handle, name);
}

/* What we have for `name`, given that the program would have got `real` without us. */
static void *replacement(const char *name, void *real) {
    if (real == NULL) return NULL;
    void *hook = sair_nvml_hook_named(name);
    if (hook != NULL) return sair_nvml_found(name, real) ? hook : NULL;
    hook = sair_hook_named(name);
    if (hook == NULL || sair_driver() == NULL) return NULL;
    /* Some other library may define the same name for itself; only the driver's is ours to replace. */
    return sair_hook_before(real) == hook ? hook : NULL;
}

static int is_candidate(const char *name) {
    if (name == NULL) return 0;
    if (name[0] == 'c' && name[1] == 'u') return sair_hook_named(name) != NULL;
    return strncmp(name, "nvml", 4) == 0 && sair_nvml_hook_named(name) != NULL;
}

/* With RTLD_DEFAULT or RTLD_NEXT the search would find our own export even where no driver is loaded; what comes after
 * us counts, and if nothing does, the answer is "not found" (dlerror is set by the search). */
#define NOT_FOUND ((void *)1)

static void *answer(void *handle, const char *name, void *real) {
    void *hook = replacement(name, real);
    if (hook != NULL || (handle != RTLD_DEFAULT && handle != RTLD_NEXT)) return hook;
    return real != NULL ? real : NOT_FOUND;
}

static void *search_past_us(void *handle) {
    return handle == RTLD_DEFAULT ? RTLD_NEXT : handle;
}

/* The answer to a dlsym, or NULL: then the trampoline jumps to the real one, with the caller's return address intact,
 * because RTLD_NEXT is resolved relative to the caller. */
__attribute__((visibility("hidden"), used)) void *sair_dlsym_answer(void *handle, const char *name) {
    find_originals();
    if (!is_candidate(name)) return NULL;
    return answer(handle, name, sair_next_dlsym(search_past_us(handle), name));
}

__attribute__((visibility("hidden"), used)) void *sair_dlvsym_answer(void *handle, const char *name,
                                                                     const char *version) {
    find_originals();
    if (!is_candidate(name)) return NULL;
    return answer(handle, name, sair_next_dlvsym(search_past_us(handle), name, version));
}

#if defined(__x86_64__)
#define TRAMPOLINE(name, answer, next)                                                                                 \
    __asm__(".pushsection .text\n"                                                                                     \
            ".globl " name "\n"                                                                                        \
            ".type " name ", @function\n" name ":\n"                                                                   \
            ".cfi_startproc\n"                                                                                         \
            "push %rdi\n.cfi_adjust_cfa_offset 8\n"                                                                    \
            "push %rsi\n.cfi_adjust_cfa_offset 8\n"                                                                    \
            "push %rdx\n.cfi_adjust_cfa_offset 8\n"                                                                    \
            "call " answer "\n"                                                                                        \
            "pop %rdx\n.cfi_adjust_cfa_offset -8\n"                                                                    \
            "pop %rsi\n.cfi_adjust_cfa_offset -8\n"                                                                    \
            "pop %rdi\n.cfi_adjust_cfa_offset -8\n"                                                                    \
            "test %rax, %rax\n"                                                                                        \
            "jz 1f\n"                                                                                                  \
            "cmp $1, %rax\n"                                                                                           \
            "jne 2f\n"                                                                                                 \
            "xor %eax, %eax\n"                                                                                         \
            "2: ret\n"                                                                                                 \
            "1: jmp *" next "(%rip)\n"                                                                                 \
            ".cfi_endproc\n"                                                                                           \
            ".size " name ", .-" name "\n"                                                                             \
            ".popsection\n")
#elif defined(__aarch64__)
#define TRAMPOLINE(name, answer, next)                                                                                 \
    __asm__(".pushsection .text\n"                                                                                     \
            ".globl " name "\n"                                                                                        \
            ".type " name ", %function\n" name ":\n"                                                                   \
            ".cfi_startproc\n"                                                                                         \
            "stp x29, x30, [sp, -48]!\n.cfi_adjust_cfa_offset 48\n"                                                    \
            ".cfi_rel_offset x29, 0\n.cfi_rel_offset x30, 8\n"                                                         \
            "stp x0, x1, [sp, 16]\n"                                                                                   \
            "str x2, [sp, 32]\n"                                                                                       \
            "bl " answer "\n"                                                                                          \
            "mov x16, x0\n"                                                                                            \
            "ldp x0, x1, [sp, 16]\n"                                                                                   \
            "ldr x2, [sp, 32]\n"                                                                                       \
            "ldp x29, x30, [sp], 48\n.cfi_adjust_cfa_offset -48\n.cfi_restore x29\n.cfi_restore x30\n"                 \
            "cbz x16, 1f\n"                                                                                            \
            "cmp x16, 1\n"                                                                                             \
            "csel x0, xzr, x16, eq\n"                                                                                  \
            "ret\n"                                                                                                    \
            "1: adrp x16, " next "\n"                                                                                  \
            "ldr x16, [x16, :lo12:" next "]\n"                                                                         \
            "br x16\n"                                                                                                 \
            ".cfi_endproc\n"                                                                                           \
            ".size " name ", .-" name "\n"                                                                             \
            ".popsection\n")
#else
#error "sair: x86_64 and aarch64 only"
#endif

TRAMPOLINE("dlsym", "sair_dlsym_answer", "sair_next_dlsym");
TRAMPOLINE("dlvsym", "sair_dlvsym_answer", "sair_next_dlvsym");

/* The driver's answer is a function of name, version and flags; where it is one that we replace, the hook before that
 * very function is the right ABI and the right default-stream twin. A driver may answer with an address that it does
 * not export; then it is ours if the driver gives the same for the version in which our ABI came up. */
static void substitute(const char *name, void **pfn, int version, cuuint64_t flags) {
    if (name == NULL || pfn == NULL || *pfn == NULL || sair_is_hook(*pfn)) return;
    void *hook = sair_hook_before(*pfn);
    if (hook == NULL) hook = sair_hook_for(name, version, flags, *pfn);
    if (hook != NULL) *pfn = hook;
}

CUresult cuGetProcAddress(const char *name, void **pfn, int version, cuuint64_t flags) {
    CUresult result = SAIR_REAL(cuGetProcAddress)(name, pfn, version, flags);
    if (result == CUDA_SUCCESS) substitute(name, pfn, version, flags);
    return result;
}

CUresult cuGetProcAddress_v2(const char *name, void **pfn, int version, cuuint64_t flags,
                             CUdriverProcAddressQueryResult *status) {
    CUresult result = SAIR_REAL(cuGetProcAddress_v2)(name, pfn, version, flags, status);
    if (result == CUDA_SUCCESS) substitute(name, pfn, version, flags);
    return result;
}
