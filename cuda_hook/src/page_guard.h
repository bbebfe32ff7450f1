/* A truncated page must not kill the program: a store beyond the end of the file raises SIGBUS. */
#ifndef SAIR_PAGE_GUARD_H
#define SAIR_PAGE_GUARD_H

#include <stddef.h>

/* From now on a SIGBUS inside [start, start + bytes) replaces the mapping by private memory; any other goes to whoever
 * handled it before. */
void sair_page_guard(void *start, size_t bytes);

#endif
