/* Journal in two halves: each record is the whole state, so a transition happens wholly or not at all.
 *
 * A record's CRC is in its last program unit: a record cut by a power loss is no record. When a half is full, the
 * other is erased and goes on; the full half keeps the newest record until the first one of the other half is whole. */
#include "journal.h"

#include "tim_internal.h"

#define RECORD_MAGIC 0x4A4D4954u /* "TIMJ" */
#define RECORD_SLOTS 16u
#define RECORD_CRC (TIM_JOURNAL_RECORD_BYTES - 4u)

/* The record holds the slots as they are in RAM: fixed layout, no padding, little-endian. */
typedef char tim_slot_has_32_bytes[sizeof(tim_slot) == 32 ? 1 : -1];

static uint32_t crc32(const uint8_t *data, uint32_t bytes) {
    uint32_t crc = 0xFFFFFFFFu;
    for (uint32_t i = 0; i < bytes; i++) {
        crc ^= data[i];
        for (uint32_t b = 0; b < 8; b++) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
    }
    return ~crc;
}

bool tim_flash_is_blank(const tim_flash *flash, uint32_t offset, uint32_t bytes) {
    uint8_t seen = 0xFF;
    for (uint32_t i = 0; i < bytes; i++) seen &= flash->base[offset + i];
    return seen == 0xFF;
}

tim_status tim_flash_erase(const tim_flash *flash, uint32_t offset, uint32_t bytes) {
    for (uint32_t done = 0; done < bytes; done += flash->page_bytes) {
        if (flash->erase(flash->context, offset + done) != 0 ||
            !tim_flash_is_blank(flash, offset + done, flash->page_bytes)) {
            return TIM_FLASH_ERROR;
        }
    }
    return TIM_OK;
}

tim_status tim_flash_program(const tim_flash *flash, uint32_t offset, const uint8_t *data, uint32_t bytes) {
    if (flash->program(flash->context, offset, data, bytes) != 0) return TIM_FLASH_ERROR;
    return memcmp(flash->base + offset, data, bytes) == 0 ? TIM_OK : TIM_FLASH_ERROR;
}

static uint32_t half_bytes(const tim_update *update) { return update->config->journal.bytes / 2u; }

static uint32_t half_start(const tim_update *update, uint32_t half) {
    return update->config->journal.offset + half * half_bytes(update);
}

static const uint8_t *record_at(const tim_update *update, uint32_t offset) {
    const uint8_t *record = update->config->flash.base + offset;
    bool whole = tim_u32(record) == RECORD_MAGIC && tim_u32(record + RECORD_CRC) == crc32(record, RECORD_CRC);
    return whole ? record : NULL;
}

void tim_journal_load(tim_update *update) {
    const uint8_t *newest = NULL;
    uint32_t newest_half = 0;
    for (uint32_t half = 0; half < 2u; half++) {
        uint32_t start = half_start(update, half);
        for (uint32_t at = 0; at + TIM_JOURNAL_RECORD_BYTES <= half_bytes(update); at += TIM_JOURNAL_RECORD_BYTES) {
            const uint8_t *record = record_at(update, start + at);
            if (record != NULL && (newest == NULL || tim_u32(record + 4) > update->sequence)) {
                newest = record;
                newest_half = half;
                update->sequence = tim_u32(record + 4);
            }
        }
    }
    update->journal_half = update->newest_half = (uint8_t)newest_half;
    if (newest == NULL) {
        update->journal_used = half_bytes(update); /* as if full: the first append erases the other half */
        return;
    }
    update->counter = tim_u32(newest + 8);
    memcpy(update->slots, newest + RECORD_SLOTS, sizeof update->slots);
    for (uint32_t at = 0; at + TIM_JOURNAL_RECORD_BYTES <= half_bytes(update); at += TIM_JOURNAL_RECORD_BYTES) {
        uint32_t offset = half_start(update, newest_half) + at;
        if (!tim_flash_is_blank(&update->config->flash, offset, TIM_JOURNAL_RECORD_BYTES)) {
            update->journal_used = at + TIM_JOURNAL_RECORD_BYTES;
        }
    }
}

/* Find the place of the next record: `*at`. A full half makes way for the half that does not hold the newest record,
 * which therefore is never erased. */
static tim_status reserve(tim_update *update, uint32_t *at) {
    if (update->journal_used + TIM_JOURNAL_RECORD_BYTES > half_bytes(update)) {
        uint32_t half = 1u - update->newest_half;
        tim_status status = tim_flash_erase(&update->config->flash, half_start(update, half), half_bytes(update));
        if (status != TIM_OK) return status;
        update->journal_half = (uint8_t)half;
        update->journal_used = 0;
    }
    *at = half_start(update, update->journal_half) + update->journal_used;
    update->journal_used += TIM_JOURNAL_RECORD_BYTES; /* a bad place is passed over */
    return TIM_OK;
}

tim_status tim_journal_commit(tim_update *update, const tim_slot *slots, uint32_t counter) {
    uint8_t record[TIM_JOURNAL_RECORD_BYTES];
    uint32_t sequence = update->sequence + 1u;
    uint32_t magic = RECORD_MAGIC;
    memset(record, 0, sizeof record);
    memcpy(record, &magic, 4);
    memcpy(record + 4, &sequence, 4);
    memcpy(record + 8, &counter, 4);
    memcpy(record + RECORD_SLOTS, slots, sizeof update->slots);
    uint32_t crc = crc32(record, RECORD_CRC);
    memcpy(record + RECORD_CRC, &crc, 4);
    for (uint32_t attempt = 0; attempt < 3u; attempt++) {
        uint32_t at;
        tim_status status = reserve(update, &at);
        if (status != TIM_OK) return status;
        if (tim_flash_program(&update->config->flash, at, record, sizeof record) == TIM_OK) {
            update->newest_half = update->journal_half;
            update->sequence = sequence;
            update->counter = counter;
            if (slots != update->slots) memcpy(update->slots, slots, sizeof update->slots);
            return TIM_OK;
        }
    }
    return TIM_FLASH_ERROR;
}
