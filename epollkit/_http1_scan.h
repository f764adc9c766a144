/* Sixteen bytes of a head at a time, in vectors as GCC and Clang have them for every machine. Each function returns the
   first byte in [at, end) that is not what it skips, or where fewer than sixteen are left. */
#ifndef EPOLLKIT_HTTP1_SCAN_H
#define EPOLLKIT_HTTP1_SCAN_H

#include <endian.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t ek_bytes __attribute__((vector_size(16)));
typedef uint64_t ek_words __attribute__((vector_size(16)));

/* The index of the first byte that is not 0, 16 if there is none. */
static inline size_t ek_first(ek_bytes marks)
{
    ek_words words = (ek_words)marks;
    if (words[0])
        return __builtin_ctzll(le64toh(words[0])) >> 3;
    if (words[1])
        return 8 + (__builtin_ctzll(le64toh(words[1])) >> 3);
    return 16;
}

/* What a field value may have, but for tabs. */
static inline size_t ek_skip_text(const uint8_t *data, size_t at, size_t end)
{
    while (end - at >= 16) {
        ek_bytes bytes;
        memcpy(&bytes, data + at, 16);
        size_t length = ek_first((ek_bytes)((bytes < 0x20) | (bytes == 0x7F)));
        at += length;
        if (length < 16)
            break;
    }
    return at;
}

/* Letters and hyphens: what most names of fields are made of. */
static inline size_t ek_skip_letters(const uint8_t *data, size_t at, size_t end)
{
    while (end - at >= 16) {
        ek_bytes bytes;
        memcpy(&bytes, data + at, 16);
        size_t length = ek_first((ek_bytes)(((bytes | 0x20) - 'a' > 'z' - 'a') & (bytes != '-')));
        at += length;
        if (length < 16)
            break;
    }
    return at;
}

#endif
