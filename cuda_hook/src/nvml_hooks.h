/* NVML's memory queries, answered with the granted memory. */
#ifndef SAIR_NVML_HOOKS_H
#define SAIR_NVML_HOOKS_H

/* The hook that replaces the NVML function `name`; NULL if none does. */
void *sair_nvml_hook_named(const char *name);
/* Remember the real function that a lookup of `name` found. Returns 0 where that is the hook itself. */
int sair_nvml_found(const char *name, void *real);

#endif
