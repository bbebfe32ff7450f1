/*
 * Finding out what a kernel costs beside other tenants when no node agent tells: quiet periods.
 *
 * Every hook of a node reads the same monotonic clock. It is cut into cycles of periods, and each container has a code,
 * half of whose bits are set: in the first part of a period whose bit is clear it submits nothing. Two containers' codes
 * differ in half of the bits, so each has the card to itself now and then and sees its kernels undisturbed. Only containers
 * that have no agent and whose launches are being stretched keep these rules. Pure.
 */
#ifndef SAIR_QUIET_H
#define SAIR_QUIET_H

#include <stdint.h>

#define SAIR_QUIET_LENGTH_NS UINT64_C(25000000)

/* A code from random bits: sixteen bits, eight of them set. */
uint16_t sair_quiet_code(uint64_t random);

/* How long from `now_ns` on the container with this code has to keep quiet; 0 = it may submit. */
uint64_t sair_quiet_left(uint16_t code, uint64_t now_ns);

#endif
