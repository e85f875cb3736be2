/* Trust: Ed25519 (RFC 8032) over the signed head, digests of the sections, target. Curve by Monocypher. */
#include "monocypher.h"
#include "tim_internal.h"

static const uint8_t SIGNING_CONTEXT[16] = {'T', 'I', 'M', '1', '-', 'S', 'I', 'G',
                                            'N', 'E', 'D', '-', 'H', 'E', 'A', 'D'};

static void hash_signed_head(tim_sha512 *hash, const tim_module *module) {
    tim_sha512_update(hash, SIGNING_CONTEXT, sizeof SIGNING_CONTEXT);
    tim_sha512_update(hash, module->image + TIM_SIGNED_FROM, tim_table_end(module->section_count) - TIM_SIGNED_FROM);
}

static bool signature_holds(const tim_module *module, const uint8_t *signature, const tim_key *key) {
    tim_sha512 hash;
    uint8_t digest[64];
    uint8_t reduced[32];
    tim_sha512_init(&hash);
    tim_sha512_update(&hash, signature, 32);
    tim_sha512_update(&hash, key->public_key, 32);
    hash_signed_head(&hash, module);
    tim_sha512_final(&hash, digest);
    crypto_eddsa_reduce(reduced, digest);
    return crypto_eddsa_check_equation(signature, key->public_key, reduced) == 0;
}

static const tim_key *find_key(const tim_platform *platform, const uint8_t *id) {
    for (uint32_t i = 0; i < platform->key_count; i++) {
        if (memcmp(platform->keys[i].id, id, TIM_KEY_ID_BYTES) == 0) return &platform->keys[i];
    }
    return NULL;
}

tim_status tim_verify_head(const tim_module *module, const tim_platform *platform, uint32_t minimum_counter) {
    const uint8_t *record = module->image + tim_table_end(module->section_count);
    const uint8_t *end = record + tim_u16(module->image + 14);
    tim_status status = TIM_SIGNATURE_MISSING;
    while (record < end) {
        if (tim_u16(record) == TIM_ALGORITHM_ED25519) {
            const tim_key *key = find_key(platform, record + 8);
            if (key != NULL) {
                if (!signature_holds(module, record + TIM_SIGNATURE_HEADER_BYTES, key)) return TIM_SIGNATURE_INVALID;
                return module->security_counter < minimum_counter ? TIM_DOWNGRADE : TIM_OK;
            }
            status = TIM_KEY_UNKNOWN;
        }
        record += TIM_SIGNATURE_HEADER_BYTES + tim_align(tim_u32(record + 4));
    }
    return status;
}

tim_status tim_verify(const tim_module *module, const tim_platform *platform, uint32_t minimum_counter) {
    tim_status status = tim_verify_head(module, platform, minimum_counter);
    if (status != TIM_OK) return status;
    uint32_t present = tim_u16(module->image + 12);
    const uint8_t *section = module->payload;
    for (uint32_t i = 0; i < module->section_count; i++) {
        if ((present >> i & 1u) == 0) continue;
        const uint8_t *row = module->image + tim_table_end(i);
        uint32_t bytes = tim_u32(row + 8);
        tim_sha512 hash;
        uint8_t digest[64];
        tim_sha512_init(&hash);
        tim_sha512_update(&hash, section, bytes);
        tim_sha512_final(&hash, digest);
        if (memcmp(digest, row + 16, TIM_DIGEST_BYTES) != 0) return TIM_DIGEST_MISMATCH;
        section += tim_align(bytes);
    }
    return TIM_OK;
}

tim_status tim_check_target(const tim_module *module, const tim_platform *platform) {
    if ((platform->kinds >> module->kind & 1u) == 0 || (platform->isas >> module->isa & 1u) == 0 ||
        (module->features & ~platform->features) != 0) {
        return TIM_TARGET_UNSUPPORTED;
    }
    if (platform->stack_bytes != 0 && module->stack_bytes > platform->stack_bytes) return TIM_STACK_TOO_SMALL;
    return TIM_OK;
}

tim_status tim_check_head(const uint8_t *head, uint32_t head_bytes, const tim_platform *platform,
                          uint32_t minimum_counter) {
    tim_module module;
    tim_status status = tim_parse_head(head, head_bytes, false, &module);
    if (status == TIM_OK) status = tim_verify_head(&module, platform, minimum_counter);
    if (status == TIM_OK) status = tim_check_target(&module, platform);
    return status;
}

tim_status tim_open(const uint8_t *image, uint32_t size, const tim_platform *platform, uint32_t minimum_counter,
                    tim_module *module) {
    tim_status status = tim_parse(image, size, module);
    if (status == TIM_OK) status = tim_verify(module, platform, minimum_counter);
    if (status == TIM_OK) status = tim_check_target(module, platform);
    return status;
}

void tim_identity(const tim_module *module, uint8_t identity[TIM_DIGEST_BYTES]) {
    tim_sha512 hash;
    uint8_t digest[64];
    tim_sha512_init(&hash);
    hash_signed_head(&hash, module);
    tim_sha512_final(&hash, digest);
    memcpy(identity, digest, TIM_DIGEST_BYTES);
}
