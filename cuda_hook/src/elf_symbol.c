#include "elf_symbol.h"

#include <elf.h>
#include <link.h>
#include <stddef.h>
#include <stdint.h>

/* A symbol whose version is not the default one carries this bit in the version table. */
#define HIDDEN_VERSION 0x8000u

struct dynamic {
    const ElfW(Sym) * symbols;
    const char *strings;
    const uint32_t *gnu_hash;
    const uint32_t *hash;
    const uint16_t *versions;
};

/* glibc relocates the pointers in the dynamic section of most objects, but not of all (the vDSO; other C libraries). */
static const void *absolute(ElfW(Addr) base, ElfW(Addr) value) {
    return (const void *)(value < base ? base + value : value); // NOLINT
}

static struct dynamic read_dynamic(ElfW(Addr) base, const ElfW(Dyn) * entry) {
    struct dynamic d = {0};
    for (; entry->d_tag != DT_NULL; entry++) {
        const void *at = absolute(base, entry->d_un.d_ptr);
        if (entry->d_tag == DT_SYMTAB) d.symbols = at;
        if (entry->d_tag == DT_STRTAB) d.strings = at;
        if (entry->d_tag == DT_GNU_HASH) d.gnu_hash = at;
        if (entry->d_tag == DT_HASH) d.hash = at;
        if (entry->d_tag == DT_VERSYM) d.versions = at;
    }
    return d;
}

/* Number of symbols: stated by DT_HASH, otherwise the end of the last chain of DT_GNU_HASH. */
static uint32_t count_symbols(const struct dynamic *d) {
    if (d->hash != NULL) return d->hash[1];
    if (d->gnu_hash == NULL) return 0;
    uint32_t buckets = d->gnu_hash[0], first = d->gnu_hash[1], words = d->gnu_hash[2];
    const uint32_t *bucket = &d->gnu_hash[4 + words * (sizeof(ElfW(Addr)) / 4)];
    const uint32_t *chain = bucket + buckets;
    uint32_t last = 0;
    for (uint32_t i = 0; i < buckets; i++)
        if (bucket[i] > last) last = bucket[i];
    if (last < first) return first;
    while ((chain[last - first] & 1u) == 0) last++;
    return last + 1;
}

/* No function of the C library is called here: the first dlsym of a process may come from a sanitizer's start-up, when
 * the functions that it intercepts, string comparison among them, are not usable yet. */
static int is_equal(const char *a, const char *b) {
    while (*a != '\0' && *a == *b) a++, b++;
    return *a == *b;
}

static int has_prefix(const char *text, const char *prefix) {
    while (*prefix != '\0' && *text == *prefix) text++, prefix++;
    return *prefix == '\0';
}

static int is_libc(const char *path) {
    const char *file = path;
    for (const char *at = path; *at != '\0'; at++)
        if (*at == '/') file = at + 1;
    static const char *const prefixes[] = {"libc.so", "libdl.so", "libc-", "libdl-", "ld-musl"};
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++)
        if (has_prefix(file, prefixes[i])) return 1;
    return 0;
}

static void *find_in(const struct link_map *object, const char *name) {
    struct dynamic d = read_dynamic(object->l_addr, object->l_ld);
    if (d.symbols == NULL || d.strings == NULL) return NULL;
    uint32_t count = count_symbols(&d);
    for (uint32_t i = 0; i < count; i++) {
        const ElfW(Sym) *symbol = &d.symbols[i];
        if (symbol->st_shndx == SHN_UNDEF || (symbol->st_info & 0xf) != STT_FUNC) continue;
        if (d.versions != NULL && (d.versions[i] & HIDDEN_VERSION) != 0) continue;
        if (is_equal(d.strings + symbol->st_name, name)) return (void *)(object->l_addr + symbol->st_value); // NOLINT
    }
    return NULL;
}

void *sair_libc_symbol(const char *name) {
    for (const struct link_map *object = _r_debug.r_map; object != NULL; object = object->l_next) {
        void *found = object->l_name != NULL && is_libc(object->l_name) ? find_in(object, name) : NULL;
        if (found != NULL) return found;
    }
    return NULL;
}
