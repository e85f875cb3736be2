/* The loader on a microcontroller, without firmware around it: the memory functions, and entries with at most four
 * arguments that a simulator can call. */
#include "tim.h"

void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    uint8_t *d = to;
    const uint8_t *s = from;
    while (size-- > 0) *d++ = *s++;
    return to;
}

void *memset(void *to, int value, size_t size) {
    uint8_t *d = to;
    while (size-- > 0) *d++ = (uint8_t)value;
    return to;
}

int memcmp(const void *a, const void *b, size_t size) {
    const uint8_t *x = a;
    const uint8_t *y = b;
    for (; size > 0; size--, x++, y++) {
        if (*x != *y) return *x - *y;
    }
    return 0;
}

uint32_t judge_structure(const uint8_t *image, uint32_t size, tim_module *module) {
    return (uint32_t)tim_parse(image, size, module);
}

uint32_t judge_trust(const tim_module *module, const tim_platform *platform, uint32_t minimum_counter) {
    return (uint32_t)tim_verify(module, platform, minimum_counter);
}

uint32_t judge_head(const uint8_t *head, const tim_platform *platform, uint32_t minimum_counter) {
    return (uint32_t)tim_check_head(head, tim_head_bytes(head), platform, minimum_counter);
}
