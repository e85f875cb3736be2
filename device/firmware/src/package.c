/* Firmware packages: the native module inside, and the start of the application that came with it.
 *
 * A package is a module file of kind FIRMWARE whose payload begins with four words: magic, entry (offset of the
 * application's first instruction), offset and size of the linked module, which ends the payload and is a signed module
 * itself. The application runs in place: its code finds itself by the program counter, its RAM is fixed. */
#include "firmware.h"

#if defined(FW_BOARD)
static uint32_t word(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static bool is_for_this_board(const char *name) {
    static const char BOARD[] = FW_BOARD;
    return memcmp(name, BOARD, sizeof BOARD) == 0;
}

/* Offset and size are checked against the payload before anything is read or executed there. */
static tim_status check_package(const tim_module *package) {
    const uint8_t *head = package->payload;
    uint32_t bytes = package->payload_bytes;
    if (package->kind != TIM_FIRMWARE || !is_for_this_board(package->name)) return TIM_TARGET_UNSUPPORTED;
    if (bytes < FW_PACKAGE_HEAD_BYTES || word(head) != FW_PACKAGE_MAGIC) return TIM_ENTRY_INVALID;
    uint32_t entry = word(head + 4), module = word(head + 8), size = word(head + 12);
    if (module % 16u != 0 || module > bytes || size != bytes - module) return TIM_SIZE_MISMATCH;
    if (entry % 2u != 0 || entry < FW_PACKAGE_HEAD_BYTES || entry >= module) return TIM_ENTRY_INVALID;
    return TIM_OK;
}

tim_status fw_open_linked(const fw_device *device, tim_module *module) {
    tim_platform inside = device->platform;
    const uint8_t *head = module->payload;
    tim_status status = check_package(module);
    if (status != TIM_OK) return status;
    inside.kinds = 1u << TIM_NATIVE;
    return tim_open(head + word(head + 8), word(head + 12), &inside, 0, module);
}

bool fw_runs_from(const fw_device *device, uint32_t slot) {
    uintptr_t here = (uintptr_t)fw_reset;
    uintptr_t start = (uintptr_t)device->config.flash.base + device->config.slots[slot].offset;
    return here >= start && here - start < device->config.slots[slot].bytes;
}

void fw_restart(void) {
    *(volatile uint32_t *)0xE000ED0Cu = 0x05FA0004u; /* AIRCR: SYSRESETREQ */
    for (;;) __asm__ volatile("");
}

#if defined(FW_APPLICATION)
void fw_boot(fw_device *device) { (void)device; }
#else
extern uint8_t fw_stack_top[];

static void start_application(const tim_module *package) {
    uintptr_t entry = (uintptr_t)package->payload + word(package->payload + 4);
    __asm__ volatile("mov sp, %0\n bx %1" ::"r"(fw_stack_top), "r"(entry | 1u) : "memory");
}

static bool find_active(const fw_device *device, uint32_t *slot) {
    for (*slot = 0; *slot < device->config.slot_count; ++*slot) {
        if (device->update.slots[*slot].state == TIM_SLOT_ACTIVE) return true;
    }
    return false;
}

/* A package that decayed in flash gives way to the one before it; without one the resident firmware goes on, which can
 * take another. */
void fw_boot(fw_device *device) {
    tim_module package;
    uint32_t slot;
    fw_device_configure(device);
    if (tim_update_init(&device->update, &device->config) != TIM_OK) return;
    while (find_active(device, &slot)) {
        tim_status status = tim_update_open(&device->update, slot, &package);
        if (status == TIM_OK) status = check_package(&package);
        if (status == TIM_OK) start_application(&package);
        if (tim_update_rollback(&device->update, slot, status) != TIM_OK &&
            tim_update_deactivate(&device->update, slot) != TIM_OK) {
            return;
        }
    }
}
#endif
#else
tim_status fw_open_linked(const fw_device *device, tim_module *module) {
    (void)device;
    (void)module;
    return TIM_OK;
}

void fw_boot(fw_device *device) { (void)device; }
void fw_restart(void) {}
#endif
