/* Update core: see tim_update.h for the life of a slot, spec/inference-module.md section 12 for the rules. */
#include "journal.h"
#include "tim_internal.h"

#define NAME_OFFSET 64u
#define NAME_BYTES 32u
#define NO_SLOT ((uint8_t)TIM_MAX_SLOTS)
#define DEFAULT_ATTEMPTS 3u

static const tim_region *region(const tim_update *update, uint32_t slot) { return &update->config->slots[slot]; }

static const uint8_t *image(const tim_update *update, uint32_t slot) {
    return update->config->flash.base + region(update, slot)->offset;
}

static uint32_t max_attempts(const tim_update *update) {
    return update->config->max_attempts == 0 ? DEFAULT_ATTEMPTS : update->config->max_attempts;
}

static bool region_is_valid(const tim_flash *flash, const tim_region *part, uint32_t minimum) {
    uint32_t mask = flash->page_bytes - 1u;
    return (part->offset & mask) == 0 && (part->bytes & mask) == 0 && part->bytes >= minimum &&
           part->bytes <= 0xFFFFFFFFu - part->offset && ((uintptr_t)(flash->base + part->offset) & 15u) == 0;
}

static bool apart(const tim_region *a, const tim_region *b) {
    return a->offset + a->bytes <= b->offset || b->offset + b->bytes <= a->offset;
}

static bool config_is_valid(const tim_update_config *config) {
    const tim_flash *flash = &config->flash;
    if (flash->base == NULL || flash->erase == NULL || flash->program == NULL || config->platform == NULL ||
        flash->page_bytes < 64u || (flash->page_bytes & (flash->page_bytes - 1u)) != 0 || flash->program_bytes == 0 ||
        flash->program_bytes > 32u || (flash->program_bytes & (flash->program_bytes - 1u)) != 0 ||
        config->slot_count == 0 || config->slot_count > TIM_MAX_SLOTS ||
        !region_is_valid(flash, &config->journal, 4u * TIM_JOURNAL_RECORD_BYTES) ||
        (config->journal.bytes / 2u & (flash->page_bytes - 1u)) != 0) {
        return false;
    }
    for (uint32_t i = 0; i < config->slot_count; i++) {
        if (!region_is_valid(flash, &config->slots[i], flash->page_bytes) || !apart(&config->slots[i], &config->journal)) {
            return false;
        }
        for (uint32_t j = 0; j < i; j++) {
            if (!apart(&config->slots[i], &config->slots[j])) return false;
        }
    }
    return true;
}

static bool same_name(const tim_update *update, uint32_t a, uint32_t b) {
    return memcmp(image(update, a) + NAME_OFFSET, image(update, b) + NAME_OFFSET, NAME_BYTES) == 0;
}

/* The slot, other than `slot`, that holds a module of the same name in `state`; NO_SLOT without one. */
static uint32_t find_sibling(const tim_update *update, uint32_t slot, tim_slot_state state) {
    for (uint32_t i = 0; i < update->config->slot_count; i++) {
        if (i != slot && update->slots[i].state == state && same_name(update, slot, i)) return i;
    }
    return NO_SLOT;
}

static void make_empty(tim_slot *slot, tim_status error) {
    memset(slot, 0, sizeof *slot);
    slot->last_error = (uint8_t)error;
}

static void copy_slots(const tim_update *update, tim_slot *slots) { memcpy(slots, update->slots, sizeof update->slots); }

static tim_status commit(tim_update *update, const tim_slot *slots) {
    return tim_journal_commit(update, slots, update->counter);
}

/* Empty the slot and remember why; the caller passes `error` on, unless even that could not be written. */
static tim_status fail_slot(tim_update *update, uint32_t slot, tim_status error) {
    tim_slot slots[TIM_MAX_SLOTS];
    copy_slots(update, slots);
    make_empty(&slots[slot], error);
    tim_status status = commit(update, slots);
    if (update->writing_slot == slot) update->writing_slot = NO_SLOT;
    return status == TIM_OK ? error : status;
}

static tim_status set_state(tim_update *update, uint32_t slot, tim_slot_state state) {
    tim_slot slots[TIM_MAX_SLOTS];
    copy_slots(update, slots);
    slots[slot].state = (uint8_t)state;
    slots[slot].confirmed = 0;
    slots[slot].attempts = 0;
    return commit(update, slots);
}

static tim_status check_slot(const tim_update *update, uint32_t slot, uint32_t state) {
    if (slot >= update->config->slot_count) return TIM_SLOT_INVALID;
    return update->slots[slot].state == state ? TIM_OK : TIM_STATE_INVALID;
}

/* ---- start ---- */

static tim_status count_boot(tim_update *update, uint32_t slot) {
    if (update->slots[slot].attempts >= max_attempts(update)) {
        tim_status status = tim_update_rollback(update, slot, TIM_NOT_CONFIRMED);
        if (status != TIM_NOTHING_TO_ROLL_BACK) return status;
        status = fail_slot(update, slot, TIM_NOT_CONFIRMED);
        return status == TIM_NOT_CONFIRMED ? TIM_OK : status;
    }
    tim_slot slots[TIM_MAX_SLOTS];
    copy_slots(update, slots);
    slots[slot].attempts++;
    return commit(update, slots);
}

tim_status tim_update_init(tim_update *update, const tim_update_config *config) {
    memset(update, 0, sizeof *update);
    if (!config_is_valid(config)) return TIM_CONFIG_INVALID;
    update->config = config;
    update->writing_slot = NO_SLOT;
    tim_journal_load(update);
    if (update->counter < config->minimum_counter) update->counter = config->minimum_counter;
    for (uint32_t i = config->slot_count; i < TIM_MAX_SLOTS; i++) make_empty(&update->slots[i], TIM_OK);
    for (uint32_t i = 0; i < config->slot_count; i++) {
        const tim_slot *slot = &update->slots[i];
        if (slot->state > TIM_SLOT_PREVIOUS || slot->size > config->slots[i].bytes) {
            make_empty(&update->slots[i], TIM_CONFIG_INVALID); /* the slot table changed with the firmware */
        }
    }
    for (uint32_t i = 0; i < config->slot_count; i++) {
        if (update->slots[i].state == TIM_SLOT_ACTIVE && update->slots[i].confirmed == 0) {
            tim_status status = count_boot(update, i);
            if (status != TIM_OK) return status;
        }
    }
    return TIM_OK;
}

/* ---- download ---- */

/* After a reset: every page before the last one that is not blank is whole, because pages are written in order. That one
 * and all behind it are erased again: a unit or an erase that was cut short may read as blank, and so does a page of 0xFF
 * data. The last page goes first, so that the one that marks the place is still there if this is cut short, too. */
static tim_status find_resume_point(tim_update *update, uint32_t slot) {
    const tim_flash *flash = &update->config->flash;
    uint32_t page = flash->page_bytes;
    uint32_t start = region(update, slot)->offset;
    uint32_t used = (update->slots[slot].size + page - 1u) & ~(page - 1u);
    uint32_t end = used;
    while (end > 0 && tim_flash_is_blank(flash, start + end - page, page)) end -= page;
    update->received = end == 0 ? 0 : end - page;
    while (used > update->received) {
        used -= page;
        tim_status status = tim_flash_erase(flash, start + used, page);
        if (status != TIM_OK) return status;
    }
    return TIM_OK;
}

static tim_status erase_for_download(tim_update *update, uint32_t slot) {
    tim_status status = tim_flash_erase(&update->config->flash, region(update, slot)->offset, update->slots[slot].size);
    if (status != TIM_OK) return status;
    tim_slot slots[TIM_MAX_SLOTS];
    copy_slots(update, slots);
    slots[slot].erased = 1;
    update->received = 0;
    return commit(update, slots);
}

static tim_status start_download(tim_update *update, uint32_t slot, uint32_t size, const uint8_t *download_id) {
    tim_slot slots[TIM_MAX_SLOTS];
    copy_slots(update, slots);
    for (uint32_t i = 0; i < TIM_MAX_SLOTS; i++) {
        if (slots[i].state == TIM_SLOT_WRITING) make_empty(&slots[i], TIM_OK);
    }
    make_empty(&slots[slot], TIM_OK);
    slots[slot].state = TIM_SLOT_WRITING;
    slots[slot].size = size;
    memcpy(slots[slot].download_id, download_id, TIM_DOWNLOAD_ID_BYTES);
    return commit(update, slots);
}

tim_status tim_update_begin(tim_update *update, uint32_t slot, uint32_t size,
                            const uint8_t download_id[TIM_DOWNLOAD_ID_BYTES], uint32_t *resume_offset) {
    *resume_offset = 0;
    if (slot >= update->config->slot_count) return TIM_SLOT_INVALID;
    if (update->slots[slot].state == TIM_SLOT_ACTIVE) return TIM_STATE_INVALID;
    if (size < TIM_HEADER_BYTES) return TIM_TRUNCATED;
    if (size > region(update, slot)->bytes) return TIM_TOO_LARGE;
    uint32_t state = update->slots[slot].state;
    bool same = state != TIM_SLOT_EMPTY && update->slots[slot].size == size &&
                memcmp(update->slots[slot].download_id, download_id, TIM_DOWNLOAD_ID_BYTES) == 0;
    if (same && state != TIM_SLOT_WRITING) {
        *resume_offset = size;
        return state == TIM_SLOT_PREVIOUS ? set_state(update, slot, TIM_SLOT_WRITTEN) : TIM_OK;
    }
    tim_status status = TIM_OK;
    if (same && update->writing_slot == slot) { /* only the link was lost */
        *resume_offset = update->received + update->pending;
        return TIM_OK;
    }
    update->writing_slot = NO_SLOT;
    if (!same) status = start_download(update, slot, size, download_id);
    if (status != TIM_OK) return status;
    status = update->slots[slot].erased ? find_resume_point(update, slot) : erase_for_download(update, slot);
    if (status != TIM_OK) return status;
    update->writing_slot = (uint8_t)slot;
    update->pending = 0;
    update->head_checked = false;
    *resume_offset = update->received;
    return TIM_OK;
}

/* Program what `unit` holds, filled up with 0xFF to whole program units. */
static tim_status flush(tim_update *update, uint32_t slot) {
    uint32_t program = update->config->flash.program_bytes;
    uint32_t bytes = (update->pending + program - 1u) & ~(program - 1u);
    memset(update->unit + update->pending, 0xFF, bytes - update->pending);
    uint32_t offset = region(update, slot)->offset + update->received;
    update->received += update->pending;
    update->pending = 0;
    return tim_flash_program(&update->config->flash, offset, update->unit, bytes);
}

static tim_status judge_head(tim_update *update, uint32_t slot) {
    const uint8_t *head = image(update, slot);
    uint32_t bytes = tim_head_bytes(head);
    if (bytes > update->received) return update->received == update->slots[slot].size ? TIM_TRUNCATED : TIM_OK;
    if (bytes == 0) bytes = TIM_HEADER_BYTES; /* no module: the check says why */
    tim_status status = tim_check_head(head, bytes, update->config->platform, update->counter);
    if (status == TIM_OK && tim_u32(head + 8) != update->slots[slot].size) status = TIM_SIZE_MISMATCH;
    update->head_checked = status == TIM_OK;
    return status;
}

tim_status tim_update_write(tim_update *update, uint32_t slot, uint32_t offset, const uint8_t *data, uint32_t size) {
    tim_status status = check_slot(update, slot, TIM_SLOT_WRITING);
    if (status != TIM_OK) return status;
    if (update->writing_slot != slot) return TIM_STATE_INVALID;
    if (offset != update->received + update->pending) return TIM_OFFSET_MISMATCH;
    uint32_t total = update->slots[slot].size;
    if (size > total - offset) return TIM_TOO_LARGE;
    while (size > 0) {
        uint32_t room = (uint32_t)sizeof update->unit - update->pending;
        uint32_t take = size < room ? size : room;
        memcpy(update->unit + update->pending, data, take);
        update->pending += take;
        data += take;
        size -= take;
        bool complete = update->received + update->pending == total;
        if (update->pending == sizeof update->unit || complete) {
            status = flush(update, slot);
            if (status != TIM_OK) {
                update->writing_slot = NO_SLOT; /* begin finds out how far flash can be relied upon */
                return status;
            }
            if (!update->head_checked && update->received >= TIM_HEADER_BYTES) {
                status = judge_head(update, slot);
                if (status != TIM_OK) return fail_slot(update, slot, status);
            }
        }
        if (complete) {
            status = set_state(update, slot, TIM_SLOT_WRITTEN);
            update->writing_slot = NO_SLOT;
            return status;
        }
    }
    return TIM_OK;
}

uint32_t tim_update_received(const tim_update *update, uint32_t slot) {
    if (slot >= update->config->slot_count) return 0;
    if (update->slots[slot].state != TIM_SLOT_WRITING) return update->slots[slot].size;
    return update->writing_slot == slot ? update->received + update->pending : 0;
}

/* ---- verify and test ---- */

tim_status tim_update_open(const tim_update *update, uint32_t slot, tim_module *module) {
    if (slot >= update->config->slot_count) return TIM_SLOT_INVALID;
    if (update->slots[slot].state < TIM_SLOT_VERIFIED) return TIM_STATE_INVALID;
    return tim_open(image(update, slot), update->slots[slot].size, update->config->platform, 0, module);
}

tim_status tim_update_verify(tim_update *update, uint32_t slot) {
    tim_status status = check_slot(update, slot, TIM_SLOT_WRITTEN);
    if (status != TIM_OK) return status;
    tim_module module;
    status = tim_open(image(update, slot), update->slots[slot].size, update->config->platform, update->counter, &module);
    if (status != TIM_OK) return fail_slot(update, slot, status);
    tim_slot slots[TIM_MAX_SLOTS];
    copy_slots(update, slots);
    slots[slot].state = TIM_SLOT_VERIFIED;
    slots[slot].attempts = 0;
    slots[slot].security_counter = module.security_counter;
    return commit(update, slots);
}

/* Faults of the circumstances, not of the module: the slot stays VERIFIED. */
static bool is_circumstance(tim_status status) {
    return status == TIM_GOLDEN_ABSENT || status == TIM_ARENA_TOO_SMALL || status == TIM_MISALIGNED ||
           status == TIM_KIND_NOT_EXECUTABLE || status == TIM_NOT_STARTED;
}

tim_status tim_update_test_begin(tim_update *update, uint32_t slot, tim_module *module) {
    tim_status status = check_slot(update, slot, TIM_SLOT_VERIFIED);
    if (status != TIM_OK) return status;
    if (update->slots[slot].attempts >= max_attempts(update)) return fail_slot(update, slot, TIM_SELF_TEST_FAILED);
    status = tim_update_open(update, slot, module);
    if (status != TIM_OK) return fail_slot(update, slot, status);
    tim_slot slots[TIM_MAX_SLOTS];
    copy_slots(update, slots);
    slots[slot].attempts++;
    return commit(update, slots);
}

tim_status tim_update_test_end(tim_update *update, uint32_t slot, tim_status verdict) {
    tim_status status = check_slot(update, slot, TIM_SLOT_VERIFIED);
    if (status != TIM_OK) return status;
    if (update->slots[slot].attempts == 0) return TIM_STATE_INVALID; /* no test was begun */
    if (verdict == TIM_OK) return set_state(update, slot, TIM_SLOT_TESTED);
    if (!is_circumstance(verdict)) return fail_slot(update, slot, verdict);
    status = set_state(update, slot, TIM_SLOT_VERIFIED);
    return status == TIM_OK ? verdict : status;
}

tim_status tim_update_test(tim_update *update, uint32_t slot, uint8_t *arena, uint32_t arena_bytes) {
    tim_module module;
    tim_status status = tim_update_test_begin(update, slot, &module);
    if (status != TIM_OK) return status;
    status = tim_start(&module, arena, arena_bytes);
    if (status == TIM_OK) status = tim_self_test(&module, NULL);
    return tim_update_test_end(update, slot, status);
}

/* ---- activate ---- */

tim_status tim_update_activate(tim_update *update, uint32_t slot) {
    tim_status status = check_slot(update, slot, TIM_SLOT_TESTED);
    if (status != TIM_OK) return status;
    if (update->slots[slot].security_counter < update->counter) return TIM_DOWNGRADE;
    uint32_t active = find_sibling(update, slot, TIM_SLOT_ACTIVE);
    uint32_t previous = find_sibling(update, slot, TIM_SLOT_PREVIOUS);
    tim_slot slots[TIM_MAX_SLOTS];
    copy_slots(update, slots);
    if (active != NO_SLOT) {
        bool proven = slots[active].confirmed != 0 || previous == NO_SLOT;
        slots[active].state = proven ? TIM_SLOT_PREVIOUS : TIM_SLOT_TESTED;
        slots[active].confirmed = 0;
        slots[active].attempts = 0;
        if (proven && previous != NO_SLOT) make_empty(&slots[previous], TIM_OK);
    }
    slots[slot].state = TIM_SLOT_ACTIVE;
    slots[slot].confirmed = 0;
    slots[slot].attempts = 0;
    return commit(update, slots);
}

tim_status tim_update_confirm(tim_update *update, uint32_t slot) {
    tim_status status = check_slot(update, slot, TIM_SLOT_ACTIVE);
    if (status != TIM_OK) return status;
    uint32_t own = update->slots[slot].security_counter;
    uint32_t counter = own > update->counter ? own : update->counter;
    uint32_t previous = find_sibling(update, slot, TIM_SLOT_PREVIOUS);
    tim_slot slots[TIM_MAX_SLOTS];
    copy_slots(update, slots);
    slots[slot].confirmed = 1;
    slots[slot].attempts = 0;
    if (previous != NO_SLOT && slots[previous].security_counter < counter) make_empty(&slots[previous], TIM_DOWNGRADE);
    return tim_journal_commit(update, slots, counter);
}

tim_status tim_update_deactivate(tim_update *update, uint32_t slot) {
    tim_status status = check_slot(update, slot, TIM_SLOT_ACTIVE);
    return status == TIM_OK ? set_state(update, slot, TIM_SLOT_TESTED) : status;
}

tim_status tim_update_rollback(tim_update *update, uint32_t slot, tim_status error) {
    tim_status status = check_slot(update, slot, TIM_SLOT_ACTIVE);
    if (status != TIM_OK) return status;
    uint32_t previous = find_sibling(update, slot, TIM_SLOT_PREVIOUS);
    if (previous == NO_SLOT) return TIM_NOTHING_TO_ROLL_BACK;
    /* Before confirmation the module before it is what the device trusted a moment ago. Afterwards the counter rules. */
    if (update->slots[slot].confirmed != 0 && update->slots[previous].security_counter < update->counter) {
        return TIM_DOWNGRADE;
    }
    tim_module module;
    if (tim_update_open(update, previous, &module) != TIM_OK) return TIM_NOTHING_TO_ROLL_BACK;
    tim_slot slots[TIM_MAX_SLOTS];
    copy_slots(update, slots);
    make_empty(&slots[slot], error);
    slots[previous].state = TIM_SLOT_ACTIVE;
    slots[previous].confirmed = 1;
    slots[previous].attempts = 0;
    return commit(update, slots);
}

tim_status tim_update_erase(tim_update *update, uint32_t slot) {
    if (slot >= update->config->slot_count) return TIM_SLOT_INVALID;
    if (update->slots[slot].state == TIM_SLOT_ACTIVE) return TIM_STATE_INVALID;
    return fail_slot(update, slot, TIM_OK);
}
