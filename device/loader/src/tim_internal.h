/* Shared by the loader's sources; not for firmware. */
#ifndef TIM_INTERNAL_H
#define TIM_INTERNAL_H

#include "tim.h"

/* The three functions that the firmware brings; declared here because a freestanding C has no <string.h>. */
void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *a, const void *b, size_t size);

#define TIM_ALIGNMENT 16u
#define TIM_SIGNED_FROM 16u
#define TIM_MAX_SECTION_BYTES (1u << 28)
#define TIM_MAX_MEMORY_BYTES 0x7FFFFFFFu
#define TIM_MAX_TENSORS 32u
#define TIM_MAX_SIGNATURES 4u
#define TIM_MAX_SIGNATURE_BLOCK_BYTES 8192u
#define TIM_SIGNATURE_HEADER_BYTES 16u
#define TIM_ED25519_BYTES 64u
#define TIM_ALGORITHM_ED25519 1u
#define TIM_MAX_GOLDEN_VECTORS 64u
#define TIM_SECTION_CRITICAL 1u
#define TIM_SECTION_DROPPABLE 2u

/* Positive and finite or +0, judged by bits: the parser needs no floating point. */
#define TIM_INFINITY_BITS 0x7F800000u

static inline uint16_t tim_u16(const uint8_t *p) {
    uint16_t value;
    memcpy(&value, __builtin_assume_aligned(p, 2), sizeof value);
    return value;
}

static inline uint32_t tim_u32(const uint8_t *p) {
    uint32_t value;
    memcpy(&value, __builtin_assume_aligned(p, 4), sizeof value);
    return value;
}

static inline uint32_t tim_align(uint32_t value) { return (value + TIM_ALIGNMENT - 1u) & ~(TIM_ALIGNMENT - 1u); }

static inline bool tim_all_zero(const uint8_t *p, uint32_t size) {
    uint8_t seen = 0;
    for (uint32_t i = 0; i < size; i++) seen |= p[i];
    return seen == 0;
}

static inline uint32_t tim_table_end(uint32_t section_count) {
    return TIM_HEADER_BYTES + TIM_SECTION_ENTRY_BYTES * section_count;
}

static inline const uint8_t *tim_tensor_record(const tim_module *module, uint32_t index) {
    return module->tensors + TIM_TENSOR_BYTES * index;
}

static inline uint32_t tim_tensor_bytes(const uint8_t *record) { return tim_u32(record + 4); }

/* Checks 1 to 4 and the signature block on a head alone. `whole` also holds image_size against `size`. */
tim_status tim_parse_head(const uint8_t *image, uint32_t size, bool whole, tim_module *module);

/* Checks of the two sections that a loader walks (parse step 6). */
tim_status tim_check_tensors(const tim_module *module);
tim_status tim_check_golden(const tim_module *module);

/* Signature and security counter (parse step 7 without digests). */
tim_status tim_verify_head(const tim_module *module, const tim_platform *platform, uint32_t minimum_counter);

uint32_t tim_dtype_bytes(uint32_t dtype);

typedef struct tim_sha512 {
    uint64_t state[8];
    uint64_t length;
    uint8_t block[128];
} tim_sha512;

void tim_sha512_init(tim_sha512 *hash);
void tim_sha512_update(tim_sha512 *hash, const uint8_t *data, uint32_t size);
void tim_sha512_final(tim_sha512 *hash, uint8_t digest[64]);

#endif
