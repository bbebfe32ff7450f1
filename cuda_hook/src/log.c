#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static int current_level = SAIR_LOG_OFF;

void sair_log_set(enum sair_log_level level) {
    __atomic_store_n(&current_level, (int)level, __ATOMIC_RELAXED);
}

/* One write(2) per message: no stdio lock that a forked child could inherit, no interleaving between threads. */
void sair_log(enum sair_log_level level, const char *format, ...) {
    if ((int)level > __atomic_load_n(&current_level, __ATOMIC_RELAXED)) return;
    int saved = errno;
    char line[512];
    int used = snprintf(line, sizeof line, "sair-hook[%d]: ", (int)getpid());
    va_list args;
    va_start(args, format);
    int more = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, args);
    va_end(args);
    if (more > 0) {
        size_t length = (size_t)used + (size_t)more;
        if (length > sizeof line - 2) length = sizeof line - 2;
        line[length++] = '\n';
        ssize_t written = write(STDERR_FILENO, line, length);
        (void)written;
    }
    errno = saved;
}
