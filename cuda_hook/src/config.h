/* What the webhook configured, from the environment; and the format of the grant file. Pure: no I/O. */
#ifndef SAIR_CONFIG_H
#define SAIR_CONFIG_H

#include "log.h"

#include <stddef.h>
#include <stdint.h>

#define SAIR_WINDOW_DEFAULT_MS 20u
#define SAIR_WINDOW_MAX_MS 1000u

struct sair_config {
    const char *grant_path; /* NULL: pass-through */
    const char *stats_path; /* NULL: a private page, nothing shared */
    uint64_t memory_bytes;  /* 0: no limit */
    uint64_t window_ns;
    enum sair_log_level log;
    unsigned errors; /* settings that were malformed and took their default */
};

enum sair_grant {
    SAIR_GRANT_PARSED,   /* *rate_ppm set, in [1, 1000000] */
    SAIR_GRANT_EMPTY,    /* nothing but white space: not granted yet */
    SAIR_GRANT_GARBAGE   /* anything else */
};

/* `lookup` is getenv or a test's stand-in. The paths point into what it returned. */
struct sair_config sair_config_parse(const char *(*lookup)(const char *name));

/* Whole decimal number with an optional fraction, in (0, 1]; white space around it; no sign, no exponent. Finer than
 * one millionth is rounded down, but never to 0. */
enum sair_grant sair_grant_parse(const char *text, size_t length, uint32_t *rate_ppm);

#endif
