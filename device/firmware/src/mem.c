/* memcpy, memmove, memset, memcmp: small, word-wise where both sides are aligned. */
#include "firmware.h"

typedef uint32_t __attribute__((may_alias)) word;

void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    uint8_t *d = to;
    const uint8_t *s = from;
    if ((((uintptr_t)d | (uintptr_t)s) & 3u) == 0) {
        for (; size >= 4u; size -= 4u, d += 4, s += 4) *(word *)d = *(const word *)s;
    }
    while (size-- > 0) *d++ = *s++;
    return to;
}

void *memmove(void *to, const void *from, size_t size) {
    uint8_t *d = to;
    const uint8_t *s = from;
    if (d <= s) {
        while (size-- > 0) *d++ = *s++;
    } else {
        while (size-- > 0) d[size] = s[size];
    }
    return to;
}

void *memset(void *to, int value, size_t size) {
    uint8_t *d = to;
    while (size > 0 && ((uintptr_t)d & 3u) != 0) *d++ = (uint8_t)value, size--;
    uint32_t pattern = (uint8_t)value * 0x01010101u;
    for (; size >= 4u; size -= 4u, d += 4) *(word *)d = pattern;
    while (size-- > 0) *d++ = (uint8_t)value;
    return to;
}

int memcmp(const void *a, const void *b, size_t size) {
    const uint8_t *x = a;
    const uint8_t *y = b;
    for (size_t i = 0; i < size; i++) {
        if (x[i] != y[i]) return x[i] < y[i] ? -1 : 1;
    }
    return 0;
}
