/*
 * The init container's one program: put the hook into the volume that the pipeline's container will preload it from.
 *
 *   sair-install [SOURCE] DESTINATION
 *
 * SOURCE defaults to /libsair_cuda.so. The copy appears under its name in one step, readable by everyone, so that a
 * restarted init container never shows a half-written library. Exits 0, or 1 with the reason on stderr.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int fail(const char *what, const char *path) {
    dprintf(STDERR_FILENO, "sair-install: cannot %s %s: %s\n", what, path, strerror(errno));
    return 1;
}

static int copy(int from, int to) {
    static char buffer[65536];
    for (;;) {
        ssize_t got = read(from, buffer, sizeof buffer);
        if (got == 0) return 0;
        if (got < 0) {
            if (errno == EINTR) continue;
            return -1;
        }
        for (ssize_t done = 0; done < got;) {
            ssize_t put = write(to, buffer + done, (size_t)(got - done));
            if (put < 0 && errno != EINTR) return -1;
            if (put > 0) done += put;
        }
    }
}

int main(int argc, char **argv) {
    if (argc < 2 || argc > 3) {
        dprintf(STDERR_FILENO, "usage: sair-install [SOURCE] DESTINATION\n");
        return 1;
    }
    const char *source = argc == 3 ? argv[1] : "/libsair_cuda.so", *destination = argv[argc - 1];
    char temporary[4096];
    int length = snprintf(temporary, sizeof temporary, "%s.new", destination);
    if (length < 0 || (size_t)length >= sizeof temporary) {
        errno = ENAMETOOLONG;
        return fail("write", destination);
    }
    int from = open(source, O_RDONLY | O_CLOEXEC);
    if (from < 0) return fail("read", source);
    int to = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (to < 0) return fail("write", temporary);
    if (copy(from, to) != 0 || fchmod(to, 0555) != 0 || fsync(to) != 0 || close(to) != 0) {
        int result = fail("write", temporary);
        unlink(temporary);
        return result;
    }
    close(from);
    if (rename(temporary, destination) != 0) return fail("rename to", destination);
    return 0;
}
