#include "config.h"

#include <string.h>

#define MEBIBYTE UINT64_C(1048576)
/* 2^44 MiB would overflow a byte count; no card comes near. */
#define MEMORY_MAX_MIB (UINT64_C(1) << 40)

static int is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static int is_digit(char c) {
    return c >= '0' && c <= '9';
}

/* Digits only, at most `max`. Returns 0 if malformed. */
static int parse_whole(const char *text, uint64_t max, uint64_t *value) {
    uint64_t sum = 0;
    if (!is_digit(*text)) return 0;
    for (; is_digit(*text); text++) {
        sum = sum * 10 + (uint64_t)(*text - '0');
        if (sum > max) return 0;
    }
    if (*text != '\0') return 0;
    *value = sum;
    return 1;
}

static const char *non_empty(const char *text) {
    return text != NULL && text[0] != '\0' ? text : NULL;
}

struct sair_config sair_config_parse(const char *(*lookup)(const char *name)) {
    struct sair_config config = {0};
    uint64_t value;
    config.grant_path = non_empty(lookup("SAIR_GRANT_FILE"));
    config.stats_path = non_empty(lookup("SAIR_STATS_PATH"));
    config.window_ns = SAIR_WINDOW_DEFAULT_MS * UINT64_C(1000000);

    const char *window = non_empty(lookup("SAIR_WINDOW_MS"));
    if (window != NULL) {
        if (parse_whole(window, SAIR_WINDOW_MAX_MS, &value) && value > 0)
            config.window_ns = value * UINT64_C(1000000);
        else
            config.errors++;
    }
    const char *memory = non_empty(lookup("SAIR_GPU_MEMORY_MIB"));
    if (memory != NULL) {
        if (parse_whole(memory, MEMORY_MAX_MIB, &value) && value > 0)
            config.memory_bytes = value * MEBIBYTE;
        else
            config.errors++;
    }
    const char *log = non_empty(lookup("SAIR_HOOK_LOG"));
    if (log != NULL) {
        if (strcmp(log, "error") == 0)
            config.log = SAIR_LOG_ERROR;
        else if (strcmp(log, "info") == 0)
            config.log = SAIR_LOG_INFO;
        else if (strcmp(log, "off") != 0)
            config.errors++;
    }
    return config;
}

enum sair_grant sair_grant_parse(const char *text, size_t length, uint32_t *rate_ppm) {
    size_t at = 0;
    while (at < length && is_space(text[at])) at++;
    while (length > at && is_space(text[length - 1])) length--;
    if (at == length) return SAIR_GRANT_EMPTY;

    uint32_t whole = 0, fraction = 0, unit = 100000; /* of the first decimal, in ppm */
    int digits = 0, rest = 0;
    for (; at < length && is_digit(text[at]); at++, digits++) {
        whole = whole * 10 + (uint32_t)(text[at] - '0');
        if (whole > 1) return SAIR_GRANT_GARBAGE;
    }
    if (at < length && text[at] == '.') {
        for (at++; at < length && is_digit(text[at]); at++, digits++) {
            fraction += unit * (uint32_t)(text[at] - '0');
            rest |= text[at] != '0';
            unit /= 10;
        }
    }
    if (at != length || digits == 0) return SAIR_GRANT_GARBAGE;
    if (whole == 1 && rest) return SAIR_GRANT_GARBAGE;
    if (whole == 0 && !rest) return SAIR_GRANT_GARBAGE;
    *rate_ppm = whole == 1 ? 1000000 : fraction > 0 ? fraction : 1;
    return SAIR_GRANT_PARSED;
}
