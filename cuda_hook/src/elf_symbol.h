/* Finding a symbol in a loaded object without dlsym, which this library replaces. */
#ifndef SAIR_ELF_SYMBOL_H
#define SAIR_ELF_SYMBOL_H

/* Address of `name` (its default version) in the first loaded object that is part of the C library; NULL if none. */
void *sair_libc_symbol(const char *name);

#endif
