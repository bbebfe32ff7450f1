/* The granted rate, read live from the mounted grant file. */
#ifndef SAIR_GRANT_H
#define SAIR_GRANT_H

#include "config.h"
#include "stats_page.h"

/* Look at the file at `path`. Returns the rate in ppm to be in force: read now, or still the one of the last reading;
 * `previous` is what is in force so far, 0 = nothing yet. *state tells what the file holds, *is_error whether it has
 * just turned unreadable or malformed. The file is read only when its identity, time or size changed since the last
 * look. */
uint32_t sair_grant_look(const char *path, uint32_t previous, enum sair_grant_state *state, int *is_error);

#endif
