/* The smallest test harness: a test is a function, a failure says where and goes on to the next test. */
#ifndef SAIR_CHECK_H
#define SAIR_CHECK_H

#include <setjmp.h>
#include <stdio.h>

static jmp_buf check_jump;
static int check_failures;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            longjmp(check_jump, 1);                                                                                    \
        }                                                                                                              \
    } while (0)

#define RUN(test)                                                                                                      \
    do {                                                                                                               \
        if (setjmp(check_jump) == 0) {                                                                                 \
            test();                                                                                                    \
            printf("ok   %s\n", #test);                                                                                \
        } else {                                                                                                       \
            check_failures++;                                                                                          \
            printf("FAIL %s\n", #test);                                                                                \
        }                                                                                                              \
    } while (0)

#define CHECK_RESULT() (check_failures == 0 ? 0 : 1)

#endif
