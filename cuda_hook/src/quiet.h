/*
 * Finding out what a kernel costs beside other tenants when no node agent tells: quiet periods.
 *
 * Every hook of a node reads the same monotonic clock. It is cut into periods. At the beginning of half of them, two of
 * any four by a random number of its own, a container submits nothing. Two containers' choices differ in five of six
 * cases, so each has the card to itself now and then and sees its kernels undisturbed. One period in eight begins with
 * a long quiet, for kernels of tens of milliseconds; before it nobody starts what would still run when it opens.
 * Processes of one container take turns: in a quiet that belongs to the container one of them submits. Only containers
 * that have no agent and whose launches are being stretched keep these rules. Pure.
 */
#ifndef SAIR_QUIET_H
#define SAIR_QUIET_H

#include <stdint.h>

/* How long a quiet is. */
#define SAIR_QUIET_SHORT_NS UINT64_C(25000000)
#define SAIR_QUIET_LONG_NS UINT64_C(75000000)
/* In so much time, two containers' choices differ in each kind of quiet as good as certainly: in all but 1 of 1300
 * cases. */
#define SAIR_QUIET_CYCLE_NS UINT64_C(25600000000)

/* Who asks. */
struct sair_quiet {
    uint64_t seed;         /* random, the container's */
    int is_kept;           /* whether the container keeps quiet for others; 0: its processes take turns only */
    unsigned processes;    /* of the container, on this GPU */
    unsigned rank;         /* of the asking one among them, from 0 */
    uint64_t predicted_ns; /* for how long its launch may run beside others */
};

/* How long from `now_ns` on the launch has to wait; 0 = it may be submitted. */
uint64_t sair_quiet_left(const struct sair_quiet *who, uint64_t now_ns);

/* How long until the next long quiet that is the asking one's opens to a launch too long for the short ones; 0 = it
 * does now, and a launch may go ahead of its budget to be seen undisturbed. UINT64_MAX: the launch is not that long. */
uint64_t sair_quiet_opens_in(const struct sair_quiet *who, uint64_t now_ns);

#endif
