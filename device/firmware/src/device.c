/* The device: what happens at boot, which module is active, how RAM is shared.
 *
 * RAM, from low to high: .bss (mailbox, state), the pool for an arena, the stack that grows down from the top. What the
 * firmware itself needs of the stack (FW_STACK_BYTES, its deepest: signature checks) is set aside; a module's arena and
 * stack share the rest. */
#include "firmware.h"

#define ARENA_ALIGNMENT 64u

extern uint8_t fw_bss_end[];
extern uint8_t fw_stack_top[];

uint8_t *fw_arena(void) {
    return (uint8_t *)(((uintptr_t)fw_bss_end + ARENA_ALIGNMENT - 1u) & ~(uintptr_t)(ARENA_ALIGNMENT - 1u));
}

uint32_t fw_ram_free(void) { return (uint32_t)(fw_stack_top - fw_arena()) - FW_STACK_BYTES; }

tim_status fw_check_ram(const tim_module *module, uint32_t *need) {
    uint32_t stack = (module->stack_bytes + 15u) & ~15u;
    *need = module->arena_bytes + stack;
    bool fits = *need >= stack && *need <= fw_ram_free() && module->arena_alignment <= ARENA_ALIGNMENT;
    return fits ? TIM_OK : (tim_status)FW_NOT_ENOUGH_RAM;
}

void fw_device_configure(fw_device *device) {
    static const tim_region SLOTS[] = FW_SLOTS;
    tim_update_config *config = &device->config;
    config->flash.base = (const uint8_t *)FW_FLASH;
    config->flash.page_bytes = FW_PAGE_BYTES;
    config->flash.program_bytes = FW_PROGRAM_BYTES;
    config->flash.erase = fw_flash_erase;
    config->flash.program = fw_flash_program;
    config->platform = &device->platform;
    config->journal.offset = FW_JOURNAL;
    config->journal.bytes = FW_JOURNAL_BYTES;
    config->slot_count = sizeof SLOTS / sizeof SLOTS[0];
    memcpy(config->slots, SLOTS, sizeof SLOTS);
    device->platform.keys = device->keys;
    device->platform.key_count = fw_load_keys(device->keys);
#if defined(FW_BOARD)
    device->platform.kinds = 1u << TIM_FIRMWARE;
    /* Boot loader and application each count a start of a package that has not proved itself. */
    config->max_attempts = 6u;
#else
    device->platform.kinds = 1u << TIM_NATIVE;
#endif
    device->platform.isas = FW_ISAS;
    device->platform.features = FW_FEATURES;
}

static uint32_t sum_bytes(const tim_module *module, bool outputs) {
    uint32_t sum = 0;
    tim_tensor tensor;
    for (uint32_t i = 0; (outputs ? tim_output_info(module, i, &tensor) : tim_input_info(module, i, &tensor)) == TIM_OK; i++) {
        sum += tensor.bytes;
    }
    return sum;
}

static uint32_t find_active(const fw_device *device, bool confirmed) {
    for (uint32_t i = 0; i < device->config.slot_count; i++) {
        const tim_slot *slot = &device->update.slots[i];
        if (slot->state == TIM_SLOT_ACTIVE && (slot->confirmed != 0) == confirmed) return i;
    }
    return TIM_MAX_SLOTS;
}

static void keep_active(fw_device *device, uint32_t keep) {
    for (uint32_t i = 0; i < device->config.slot_count; i++) {
        if (i != keep && device->update.slots[i].state == TIM_SLOT_ACTIVE) tim_update_deactivate(&device->update, i);
    }
}

/* One module is active at a time. Where a power cut left two, of different names, the one not yet confirmed is the newer. */
static uint32_t settle_active(fw_device *device) {
    uint32_t fresh = find_active(device, false);
    uint32_t keep = fresh != TIM_MAX_SLOTS ? fresh : find_active(device, true);
    keep_active(device, keep);
    return keep;
}

void fw_device_bind_only(fw_device *device, uint32_t slot) {
    keep_active(device, slot);
    fw_device_bind(device);
}

/* Open the active module and bind its arena; without a sound one nothing is bound. */
void fw_device_bind(fw_device *device) {
    uint32_t need;
    device->active_slot = TIM_MAX_SLOTS;
    device->input_bytes = device->output_bytes = 0;
    uint32_t slot = settle_active(device);
    if (slot == TIM_MAX_SLOTS) return;
#if defined(FW_BOARD)
    /* What runs is the package that this code came in: another one that is active takes a reset. */
    if (!fw_runs_from(device, slot)) return;
#endif
    tim_status status = tim_update_open(&device->update, slot, &device->active);
    if (status == TIM_OK) status = fw_open_linked(device, &device->active);
    if (status == TIM_OK) status = fw_check_ram(&device->active, &need);
    if (status == TIM_OK) status = tim_start(&device->active, fw_arena(), device->active.arena_bytes);
    if (status != TIM_OK) {
        device->errors++;
        return;
    }
    device->active_slot = slot;
    device->input_bytes = sum_bytes(&device->active, false);
    device->output_bytes = sum_bytes(&device->active, true);
}

/* After a reset a module that was activated but has not yet proved itself runs its golden vectors again. */
static void prove_active(fw_device *device) {
    uint32_t slot = device->active_slot;
    if (slot == TIM_MAX_SLOTS || device->update.slots[slot].confirmed != 0) return;
    tim_status status = tim_self_test(&device->active, NULL);
    if (status == TIM_OK) {
        tim_update_confirm(&device->update, slot);
        return;
    }
    device->errors++;
    if (tim_update_rollback(&device->update, slot, status) != TIM_OK) tim_update_deactivate(&device->update, slot);
    fw_restart(); /* returns where the other module runs in this same firmware */
    fw_device_bind(device);
}

#if defined(FW_APPLICATION)
/* An application whose package is not in force, or whose module can't be bound, leaves the chip to the package before it,
 * or to the resident firmware. */
static void give_way(fw_device *device) {
    if (device->active_slot != TIM_MAX_SLOTS) return;
    for (uint32_t i = 0; i < device->config.slot_count; i++) {
        if (device->update.slots[i].state != TIM_SLOT_ACTIVE || !fw_runs_from(device, i)) continue;
        if (tim_update_rollback(&device->update, i, TIM_NOT_STARTED) != TIM_OK) tim_update_deactivate(&device->update, i);
    }
    fw_restart();
}
#endif

void fw_device_init(fw_device *device) {
    fw_device_configure(device);
    device->active_slot = TIM_MAX_SLOTS;
    device->boot_status = (uint32_t)tim_update_init(&device->update, &device->config);
    if (device->boot_status != TIM_OK) return;
    fw_device_bind(device);
#if defined(FW_APPLICATION)
    give_way(device);
#endif
    prove_active(device);
}
