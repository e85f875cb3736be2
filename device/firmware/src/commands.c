/* What each mailbox command does. Arguments come from outside and are checked here. */
#include "firmware.h"

static bool slot_is_valid(const fw_device *device, uint32_t slot) { return slot < device->config.slot_count; }

static const uint8_t *slot_image(const fw_device *device, uint32_t slot) {
    return device->config.flash.base + device->config.slots[slot].offset;
}

static void forget_if_bound(fw_device *device, uint32_t slot) {
    if (device->active_slot == slot) fw_device_bind(device);
}

static uint32_t info(const fw_device *device, fw_mailbox *box) {
    fw_info answer;
    memset(&answer, 0, sizeof answer);
    answer.ram_free = fw_ram_free();
    answer.slot_count = device->config.slot_count;
    answer.active = device->active_slot == TIM_MAX_SLOTS ? 0xFFFFFFFFu : device->active_slot;
    answer.counter = device->update.counter;
    answer.invocations = device->invocations;
    answer.errors = device->errors;
    answer.boot_status = device->boot_status;
    answer.input_bytes = device->input_bytes;
    answer.output_bytes = device->output_bytes;
    answer.key_count = device->platform.key_count;
    memcpy(box->data, &answer, sizeof answer);
    return TIM_OK;
}

static uint32_t slot_info(const fw_device *device, fw_mailbox *box, uint32_t slot) {
    const tim_slot *state = &device->update.slots[slot];
    fw_slot_info answer;
    memset(&answer, 0, sizeof answer);
    answer.state = state->state;
    answer.size = state->size;
    answer.received = tim_update_received(&device->update, slot);
    answer.security_counter = state->security_counter;
    answer.last_error = state->last_error;
    answer.confirmed = state->confirmed;
    const uint8_t *digest = fw_label_digest(device, slot);
    if (digest != NULL) {
        answer.digest_known = 1;
        memcpy(answer.digest, digest, FW_DIGEST_BYTES);
    }
    if (state->state >= TIM_SLOT_VERIFIED) { /* checked text, NUL-terminated */
        memcpy(answer.name, slot_image(device, slot) + 64, sizeof answer.name);
        memcpy(answer.version, slot_image(device, slot) + 96, sizeof answer.version);
    }
    memcpy(box->data, &answer, sizeof answer);
    return TIM_OK;
}

static uint32_t begin(fw_device *device, fw_mailbox *box, uint32_t slot, uint32_t size) {
    uint8_t digest[FW_DIGEST_BYTES];
    memcpy(digest, box->data, sizeof digest);
    tim_status status = tim_update_begin(&device->update, slot, size, digest, &box->result[0]);
    return (uint32_t)(status == TIM_OK ? fw_label_write(device, slot, size, digest) : status);
}

/* A push of a package (object 5) brings no digest beforehand; what is signed judges it then. */
static bool is_unknown(const uint8_t *digest) { return fw_is_unannounced(digest, FW_DIGEST_BYTES); }

static uint32_t verify(fw_device *device, fw_mailbox *box, uint32_t slot) {
    uint8_t digest[FW_DIGEST_BYTES];
    tim_module module;
    uint32_t state = device->update.slots[slot].state;
    if (state >= TIM_SLOT_VERIFIED) return TIM_OK; /* repeatable: it was verified before */
    if (state != TIM_SLOT_WRITTEN) return TIM_STATE_INVALID;
    const uint8_t *announced = fw_label_digest(device, slot);
    fw_sha256(slot_image(device, slot), device->update.slots[slot].size, digest);
    if (announced == NULL || (!is_unknown(announced) && memcmp(announced, digest, sizeof digest) != 0)) {
        tim_status status = tim_update_erase(&device->update, slot);
        return status == TIM_OK ? (uint32_t)FW_IMAGE_DIFFERS : (uint32_t)status;
    }
    tim_status status = is_unknown(announced) ? fw_label_write(device, slot, device->update.slots[slot].size, digest) : TIM_OK;
    if (status == TIM_OK) status = tim_update_verify(&device->update, slot);
    if (status != TIM_OK) return (uint32_t)status;
    status = tim_parse(slot_image(device, slot), device->update.slots[slot].size, &module);
    if (status == TIM_OK) status = fw_open_linked(device, &module);
    if (status == TIM_OK) status = fw_check_ram(&module, &box->result[0]);
    if (status == TIM_OK) return TIM_OK;
    box->result[1] = fw_ram_free();
    tim_update_erase(&device->update, slot);
    return (uint32_t)status;
}

/* A slot that is TESTED or more is tested again without changing its state, but a failure takes it out of use. */
static uint32_t test_again(fw_device *device, fw_mailbox *box, uint32_t slot) {
    tim_module module;
    tim_status status = tim_update_open(&device->update, slot, &module);
    if (status == TIM_OK) status = fw_open_linked(device, &module);
    if (status == TIM_OK) status = tim_start(&module, fw_arena(), module.arena_bytes);
    if (status == TIM_OK) {
        box->result[0] = tim_golden_count(&module);
        status = tim_self_test(&module, &box->result[1]);
    }
    if (status != TIM_OK && device->update.slots[slot].state != TIM_SLOT_ACTIVE) tim_update_erase(&device->update, slot);
    return (uint32_t)status;
}

static uint32_t test(fw_device *device, fw_mailbox *box, uint32_t slot) {
    if (device->update.slots[slot].state > TIM_SLOT_VERIFIED) return test_again(device, box, slot);
    tim_module module;
    tim_status status = tim_update_test_begin(&device->update, slot, &module);
    if (status != TIM_OK) return (uint32_t)status;
    status = fw_open_linked(device, &module);
    if (status == TIM_OK) status = tim_start(&module, fw_arena(), module.arena_bytes);
    if (status == TIM_OK) {
        box->result[0] = tim_golden_count(&module);
        status = tim_self_test(&module, &box->result[1]);
    }
    return (uint32_t)tim_update_test_end(&device->update, slot, status);
}

/* A slot kept for rollback is activated like any other: checked and tested anew. */
static tim_status make_tested(fw_device *device, uint32_t slot) {
    const tim_slot *state = &device->update.slots[slot];
    uint8_t id[TIM_DOWNLOAD_ID_BYTES];
    uint32_t there;
    memcpy(id, state->download_id, sizeof id);
    tim_status status = tim_update_begin(&device->update, slot, state->size, id, &there);
    if (status == TIM_OK) status = tim_update_verify(&device->update, slot);
    tim_module module;
    if (status == TIM_OK) status = tim_update_open(&device->update, slot, &module);
    if (status == TIM_OK) status = tim_update_test(&device->update, slot, fw_arena(), module.arena_bytes);
    return status;
}

static uint32_t activate(fw_device *device, uint32_t slot) {
    if (device->update.slots[slot].state == TIM_SLOT_ACTIVE) return TIM_OK;
    tim_status status = TIM_OK;
    if (device->update.slots[slot].state == TIM_SLOT_PREVIOUS) status = make_tested(device, slot);
    if (status == TIM_OK) status = tim_update_activate(&device->update, slot);
#if !defined(FW_BOARD) /* a package is in force from the next reset on; until then the one before runs */
    if (status == TIM_OK) fw_device_bind_only(device, slot);
#endif
    return (uint32_t)status;
}

static uint32_t deactivate(fw_device *device, uint32_t slot) {
    tim_status status = tim_update_deactivate(&device->update, slot);
    if (status == TIM_OK) forget_if_bound(device, slot);
    return (uint32_t)status;
}

static uint32_t rollback(fw_device *device, fw_mailbox *box) {
    if (device->active_slot == TIM_MAX_SLOTS) return FW_NOTHING_ACTIVE;
    tim_status status = tim_update_rollback(&device->update, device->active_slot, TIM_OK);
    if (status != TIM_OK) return (uint32_t)status;
    fw_device_bind(device);
    box->result[0] = device->active_slot;
    return device->active_slot == TIM_MAX_SLOTS ? (uint32_t)FW_NOTHING_ACTIVE : (uint32_t)TIM_OK;
}

/* Copy between the mailbox and the tensors that hold bytes [offset, offset + bytes) of all inputs or outputs in a row. */
static uint32_t transfer(fw_device *device, fw_mailbox *box, uint32_t offset, uint32_t bytes, bool outputs) {
    uint32_t total = outputs ? device->output_bytes : device->input_bytes;
    if (device->active_slot == TIM_MAX_SLOTS) return FW_NOTHING_ACTIVE;
    if (bytes > FW_DATA_BYTES || offset > total || bytes > total - offset) return FW_BAD_ARGUMENT;
    uint8_t *data = box->data;
    uint32_t start = 0;
    tim_tensor tensor;
    for (uint32_t i = 0; bytes > 0; i++) {
        tim_status status = outputs ? tim_output_info(&device->active, i, &tensor) : tim_input_info(&device->active, i, &tensor);
        if (status != TIM_OK) return (uint32_t)status;
        if (offset < start + tensor.bytes) {
            uint32_t skip = offset - start;
            uint32_t take = tensor.bytes - skip < bytes ? tensor.bytes - skip : bytes;
            if (outputs) memcpy(data, tim_output(&device->active, i) + skip, take);
            else memcpy(tim_input(&device->active, i) + skip, data, take);
            data += take;
            offset += take;
            bytes -= take;
        }
        start += tensor.bytes;
    }
    return TIM_OK;
}

static uint32_t run(fw_device *device, fw_mailbox *box) {
    if (device->active_slot == TIM_MAX_SLOTS) return FW_NOTHING_ACTIVE;
    int32_t error = 0;
    tim_status status = tim_invoke(&device->active, &error);
    box->result[0] = device->output_bytes;
    box->result[1] = (uint32_t)error;
    if (status != TIM_OK) {
        device->errors++;
        return (uint32_t)status;
    }
    device->invocations++;
    if (device->update.slots[device->active_slot].confirmed == 0) {
        return (uint32_t)tim_update_confirm(&device->update, device->active_slot);
    }
    return TIM_OK;
}

uint32_t fw_execute(fw_device *device, fw_mailbox *box) {
    uint32_t a = box->argument[0];
    uint32_t b = box->argument[1];
    bool with_slot = box->command >= FW_SLOT && box->command <= FW_ERASE;
    memset(box->result, 0, sizeof box->result);
    if (with_slot && !slot_is_valid(device, a)) return TIM_SLOT_INVALID;
    if (device->boot_status != TIM_OK && box->command != FW_INFO) return device->boot_status;
    switch (box->command) {
        case FW_INFO: return info(device, box);
        case FW_SLOT: return slot_info(device, box, a);
        case FW_BEGIN: return begin(device, box, a, b);
        case FW_WRITE:
            if (box->argument[2] > FW_DATA_BYTES) return FW_BAD_ARGUMENT;
            return (uint32_t)tim_update_write(&device->update, a, b, box->data, box->argument[2]);
        case FW_VERIFY: return verify(device, box, a);
        case FW_TEST: return test(device, box, a);
        case FW_ACTIVATE: return activate(device, a);
        case FW_DEACTIVATE: return deactivate(device, a);
        case FW_ERASE: return (uint32_t)tim_update_erase(&device->update, a);
        case FW_ROLLBACK: return rollback(device, box);
        case FW_INPUT: return transfer(device, box, a, b, false);
        case FW_RUN: return run(device, box);
        case FW_OUTPUT: return transfer(device, box, a, b, true);
        default: return FW_UNKNOWN_COMMAND;
    }
}
