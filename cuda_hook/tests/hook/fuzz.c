/*
 * Fuzzing the parsers of untrusted text: the grant file and the settings. Built with clang -fsanitize=fuzzer it is a
 * libFuzzer target; otherwise main() below mutates seeds deterministically, for the given number of rounds.
 */
#include "../../src/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char texts[3][64];

static const char *lookup(const char *name) {
    if (strcmp(name, "SAIR_WINDOW_MS") == 0) return texts[0];
    if (strcmp(name, "SAIR_GPU_MEMORY_MIB") == 0) return texts[1];
    if (strcmp(name, "SAIR_HOOK_LOG") == 0) return texts[2];
    return NULL;
}

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "fuzz: %s does not hold\n", #condition);                                                   \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    /* An exact-size copy, so that the sanitizer sees a read past the end. */
    char *text = malloc(size > 0 ? size : 1);
    if (text == NULL) return 0;
    if (size > 0) memcpy(text, data, size);
    uint32_t rate = 12345;
    enum sair_grant grant = sair_grant_parse(text, size, &rate);
    MUST(grant == SAIR_GRANT_PARSED ? rate >= 1 && rate <= 1000000 : rate == 12345);
    free(text);

    for (int i = 0; i < 3; i++) {
        size_t length = size < sizeof texts[i] - 1 ? size : sizeof texts[i] - 1;
        if (length > 0) memcpy(texts[i], data, length);
        texts[i][length] = '\0';
    }
    struct sair_config config = sair_config_parse(lookup);
    MUST(config.window_ns >= 1000000 && config.window_ns <= 1000 * UINT64_C(1000000));
    MUST(config.memory_bytes % 1048576 == 0 && config.memory_bytes <= UINT64_C(1) << 60);
    MUST(config.errors <= 3 && config.log <= SAIR_LOG_INFO);
    return 0;
}

#ifndef SAIR_LIBFUZZER
static uint64_t state = UINT64_C(0x243f6a8885a308d3);

static uint32_t random_below(uint32_t bound) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % bound;
}

int main(int argc, char **argv) {
    static const char *const seeds[] = {"0.35", "1", " 0.05\n", "1.000000", "0.0000001", "20", "4096", "error", "", "info"};
    static const char alphabet[] = "0123456789.+-eE \n\t\rxX,/";
    long rounds = argc > 1 ? atol(argv[1]) : 1000000;
    for (long round = 0; round < rounds; round++) {
        uint8_t data[96];
        const char *seed = seeds[random_below(sizeof seeds / sizeof seeds[0])];
        size_t size = strlen(seed);
        memcpy(data, seed, size);
        for (uint32_t edits = random_below(6); edits > 0; edits--) {
            uint32_t at = random_below((uint32_t)size + 1);
            uint8_t byte = random_below(4) == 0 ? (uint8_t)random_below(256) : (uint8_t)alphabet[random_below(sizeof alphabet)];
            if (random_below(3) == 0 && size > 0) {
                data[at % size] = byte;
            } else if (random_below(2) == 0 && size < sizeof data) {
                memmove(&data[at + 1], &data[at], size - at);
                data[at] = byte;
                size++;
            } else if (size > 0) {
                at %= (uint32_t)size;
                memmove(&data[at], &data[at + 1], size - at - 1);
                size--;
            }
        }
        LLVMFuzzerTestOneInput(data, size);
    }
    printf("%ld inputs\n", rounds);
    return 0;
}
#endif
