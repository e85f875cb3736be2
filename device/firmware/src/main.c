/* The firmware's loop: ring the doorbell, look into the mailbox, execute. */
#include "firmware.h"

#define DOORBELL (*(volatile uint32_t *)FW_DOORBELL)

__attribute__((section(".mailbox"), used)) fw_mailbox fw_box;
static fw_device device;

int fw_main(void);

int fw_main(void) {
    fw_boot(&device);
    fw_device_init(&device);
    fw_box.done = fw_box.sequence = 0;
    fw_box.magic = FW_MAILBOX_MAGIC;
    for (;;) {
        DOORBELL = 1; /* the CPU sleeps here until the host has something */
        volatile uint32_t *sequence = &fw_box.sequence;
        if (*sequence != fw_box.done) {
            fw_box.status = fw_execute(&device, &fw_box);
            *(volatile uint32_t *)&fw_box.done = *sequence;
        }
    }
}
