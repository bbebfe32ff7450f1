/*
 * Fuzzing the parsers of untrusted text: the grant file and the settings. Built with clang -fsanitize=fuzzer it is a
 * libFuzzer target, guided by coverage; otherwise main() below mutates the seeds deterministically.
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
#define SEEDS 64
#define LONGEST 96

struct seed {
    uint8_t data[LONGEST];
    size_t size;
};

static uint64_t state = UINT64_C(0x243f6a8885a308d3);

static uint32_t random_below(uint32_t bound) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % bound;
}

static uint8_t random_byte(void) {
    static const char alphabet[] = "0123456789.+-eE \n\t\rxX,/";
    return random_below(4) == 0 ? (uint8_t)random_below(256) : (uint8_t)alphabet[random_below(sizeof alphabet)];
}

/* Replace, insert or remove one byte. */
static void edit(struct seed *input) {
    uint32_t at = random_below((uint32_t)input->size + 1);
    if (random_below(3) == 0 && input->size > 0) {
        input->data[at % input->size] = random_byte();
    } else if (random_below(2) == 0 && input->size < LONGEST) {
        memmove(&input->data[at + 1], &input->data[at], input->size - at);
        input->data[at] = random_byte();
        input->size++;
    } else if (input->size > 0) {
        at %= (uint32_t)input->size;
        memmove(&input->data[at], &input->data[at + 1], input->size - at - 1);
        input->size--;
    }
}

int main(int argc, char **argv) {
    static struct seed seeds[SEEDS];
    uint32_t count = 0;
    long rounds = argc > 1 ? atol(argv[1]) : 0;
    for (int i = 2; i < argc && count < SEEDS; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (file == NULL) continue;
        seeds[count].size = fread(seeds[count].data, 1, LONGEST, file);
        fclose(file);
        LLVMFuzzerTestOneInput(seeds[count].data, seeds[count].size);
        count++;
    }
    if (rounds < 1 || count == 0) {
        fprintf(stderr, "usage: fuzz ROUNDS SEED-FILE...\n");
        return 2;
    }
    for (long round = 0; round < rounds; round++) {
        struct seed input = seeds[random_below(count)];
        for (uint32_t edits = random_below(6); edits > 0; edits--) edit(&input);
        LLVMFuzzerTestOneInput(input.data, input.size);
    }
    printf("%ld inputs\n", rounds);
    return 0;
}
#endif
