#include "grant.h"

#include "atomics.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* A rate is a dozen characters; more than this is not one. */
#define CONTENT_MAX 64

/* kubelet replaces the directory behind the file, so inode and time change with every update. The looks are made by one
 * thread at a time (see the tick), so plain variables would do; atomics keep late readers in a forked child sane. */
static struct {
    uint64_t inode, seconds, nanoseconds, size;
    uint32_t rate_ppm, state;
} last;

static int is_unchanged(const struct stat *s) {
    return last.inode == s->st_ino && last.seconds == (uint64_t)s->st_mtim.tv_sec &&
           last.nanoseconds == (uint64_t)s->st_mtim.tv_nsec && last.size == (uint64_t)s->st_size;
}

static enum sair_grant read_grant(const char *path, uint32_t *rate_ppm) {
    char text[CONTENT_MAX + 1];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return SAIR_GRANT_GARBAGE;
    ssize_t length = read(fd, text, sizeof text);
    close(fd);
    if (length < 0 || length > CONTENT_MAX) return SAIR_GRANT_GARBAGE;
    return sair_grant_parse(text, (size_t)length, rate_ppm);
}

uint32_t sair_grant_look(const char *path, uint32_t previous, enum sair_grant_state *state, int *is_error) {
    uint32_t fallback = previous != 0 ? previous : SAIR_RATE_FLOOR_PPM;
    struct stat status;
    *is_error = 0;
    if (stat(path, &status) != 0) {
        /* Between two versions of the directory, or gone: what was granted last still is. */
        *is_error = last.state != SAIR_GRANT_MALFORMED && previous != 0;
        last.state = SAIR_GRANT_MALFORMED;
        last.inode = 0;
        *state = previous != 0 ? SAIR_GRANT_MALFORMED : SAIR_GRANT_ABSENT;
        return fallback;
    }
    if (last.inode != 0 && is_unchanged(&status)) {
        *state = (enum sair_grant_state)last.state;
        return last.rate_ppm != 0 ? last.rate_ppm : fallback;
    }
    last.inode = status.st_ino;
    last.seconds = (uint64_t)status.st_mtim.tv_sec;
    last.nanoseconds = (uint64_t)status.st_mtim.tv_nsec;
    last.size = (uint64_t)status.st_size;
    uint32_t rate_ppm = 0;
    switch (read_grant(path, &rate_ppm)) {
    case SAIR_GRANT_PARSED:
        last.state = SAIR_GRANT_VALID;
        last.rate_ppm = rate_ppm;
        break;
    case SAIR_GRANT_EMPTY:
        last.state = SAIR_GRANT_ABSENT;
        last.rate_ppm = SAIR_RATE_FLOOR_PPM;
        break;
    case SAIR_GRANT_GARBAGE:
        last.state = SAIR_GRANT_MALFORMED;
        last.rate_ppm = 0;
        *is_error = 1;
        break;
    }
    *state = (enum sair_grant_state)last.state;
    return last.rate_ppm != 0 ? last.rate_ppm : fallback;
}
