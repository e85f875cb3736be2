/* Two things that the update core does not keep: the full digest that was announced for a slot (one page a slot; a label
 * counts only while it matches the core's record), and the trusted keys (one page, provisioned at manufacture). */
#include "firmware.h"

typedef struct label {
    uint32_t magic;
    uint32_t size;
    uint8_t digest[FW_DIGEST_BYTES];
    uint8_t padding[24]; /* 64 bytes: a whole number of program units */
} label;

typedef struct key_page {
    uint32_t magic;
    uint32_t count;
    uint8_t padding[24];
    struct {
        uint8_t id[TIM_KEY_ID_BYTES];
        uint8_t public_key[32];
        uint8_t padding[24];
    } keys[FW_MAX_KEYS];
} key_page;

bool fw_is_unannounced(const uint8_t *digest, uint32_t size) {
#if defined(FW_BOARD)
    uint32_t sum = 0;
    for (uint32_t i = 0; i < size; i++) sum |= digest[i];
    return sum == 0;
#else
    (void)digest;
    (void)size;
    return false;
#endif
}

static uint32_t label_offset(uint32_t slot) { return FW_LABELS + slot * FW_PAGE_BYTES; }

tim_status fw_label_write(const fw_device *device, uint32_t slot, uint32_t size, const uint8_t *digest) {
    const uint8_t *known = fw_label_digest(device, slot);
    if (known != NULL && memcmp(known, digest, FW_DIGEST_BYTES) == 0) return TIM_OK;
    label made;
    memset(&made, 0xFF, sizeof made);
    made.magic = FW_LABEL_MAGIC;
    made.size = size;
    memcpy(made.digest, digest, FW_DIGEST_BYTES);
    if (fw_flash_erase(NULL, label_offset(slot)) != 0) return TIM_FLASH_ERROR;
    return fw_flash_program(NULL, label_offset(slot), (const uint8_t *)&made, sizeof made) == 0 ? TIM_OK : TIM_FLASH_ERROR;
}

const uint8_t *fw_label_digest(const fw_device *device, uint32_t slot) {
    const label *found = (const label *)(FW_FLASH + label_offset(slot));
    const tim_slot *state = &device->update.slots[slot];
    bool fits = state->state != TIM_SLOT_EMPTY && found->magic == FW_LABEL_MAGIC && found->size == state->size &&
                (memcmp(found->digest, state->download_id, TIM_DOWNLOAD_ID_BYTES) == 0 ||
                 fw_is_unannounced(state->download_id, TIM_DOWNLOAD_ID_BYTES));
    return fits ? found->digest : NULL;
}

uint32_t fw_load_keys(tim_key *keys) {
    const key_page *page = (const key_page *)(FW_FLASH + FW_KEYS);
    if (page->magic != FW_KEYS_MAGIC || page->count > FW_MAX_KEYS) return 0;
    for (uint32_t i = 0; i < page->count; i++) {
        memcpy(keys[i].id, page->keys[i].id, TIM_KEY_ID_BYTES);
        memcpy(keys[i].public_key, page->keys[i].public_key, sizeof keys[i].public_key);
    }
    return page->count;
}
