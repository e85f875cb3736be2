/* Driver of the board's flash controller.
 *
 * Registers (base FW_CONTROLLER): 0x00 KEY, 0x04 OFFSET (from the start of flash), 0x08 COMMAND (1 erase page, 2 program
 * unit), 0x0C STATUS (0 done), 0x20.. DATA (one program unit). KEY must be written before each command. The controller
 * faults on an unaligned offset and on programming a unit that is not erased. */
#include "firmware.h"

#define REGISTER(offset) (*(volatile uint32_t *)(FW_CONTROLLER + (offset)))
#define KEY 0x45670123u
#define ERASE 1u
#define PROGRAM 2u

static int command(uint32_t offset, uint32_t what) {
    REGISTER(0x00) = KEY;
    REGISTER(0x04) = offset;
    REGISTER(0x08) = what;
    return REGISTER(0x0C) == 0 ? 0 : -1;
}

int fw_flash_erase(void *context, uint32_t offset) {
    (void)context;
    return command(offset, ERASE);
}

int fw_flash_program(void *context, uint32_t offset, const uint8_t *data, uint32_t size) {
    (void)context;
    for (uint32_t done = 0; done < size; done += FW_PROGRAM_BYTES) {
        for (uint32_t i = 0; i < FW_PROGRAM_BYTES; i += 4u) {
            uint32_t value;
            memcpy(&value, data + done + i, sizeof value);
            REGISTER(0x20 + i) = value;
        }
        if (command(offset + done, PROGRAM) != 0) return -1;
    }
    return 0;
}
