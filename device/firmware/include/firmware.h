/* Reference firmware of the virtual board: the update core behind a mailbox in RAM.
 *
 * The host writes a command into the mailbox and lets the CPU run; the firmware executes it and rings the doorbell.
 * Geometry comes from the build (-DFW_...); `virtual_board_build.py` makes it from the board's data file. */
#ifndef FIRMWARE_H
#define FIRMWARE_H

#include "tim_update.h"

#define FW_MAILBOX_MAGIC 0x31424D46u /* "FMB1" */
#define FW_DATA_BYTES 1024u
#define FW_LABEL_MAGIC 0x4C42414Cu /* "LABL" */
#define FW_KEYS_MAGIC 0x5359454Bu  /* "KEYS" */
#define FW_MAX_KEYS 4u
#define FW_DIGEST_BYTES 32u
#define FW_PACKAGE_MAGIC 0x31574654u /* "TFW1" */
#define FW_PACKAGE_HEAD_BYTES 16u

/* Static firmware (spec/inference-module.md, section 14): FW_BOARD names the board, whose slots then hold whole firmware
 * packages with a module linked in. Such a board is built twice: as its resident boot loader, and with FW_APPLICATION as
 * the application of a package, which runs in place at any address of flash. */

enum fw_command {
    FW_INFO = 1,
    FW_SLOT,       /* argument 0: slot */
    FW_BEGIN,      /* slot, size; data: sha256 of the image; result 0: bytes that are there already */
    FW_WRITE,      /* slot, offset, bytes; data */
    FW_VERIFY,     /* slot */
    FW_TEST,       /* slot; result 0: vectors, 1: first failing vector */
    FW_ACTIVATE,   /* slot */
    FW_DEACTIVATE, /* slot */
    FW_ERASE,      /* slot */
    FW_ROLLBACK,   /* result 0: slot that is active now */
    FW_INPUT,      /* offset into the concatenated inputs, bytes; data */
    FW_RUN,        /* result 0: bytes of the concatenated outputs, 1: what the payload returned */
    FW_OUTPUT      /* offset into the concatenated outputs, bytes; gives data */
};

/* Beside tim_status. */
enum fw_status {
    FW_NOT_ENOUGH_RAM = 128, /* result 0: bytes needed, 1: bytes there */
    FW_IMAGE_DIFFERS = 129,  /* sha256 of the image is not the one that was announced */
    FW_NOTHING_ACTIVE = 130,
    FW_BAD_ARGUMENT = 131,
    FW_UNKNOWN_COMMAND = 132
};

typedef struct fw_mailbox {
    uint32_t magic;
    uint32_t sequence; /* written by the host: a new number is a new command */
    uint32_t done;     /* written by the firmware: the last number that was executed */
    uint32_t command;
    uint32_t argument[4];
    uint32_t status;
    uint32_t result[4];
    uint32_t reserved[3];
    uint8_t data[FW_DATA_BYTES];
} fw_mailbox;

/* Answer of FW_INFO, in `data`. */
typedef struct fw_info {
    uint32_t ram_free;   /* bytes for a module's arena and stack together */
    uint32_t slot_count;
    uint32_t active;     /* slot, or 0xFFFFFFFF */
    uint32_t counter;    /* security counter of the device */
    uint32_t invocations;
    uint32_t errors;
    uint32_t boot_status; /* tim_status of tim_update_init */
    uint32_t input_bytes; /* of the active module, 0 without one */
    uint32_t output_bytes;
    uint32_t key_count;
} fw_info;

/* Answer of FW_SLOT, in `data`. */
typedef struct fw_slot_info {
    uint32_t state; /* tim_slot_state */
    uint32_t size;
    uint32_t received;
    uint32_t security_counter;
    uint32_t last_error;
    uint32_t confirmed;
    uint32_t digest_known;
    uint8_t digest[FW_DIGEST_BYTES];
    uint8_t name[32];
    uint8_t version[16];
} fw_slot_info;

/* The firmware's RAM; one instance. */
typedef struct fw_device {
    tim_update update;
    tim_update_config config;
    tim_platform platform;
    tim_key keys[FW_MAX_KEYS];
    tim_module active;
    uint32_t active_slot; /* TIM_MAX_SLOTS: none */
    uint32_t input_bytes;
    uint32_t output_bytes;
    uint32_t invocations;
    uint32_t errors;
    uint32_t boot_status;
} fw_device;

/* flash.c */
int fw_flash_erase(void *context, uint32_t offset);
int fw_flash_program(void *context, uint32_t offset, const uint8_t *data, uint32_t size);

/* label.c: the full digest of what each slot holds, and the keys that were provisioned */
tim_status fw_label_write(const fw_device *device, uint32_t slot, uint32_t size, const uint8_t *digest);
const uint8_t *fw_label_digest(const fw_device *device, uint32_t slot);
uint32_t fw_load_keys(tim_key *keys);
/* All zero: a push into a board with static firmware, whose digest is not told beforehand. Never so on other boards. */
bool fw_is_unannounced(const uint8_t *digest, uint32_t size);

/* sha256.c (FIPS 180-4) */
void fw_sha256(const uint8_t *data, uint32_t size, uint8_t digest[FW_DIGEST_BYTES]);

/* package.c: nothing but `*module` unchanged on a board that takes modules alone */
tim_status fw_open_linked(const fw_device *device, tim_module *module); /* the module that a package brings */
void fw_boot(fw_device *device);  /* resident: starts the application of the active package; returns without one */
bool fw_runs_from(const fw_device *device, uint32_t slot);
void fw_restart(void);            /* reset of the whole chip; does not return */

/* start.c */
void fw_reset(void);

/* device.c */
void fw_device_configure(fw_device *device);
void fw_device_init(fw_device *device);
void fw_device_bind(fw_device *device);
void fw_device_bind_only(fw_device *device, uint32_t slot); /* takes every other slot out of use first */
uint8_t *fw_arena(void);
uint32_t fw_ram_free(void);
tim_status fw_check_ram(const tim_module *module, uint32_t *need);
uint32_t fw_execute(fw_device *device, fw_mailbox *box);

/* The three functions that the loader wants, and what compilers call by themselves. */
void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *a, const void *b, size_t size);

#endif
