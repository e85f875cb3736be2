/* Update core: module slots in flash that survive a power cut at any step.
 *
 * One record holds the state of all slots; a transition appends one record to a journal of two halves, so it
 * happens wholly or not at all. Flash is only ever erased by page and programmed once per unit between erases.
 *
 * Life of a slot:
 *   EMPTY -begin-> WRITING -write…-> WRITTEN -verify-> VERIFIED -test-> TESTED -activate-> ACTIVE
 *   ACTIVE -a newer module of the same name is activated-> PREVIOUS -rollback-> ACTIVE
 *   ACTIVE -deactivate-> TESTED;  every state but ACTIVE -erase or failure-> EMPTY
 */
#ifndef TIM_UPDATE_H
#define TIM_UPDATE_H

#include "tim.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifndef TIM_MAX_SLOTS
#define TIM_MAX_SLOTS 4u
#endif

#define TIM_DOWNLOAD_ID_BYTES 16u
#define TIM_JOURNAL_RECORD_BYTES (64u + 32u * TIM_MAX_SLOTS)

/* Flash as the firmware has it. Offsets count from `base`, where it can be read as memory.
 * Both functions return 0 when done; they block until the flash is ready. */
typedef struct tim_flash {
    const uint8_t *base;
    uint32_t page_bytes;     /* erase unit; a power of two, >= 64 */
    uint32_t program_bytes;  /* program unit: 1, 2, 4, 8, 16 or 32; offset and size of `program` are multiples */
    int (*erase)(void *context, uint32_t offset);  /* one page, to 0xFF */
    int (*program)(void *context, uint32_t offset, const uint8_t *data, uint32_t size);
    void *context;
} tim_flash;

/* A region of flash, page aligned. */
typedef struct tim_region {
    uint32_t offset;
    uint32_t bytes;
} tim_region;

typedef struct tim_update_config {
    tim_flash flash;
    const tim_platform *platform;
    tim_region journal;                /* two halves, each whole pages and >= 2 records (TIM_JOURNAL_RECORD_BYTES) */
    tim_region slots[TIM_MAX_SLOTS];
    uint32_t slot_count;
    uint32_t minimum_counter;          /* the firmware's own floor under the security counter */
    uint8_t max_attempts;              /* self-tests or unconfirmed boots that may end in a reset; 0 means 3 */
} tim_update_config;

typedef enum tim_slot_state {
    TIM_SLOT_EMPTY = 0,
    TIM_SLOT_WRITING = 1,
    TIM_SLOT_WRITTEN = 2,
    TIM_SLOT_VERIFIED = 3,
    TIM_SLOT_TESTED = 4,
    TIM_SLOT_ACTIVE = 5,
    TIM_SLOT_PREVIOUS = 6
} tim_slot_state;

typedef struct tim_slot {
    uint8_t state;                     /* tim_slot_state */
    uint8_t confirmed;                 /* ACTIVE: tim_update_confirm was called */
    uint8_t attempts;                  /* self-tests (VERIFIED) or boots (ACTIVE, unconfirmed) begun but not ended well */
    uint8_t erased;                    /* WRITING: the slot's pages have been erased */
    uint8_t last_error;                /* tim_status of the last failure, until the next begin */
    uint8_t reserved[3];
    uint32_t size;                     /* image bytes */
    uint32_t security_counter;         /* of the image, from VERIFIED on */
    uint8_t download_id[TIM_DOWNLOAD_ID_BYTES];
} tim_slot;

/* The core's RAM: one per device. Read fields freely, change them only through the functions. */
typedef struct tim_update {
    const tim_update_config *config;
    uint32_t sequence;                 /* of the journal's newest record */
    uint32_t journal_used;             /* bytes used in the journal half that is written to */
    uint32_t counter;                  /* device's security counter: modules below it are refused */
    uint32_t received;                 /* bytes of the download in progress that are in flash */
    uint32_t pending;                  /* bytes in `unit`, not yet programmed */
    uint8_t writing_slot;              /* slot whose download was begun since the reset; TIM_MAX_SLOTS: none */
    uint8_t journal_half;              /* the half that is written to */
    uint8_t newest_half;               /* the half that holds the newest record */
    bool head_checked;
    uint8_t unit[32];                  /* collects a program unit */
    tim_slot slots[TIM_MAX_SLOTS];
} tim_update;

/* Read the journal and bring every slot into a state from which work can go on. Call once after each reset.
 * Counts a boot for each unconfirmed ACTIVE slot and rolls it back when there were too many. Repeatable. */
tim_status tim_update_init(tim_update *update, const tim_update_config *config);

/* Begin (or go on with) a download of `size` bytes into `slot`. `download_id` names the bytes (start of the content
 * digest). The same id and size after a power cut continue: `*resume_offset` says from where (0 for a fresh one).
 * Bytes that are complete already (WRITTEN to TESTED, or PREVIOUS, which becomes WRITTEN) give `*resume_offset` = size.
 * Allowed in any state but ACTIVE. One download at a time: one in another slot is given up. */
tim_status tim_update_begin(tim_update *update, uint32_t slot, uint32_t size,
                            const uint8_t download_id[TIM_DOWNLOAD_ID_BYTES], uint32_t *resume_offset);

/* Add bytes; `offset` must be where the download stands (tim_update_received). Any size. Once the head is there it is
 * judged, and a refused module empties the slot. The last byte makes the slot WRITTEN. */
tim_status tim_update_write(tim_update *update, uint32_t slot, uint32_t offset, const uint8_t *data, uint32_t size);

/* Bytes of the slot's download that have been taken (WRITING), or the image's size (later states). */
uint32_t tim_update_received(const tim_update *update, uint32_t slot);

/* WRITTEN -> VERIFIED: whole image checked (tim_open). A failure empties the slot and is kept as its last_error. */
tim_status tim_update_verify(tim_update *update, uint32_t slot);

/* VERIFIED -> TESTED: golden self-test in the given arena. A failure empties the slot. A reset during the test is
 * counted; too many empty the slot. TIM_GOLDEN_ABSENT leaves the slot VERIFIED: it can't be activated.
 * TIM_ARENA_TOO_SMALL, TIM_MISALIGNED leave it VERIFIED too. */
tim_status tim_update_test(tim_update *update, uint32_t slot, uint8_t *arena, uint32_t arena_bytes);

/* For payload kinds that the firmware runs itself: the same bookkeeping around the firmware's own test.
 * test_begin counts the attempt and opens the module; test_end takes the verdict. */
tim_status tim_update_test_begin(tim_update *update, uint32_t slot, tim_module *module);
tim_status tim_update_test_end(tim_update *update, uint32_t slot, tim_status verdict);

/* TESTED -> ACTIVE, not yet confirmed. In the same record an ACTIVE module of the same name becomes PREVIOUS and an older
 * PREVIOUS becomes EMPTY; but an ACTIVE one that never was confirmed goes back to TESTED where there is a PREVIOUS. */
tim_status tim_update_activate(tim_update *update, uint32_t slot);

/* The ACTIVE module proved itself: it stays after resets, and the device's security counter rises to the module's.
 * A PREVIOUS module of the same name whose counter is now too low becomes EMPTY. */
tim_status tim_update_confirm(tim_update *update, uint32_t slot);

/* ACTIVE -> TESTED: the module stays in the slot and is no longer run. */
tim_status tim_update_deactivate(tim_update *update, uint32_t slot);

/* ACTIVE -> EMPTY, and the PREVIOUS module of the same name, checked again, -> ACTIVE, confirmed. Without a sound one:
 * TIM_NOTHING_TO_ROLL_BACK; below the device's counter: TIM_DOWNGRADE; the slot then stays ACTIVE. `error` is kept as
 * the slot's last_error. */
tim_status tim_update_rollback(tim_update *update, uint32_t slot, tim_status error);

/* Any state but ACTIVE -> EMPTY. */
tim_status tim_update_erase(tim_update *update, uint32_t slot);

/* Open the module in `slot` (VERIFIED and later), checked again in full: flash may have decayed. The security counter is
 * held against a module when it is verified, activated or rolled back to, not here: an ACTIVE module goes on running. */
tim_status tim_update_open(const tim_update *update, uint32_t slot, tim_module *module);

const char *tim_slot_state_name(tim_slot_state state);

#ifdef __cplusplus
}
#endif
#endif
