/* What a forked child finds of its parent's other threads: locks that nobody holds any more, entries that nobody fills
 * any more, captures that nobody ends any more. Includes the sources, to leave them in that state. */
#include "check.h"

#include "../../src/capture.c"
#include "../../src/cost.c"
#include "../../src/event_pool.c"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

static CUresult exchange_mode(CUstreamCaptureMode *mode) {
    (void)mode;
    return CUDA_SUCCESS;
}

static const struct sair_driver driver = {.cuThreadExchangeStreamCaptureMode = exchange_mode};
const struct sair_driver *sair_driver_published = &driver;
struct sair_process sair_process;

const struct sair_driver *sair_driver_resolve(void) {
    return &driver;
}

/* Of stream.c only what a handle means. */
static uint64_t own_thread = 1;
static CUcontext own_context;

struct sair_stream_id sair_stream_identify(CUstream handle, int per_thread) {
    struct sair_stream_id id = {.handle = handle};
    if ((uintptr_t)handle > 2) return id;
    id.handle = handle == CU_STREAM_PER_THREAD || (handle == NULL && per_thread) ? CU_STREAM_PER_THREAD : NULL;
    id.context = own_context;
    if (id.handle != NULL) id.thread = own_thread;
    return id;
}

CUcontext sair_stream_context(const struct sair_stream_id *id) {
    return id->context != NULL ? id->context : own_context;
}

static CUstream stream(uintptr_t number) {
    return (CUstream)(number << 8); // NOLINT
}

static CUcontext context(uintptr_t number) {
    return (CUcontext)(number << 8); // NOLINT
}

/* In a child that would hang: does it end? */
static int ends(void (*work)(void)) {
    pid_t pid = fork();
    if (pid == 0) {
        alarm(5);
        work();
        _exit(0);
    }
    int status = -1;
    return waitpid(pid, &status, 0) == pid && status == 0;
}

static void use_the_pool(void) {
    sair_events_reset();
    sair_event_give(context(1), (CUevent)64); // NOLINT
    if (sair_event_take(context(1)) != (CUevent)64) _exit(1); // NOLINT
    if (sair_event_take(context(1)) != NULL) _exit(1);
}

static void a_pool_locked_at_the_fork_is_open_and_empty_in_the_child(void) {
    sair_event_give(context(1), (CUevent)128); // NOLINT
    lock();
    CHECK(ends(use_the_pool));
    unlock();
}

static struct sair_key key = {{1, 2, 3, 4, 5}};

static void find_the_key(void) {
    sair_cost_reset_pending();
    if (sair_cost_find(&key) == NULL) _exit(1);
}

static void an_entry_half_filled_at_the_fork_is_free_in_the_child(void) {
    struct sair_cost *cost = sair_cost_find(&key);
    cost->state = 1;
    CHECK(ends(find_the_key));
    cost->state = 2;
}

static void an_entry_that_is_never_filled_is_not_waited_for(void) {
    struct sair_cost *cost = sair_cost_find(&key);
    cost->state = 1;
    CHECK(sair_cost_find(&key) == NULL);
    cost->state = 2;
}

static void captures_do_not_outlive_the_fork(void) {
    sair_capture_begins(stream(1), 0);
    sair_captures_forget();
    CHECK(sair_captures_active == 0 && captures[0].used == 0);
}

static void hundreds_of_captures_leave_none_behind(void) {
    for (uintptr_t i = 1; i <= 600; i++) sair_capture_begins(stream(i), 0);
    CHECK(sair_captures_active > 0);
    for (uintptr_t i = 1; i <= 600; i++) sair_capture_ends(stream(i), 0);
    CHECK(sair_captures_active == 0);
    sair_capture_ends(stream(1), 0);
    CHECK(sair_captures_active == 0);
}

static void a_capture_ends_through_whatever_names_its_stream(void) {
    sair_capture_begins(stream(1), 1);
    sair_capture_ends(stream(1), 0);
    sair_capture_begins(stream(1), 0);
    sair_capture_ends(stream(1), 1);
    sair_capture_begins(NULL, 1);
    sair_capture_ends(CU_STREAM_PER_THREAD, 0);
    CHECK(sair_captures_active == 0);
    /* but the default stream of one twin is not that of the other, nor another thread's */
    sair_capture_begins(NULL, 1);
    sair_capture_ends(NULL, 0);
    own_thread = 2;
    sair_capture_ends(NULL, 1);
    CHECK(sair_captures_active == 1);
    own_thread = 1;
    sair_capture_ends(NULL, 1);
    CHECK(sair_captures_active == 0);
}

static void captures_end_with_their_context_or_thread(void) {
    own_context = context(1);
    sair_capture_begins(stream(1), 0);
    own_context = context(2);
    sair_capture_begins(stream(2), 0);
    sair_capture_begins(NULL, 1);
    sair_capture_context_gone(context(1));
    CHECK(sair_captures_active == 2);
    sair_capture_thread_gone(own_thread);
    CHECK(sair_captures_active == 1);
    sair_capture_context_gone(NULL);
    CHECK(sair_captures_active == 0);
}

int main(void) {
    RUN(a_pool_locked_at_the_fork_is_open_and_empty_in_the_child);
    RUN(an_entry_half_filled_at_the_fork_is_free_in_the_child);
    RUN(an_entry_that_is_never_filled_is_not_waited_for);
    RUN(captures_do_not_outlive_the_fork);
    RUN(hundreds_of_captures_leave_none_behind);
    RUN(a_capture_ends_through_whatever_names_its_stream);
    RUN(captures_end_with_their_context_or_thread);
    return CHECK_RESULT();
}
