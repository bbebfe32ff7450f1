#include "check.h"

#include "../../src/atomics.h"
#include "../../src/grant.h"
#include "../../src/page.h"
#include "../../src/page_guard.h"

#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOW UINT64_C(1000000000000)

static char folder[64], path[96];
static struct sair_config config;
static int is_shared;

static void in_new_folder(const char *file) {
    snprintf(folder, sizeof folder, "/tmp/sair-page-XXXXXX");
    CHECK(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/%s", folder, file);
    config = (struct sair_config){.stats_path = path, .window_ns = 20000000};
}

static void write_file(const char *text) {
    char other[112];
    snprintf(other, sizeof other, "%s.new", path);
    FILE *f = fopen(other, "w");
    CHECK(f != NULL);
    fputs(text, f);
    fclose(f);
    CHECK(rename(other, path) == 0);
}

static struct sair_page *open_page(void) {
    struct sair_page *page = sair_page_open(&config, &is_shared);
    CHECK(page != NULL);
    return page;
}

static void done(struct sair_page *page) {
    if (page != NULL) munmap(page, sizeof *page);
    unlink(path);
    rmdir(folder);
}

static void two_mappings_are_one_page(void) {
    in_new_folder("stats");
    struct sair_page *a = open_page(), *b = open_page();
    CHECK(is_shared && a != b);
    a->gpus[0].charged_ns = 42;
    CHECK(b->gpus[0].charged_ns == 42 && b->header.magic == SAIR_PAGE_MAGIC);
    munmap(b, sizeof *b);
    done(a);
}

static void a_short_or_garbled_file_is_made_anew(void) {
    in_new_folder("stats");
    write_file("this is no page");
    struct sair_page *page = open_page();
    CHECK(is_shared && page->header.magic == SAIR_PAGE_MAGIC && page->gpus[0].claim == 0);
    page->header.version = 99;
    page->slots[3].owner = 7;
    munmap(page, sizeof *page);
    page = open_page();
    CHECK(page->header.version == SAIR_PAGE_VERSION && page->slots[3].owner == 0);
    done(page);
}

static void an_unusable_path_means_a_private_page(void) {
    in_new_folder("stats");
    config.stats_path = "/proc/no/such/folder/stats";
    struct sair_page *page = open_page();
    CHECK(!is_shared && page->header.magic == SAIR_PAGE_MAGIC);
    done(page);
    in_new_folder("stats");
    config.stats_path = folder; /* a directory */
    page = open_page();
    CHECK(!is_shared);
    done(page);
}

static void a_page_truncated_under_us_becomes_private_memory(void) {
    in_new_folder("stats");
    struct sair_page *page = open_page();
    sair_page_guard(page, sizeof *page);
    CHECK(truncate(path, 0) == 0);
    page->slots[100].launches = 5;
    CHECK(page->slots[100].launches == 5);
    done(page);
}

static void gpus_are_told_apart_by_uuid_until_the_sections_are_taken(void) {
    in_new_folder("stats");
    struct sair_page *page = open_page();
    char uuid[16] = "a";
    struct sair_page_gpu *first = sair_page_gpu_for(page, uuid);
    CHECK(first == &page->gpus[0] && sair_page_gpu_for(page, uuid) == first);
    for (char c = 'b'; c < 'b' + (char)SAIR_PAGE_GPUS - 1; c++) {
        uuid[0] = c;
        CHECK(sair_page_gpu_for(page, uuid) != NULL);
    }
    uuid[0] = 'z';
    CHECK(sair_page_gpu_for(page, uuid) == NULL);
    done(page);
}

static void a_killed_process_gives_back_lease_memory_and_counters(void) {
    in_new_folder("stats");
    struct sair_page *page = open_page();
    page->gpus[0].next_admissible_ns = NOW;
    pid_t child = fork();
    if (child == 0) {
        struct sair_page_slot *slot = sair_page_slot_take(page, 0, 500000, NOW);
        if (slot == NULL) _exit(1);
        slot->lease_ns = 1000000;
        slot->memory_bytes = 4096;
        slot->launches = 17;
        for (;;) pause();
    }
    CHECK(child > 0);
    for (int i = 0; i < 2000 && sair_page_memory_used(page, 0) == 0; i++) usleep(1000);
    CHECK(sair_page_memory_used(page, 0) == 4096);
    CHECK(sair_page_reap(page, 500000, NOW) == 0);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    CHECK(sair_page_reap(page, 500000, NOW) == 1);
    CHECK(sair_page_memory_used(page, 0) == 0 && page->gpus[0].retired_launches == 17);
    CHECK(page->gpus[0].next_admissible_ns == NOW - 2000000 && page->header.reaped == 1);
    done(page);
}

static void a_pid_used_again_is_another_process(void) {
    in_new_folder("stats");
    struct sair_page *page = open_page();
    struct sair_page_slot *slot = &page->slots[5];
    slot->owner = UINT64_C(1) << 32 | 1; /* init lives, but it did not start at tick 1 */
    slot->start_ticks = 1;
    slot->memory_bytes = 10;
    CHECK(sair_page_reap(page, 500000, NOW) == 1 && slot->owner == 0);
    done(page);
}

/* What eight processes, all of which clear up after the dead, do to the slots of the living. */
#define REAPERS 8
#define TURNS 1500

static void take_check_and_leave(struct sair_page *page, uint64_t *violations) {
    struct sair_page_slot *slot = sair_page_slot_take(page, 0, 500000, NOW);
    if (slot == NULL) return;
    uint64_t owner = slot->owner, ticks = slot->start_ticks;
    slot->memory_bytes = (uint64_t)getpid();
    for (int i = 0; i < 20; i++) {
        sched_yield();
        if (SAIR_LOAD(&slot->owner) == owner && SAIR_LOAD(&slot->start_ticks) == ticks &&
            SAIR_LOAD(&slot->memory_bytes) == (uint64_t)getpid())
            continue;
        SAIR_ADD(violations, UINT64_C(1));
        return;
    }
    sair_page_slot_release(page, slot, 500000, NOW);
}

static void reapers_leave_the_slots_of_the_living_alone(void) {
    in_new_folder("stats");
    struct sair_page *page = open_page();
    uint64_t *violations = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(violations != MAP_FAILED);
    pid_t children[REAPERS];
    for (int i = 0; i < REAPERS; i++) {
        children[i] = fork();
        if (children[i] != 0) continue;
        pid_t dead = fork();
        if (dead == 0) _exit(0);
        waitpid(dead, NULL, 0);
        for (int turn = 0; turn < TURNS; turn++) {
            /* The slot of a process that was killed. */
            struct sair_page_slot *left = &page->slots[turn % 4];
            uint64_t vacant = 0;
            if (SAIR_CAS(&left->owner, &vacant, UINT64_C(1) << 32 | (uint64_t)dead)) SAIR_STORE(&left->start_ticks, 1);
            take_check_and_leave(page, violations);
        }
        _exit(0);
    }
    for (int i = 0; i < REAPERS; i++) waitpid(children[i], NULL, 0);
    CHECK(*violations == 0 && page->header.reaped > 0);
    munmap(violations, 4096);
    done(page);
}

static void a_reaper_that_died_is_reaped_in_turn(void) {
    in_new_folder("stats");
    struct sair_page *page = open_page();
    pid_t dead = fork();
    if (dead == 0) _exit(0);
    waitpid(dead, NULL, 0);
    struct sair_page_slot *slot = &page->slots[5];
    slot->owner = UINT64_C(1) << 63 | UINT64_C(1) << 32 | (uint64_t)getpid();
    slot->start_ticks = 1;
    slot->memory_bytes = 10;
    CHECK(sair_page_reap(page, 500000, NOW) == 0); /* still at it */
    CHECK(sair_page_memory_used(page, 0) == 0);
    slot->owner = UINT64_C(1) << 63 | UINT64_C(1) << 32 | (uint64_t)dead;
    slot->launches = 7;
    CHECK(sair_page_reap(page, 500000, NOW) == 1 && slot->owner == 0 && page->gpus[0].retired_launches == 7);
    done(page);
}

/* A container that is started again finds the page of the one before, whose first process had the same pid. */
static void what_a_namesake_left_behind_is_cleared_up(void) {
    in_new_folder("stats");
    struct sair_page *page = open_page();
    struct sair_page_slot *slot = &page->slots[5];
    slot->owner = UINT64_C(1) << 32 | (uint64_t)getpid();
    slot->start_ticks = 1;
    slot->memory_bytes = 10;
    CHECK(sair_page_reap(page, 500000, NOW) == 1 && slot->owner == 0);
    page->gpus[0].memory_lock = UINT64_C(1) << 32 | (uint64_t)getpid();
    alarm(20);
    sair_page_memory_lock(&page->gpus[0]);
    alarm(0);
    CHECK(page->gpus[0].memory_lock >> 32 != 1);
    sair_page_memory_unlock(&page->gpus[0]);
    CHECK(page->gpus[0].memory_lock == 0);
    done(page);
}

static void a_lock_is_left_to_a_holder_that_lives(void) {
    in_new_folder("stats");
    struct sair_page *page = open_page();
    sair_page_memory_lock(&page->gpus[0]);
    pid_t child = fork();
    if (child == 0) {
        sair_page_memory_lock(&page->gpus[0]);
        _exit(page->gpus[0].charged_ns == 42 ? 0 : 1);
    }
    usleep(100000);
    page->gpus[0].charged_ns = 42;
    sair_page_memory_unlock(&page->gpus[0]);
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    sair_page_memory_lock(&page->gpus[0]); /* the child died with it */
    done(page);
}

static void a_section_whose_claimant_died_is_taken_over(void) {
    in_new_folder("stats");
    struct sair_page *page = open_page();
    char uuid[16] = "the first card", other[16] = "another card";
    page->gpus[0].claim = 1;
    memcpy(page->gpus[0].uuid, "half", 4);
    CHECK(sair_page_gpu_for(page, uuid) == &page->gpus[0]);
    CHECK(page->gpus[0].claim == 2 && memcmp(page->gpus[0].uuid, uuid, 16) == 0);
    CHECK(page->gpus[0].scale_ppm == SAIR_RATE_ONE_PPM);
    CHECK(sair_page_gpu_for(page, other) == &page->gpus[1] && sair_page_gpu_for(page, uuid) == &page->gpus[0]);
    done(page);
}

static int become(uid_t user) {
    return user == 0 || (setgroups(0, NULL) == 0 && setgid(user) == 0 && setuid(user) == 0);
}

static int in_child_as(uid_t user, int (*work)(struct sair_page *page), struct sair_page *page) {
    int status = 0;
    pid_t child = fork();
    if (child == 0) _exit(become(user) ? work(page) : 100);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 101;
}

static int opens_the_shared_page(struct sair_page *page) {
    struct sair_page *mine = open_page();
    mine->gpus[0].charged_ns = 7;
    return is_shared && page->gpus[0].charged_ns == 7 ? 0 : 1;
}

static int reaps_nobody(struct sair_page *page) {
    return (int)sair_page_reap(page, 500000, NOW);
}

/* /proc as hidepid shows it; 50 where this place allows no such mount. */
static int reaps_nobody_whom_proc_hides(struct sair_page *page) {
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("proc", "/proc", "proc", 0, "hidepid=2") != 0)
        return 50;
    return become(65533) ? reaps_nobody(page) : 100;
}

static void users_of_a_container_share_its_page(void) {
    if (getuid() != 0) return;
    in_new_folder("stats");
    CHECK(chmod(folder, 0777) == 0);
    mode_t before = umask(077);
    struct sair_page *page = open_page();
    umask(before);
    CHECK(sair_page_slot_take(page, 0, 500000, NOW) != NULL);
    CHECK(in_child_as(65534, opens_the_shared_page, page) == 0);
    CHECK(in_child_as(65534, reaps_nobody, page) == 0);
    int hidden = in_child_as(0, reaps_nobody_whom_proc_hides, page);
    CHECK(hidden == 0 || hidden == 50);
    if (hidden == 50) printf("     (no mount of /proc here)\n");
    CHECK(chmod(folder, 01777) == 0); /* where some kernels let nobody create what is another's */
    CHECK(in_child_as(65534, opens_the_shared_page, page) == 0);
    done(page);
}

static void a_full_page_refuses_and_counts(void) {
    in_new_folder("stats");
    struct sair_page *page = open_page();
    for (unsigned i = 0; i < SAIR_PAGE_SLOTS; i++) CHECK(sair_page_slot_take(page, 0, 500000, NOW) != NULL);
    CHECK(sair_page_slot_take(page, 0, 500000, NOW) == NULL && page->header.slots_refused == 1);
    done(page);
}

static void the_grant_file_is_followed_and_garbage_keeps_the_last_good_rate(void) {
    enum sair_grant_state state;
    int is_error;
    in_new_folder("granted");
    uint32_t rate = sair_grant_look(path, 0, &state, &is_error);
    CHECK(rate == SAIR_RATE_FLOOR_PPM && state == SAIR_GRANT_ABSENT && !is_error);
    write_file("0.4");
    rate = sair_grant_look(path, rate, &state, &is_error);
    CHECK(rate == 400000 && state == SAIR_GRANT_VALID);
    write_file("garbage");
    rate = sair_grant_look(path, rate, &state, &is_error);
    CHECK(rate == 400000 && state == SAIR_GRANT_MALFORMED && is_error);
    rate = sair_grant_look(path, rate, &state, &is_error);
    CHECK(rate == 400000 && !is_error); /* counted once */
    unlink(path);
    rate = sair_grant_look(path, rate, &state, &is_error);
    CHECK(rate == 400000 && state == SAIR_GRANT_MALFORMED);
    write_file("0.7\n");
    rate = sair_grant_look(path, rate, &state, &is_error);
    CHECK(rate == 700000 && state == SAIR_GRANT_VALID);
    write_file("");
    rate = sair_grant_look(path, rate, &state, &is_error);
    CHECK(rate == SAIR_RATE_FLOOR_PPM && state == SAIR_GRANT_ABSENT);
    done(NULL);
}

int main(void) {
    RUN(two_mappings_are_one_page);
    RUN(a_short_or_garbled_file_is_made_anew);
    RUN(an_unusable_path_means_a_private_page);
    RUN(a_page_truncated_under_us_becomes_private_memory);
    RUN(gpus_are_told_apart_by_uuid_until_the_sections_are_taken);
    RUN(a_killed_process_gives_back_lease_memory_and_counters);
    RUN(a_pid_used_again_is_another_process);
    RUN(reapers_leave_the_slots_of_the_living_alone);
    RUN(a_reaper_that_died_is_reaped_in_turn);
    RUN(what_a_namesake_left_behind_is_cleared_up);
    RUN(a_lock_is_left_to_a_holder_that_lives);
    RUN(a_section_whose_claimant_died_is_taken_over);
    RUN(users_of_a_container_share_its_page);
    RUN(a_full_page_refuses_and_counts);
    RUN(the_grant_file_is_followed_and_garbage_keeps_the_last_good_rate);
    return CHECK_RESULT();
}
