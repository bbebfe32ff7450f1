#include "check.h"

#include "../../src/config.h"

#include <string.h>

static uint32_t rate;

static enum sair_grant parse(const char *text) {
    rate = 0;
    return sair_grant_parse(text, strlen(text), &rate);
}

static void a_decimal_in_range_is_a_rate(void) {
    CHECK(parse("0.35") == SAIR_GRANT_PARSED && rate == 350000);
    CHECK(parse("1") == SAIR_GRANT_PARSED && rate == 1000000);
    CHECK(parse("1.0") == SAIR_GRANT_PARSED && rate == 1000000);
    CHECK(parse(".5") == SAIR_GRANT_PARSED && rate == 500000);
    CHECK(parse("  0.125\n") == SAIR_GRANT_PARSED && rate == 125000);
    CHECK(parse("0.05") == SAIR_GRANT_PARSED && rate == 50000);
}

static void finer_than_a_millionth_rounds_down_but_not_to_zero(void) {
    CHECK(parse("0.3333333333333333") == SAIR_GRANT_PARSED && rate == 333333);
    CHECK(parse("0.0000001") == SAIR_GRANT_PARSED && rate == 1);
}

static void white_space_alone_means_not_granted(void) {
    CHECK(parse("") == SAIR_GRANT_EMPTY);
    CHECK(parse(" \t\r\n") == SAIR_GRANT_EMPTY);
}

static void anything_else_is_garbage(void) {
    const char *bad[] = {"0",    "0.0",  "1.01", "2",       "-0.3",
                         "+0.3", "0,3",  "0.3x", "x",       "1e-1",
                         "nan",  "inf",  ".",    "0.3 0.4", "99999999999999999999",
                         "0x1",  "0.3.3"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK(parse(bad[i]) == SAIR_GRANT_GARBAGE);
        CHECK(rate == 0);
    }
    CHECK(sair_grant_parse("0.3\0", 4, &rate) == SAIR_GRANT_GARBAGE);
}

static const char *const *settings;

static const char *lookup(const char *name) {
    for (size_t i = 0; settings[i] != NULL; i += 2)
        if (strcmp(settings[i], name) == 0) return settings[i + 1];
    return NULL;
}

static struct sair_config config_of(const char *const *pairs) {
    settings = pairs;
    return sair_config_parse(lookup);
}

static void nothing_set_means_pass_through(void) {
    struct sair_config c = config_of((const char *const[]){NULL});
    CHECK(c.grant_path == NULL && c.stats_path == NULL && c.memory_bytes == 0 && c.errors == 0);
    CHECK(c.window_ns == 20000000 && c.log == SAIR_LOG_OFF);
}

static void every_setting_is_read(void) {
    struct sair_config c =
        config_of((const char *const[]){"SAIR_GRANT_FILE", "/g", "SAIR_STATS_PATH", "/s", "SAIR_GPU_MEMORY_MIB", "4096",
                                        "SAIR_WINDOW_MS", "50", "SAIR_HOOK_LOG", "info", NULL});
    CHECK(strcmp(c.grant_path, "/g") == 0 && strcmp(c.stats_path, "/s") == 0);
    CHECK(c.memory_bytes == 4096ull << 20 && c.window_ns == 50000000 && c.log == SAIR_LOG_INFO && c.errors == 0);
}

static void malformed_settings_take_their_defaults_and_are_counted(void) {
    struct sair_config c = config_of((const char *const[]){"SAIR_GPU_MEMORY_MIB", "12x", "SAIR_WINDOW_MS", "0",
                                                           "SAIR_HOOK_LOG", "loud", "SAIR_GRANT_FILE", "", NULL});
    CHECK(c.memory_bytes == 0 && c.window_ns == 20000000 && c.log == SAIR_LOG_OFF && c.errors == 3);
    CHECK(c.grant_path == NULL);
    c = config_of((const char *const[]){"SAIR_GPU_MEMORY_MIB", "99999999999999999999", "SAIR_WINDOW_MS", "1001", NULL});
    CHECK(c.memory_bytes == 0 && c.errors == 2);
}

int main(void) {
    RUN(a_decimal_in_range_is_a_rate);
    RUN(finer_than_a_millionth_rounds_down_but_not_to_zero);
    RUN(white_space_alone_means_not_granted);
    RUN(anything_else_is_garbage);
    RUN(nothing_set_means_pass_through);
    RUN(every_setting_is_read);
    RUN(malformed_settings_take_their_defaults_and_are_counted);
    return CHECK_RESULT();
}
