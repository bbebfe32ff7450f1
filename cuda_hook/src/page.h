/* The stats page of this container: mapping, GPU sections, process slots. */
#ifndef SAIR_PAGE_H
#define SAIR_PAGE_H

#include "config.h"
#include "stats_page.h"

/* Map (creating or repairing) the page at config->stats_path; a private anonymous page where that is impossible, so the
 * caller always has one. `is_shared` tells which. NULL only when memory itself is out. */
struct sair_page *sair_page_open(const struct sair_config *config, int *is_shared);

/* The section of the GPU with this UUID, claimed if it has none. NULL when all sections are taken. */
struct sair_page_gpu *sair_page_gpu_for(struct sair_page *page, const char uuid[16]);

/* A slot for the calling process on that GPU, taking back slots of dead processes on the way. NULL when full. */
struct sair_page_slot *sair_page_slot_take(struct sair_page *page, unsigned gpu, uint32_t rate_ppm, uint64_t now_ns);

/* Give back whatever dead processes held on every GPU: unspent lease, memory, counters. Returns how many were found. */
unsigned sair_page_reap(struct sair_page *page, uint32_t rate_ppm, uint64_t now_ns);

/* The end of an owner: unspent lease back to the bucket, counters to the retired sums, slot free. */
void sair_page_slot_release(struct sair_page *page, struct sair_page_slot *slot, uint32_t rate_ppm, uint64_t now_ns);

/* Device memory held by every process on that GPU. */
uint64_t sair_page_memory_used(struct sair_page *page, unsigned gpu);

/* The short section in which the container's sum of memory is compared with the limit. A holder that died is found by
 * its pid and start time. */
void sair_page_memory_lock(struct sair_page_gpu *gpu);
void sair_page_memory_unlock(struct sair_page_gpu *gpu);

#endif
