#include "page_guard.h"

#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

static struct {
    uintptr_t start, end;
    struct sigaction previous;
} guard;

static void pass_on(int number, siginfo_t *info, void *context) {
    if ((guard.previous.sa_flags & SA_SIGINFO) != 0 && guard.previous.sa_sigaction != NULL) {
        guard.previous.sa_sigaction(number, info, context);
    } else if (guard.previous.sa_handler != SIG_DFL && guard.previous.sa_handler != SIG_IGN) {
        guard.previous.sa_handler(number);
    } else {
        /* The faulting instruction runs again and meets the default action. */
        struct sigaction standard;
        memset(&standard, 0, sizeof standard);
        standard.sa_handler = SIG_DFL;
        sigaction(SIGBUS, &standard, NULL);
    }
}

static void on_bus_error(int number, siginfo_t *info, void *context) {
    uintptr_t at = (uintptr_t)info->si_addr;
    if (at < guard.start || at >= guard.end ||
        mmap((void *)guard.start, guard.end - guard.start, PROT_READ | PROT_WRITE, // NOLINT
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        pass_on(number, info, context);
}

void sair_page_guard(void *start, size_t bytes) {
    if (guard.start != 0) return;
    guard.start = (uintptr_t)start;
    guard.end = guard.start + bytes;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &guard.previous);
}
