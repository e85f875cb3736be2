/* The journal of the update core; not for firmware. */
#ifndef TIM_JOURNAL_H
#define TIM_JOURNAL_H

#include "tim_update.h"

/* Find the newest whole record and load it; an empty journal gives empty slots. */
void tim_journal_load(tim_update *update);

/* Append a record with `slots` and `counter`; only then make them the state in RAM. */
tim_status tim_journal_commit(tim_update *update, const tim_slot *slots, uint32_t counter);

bool tim_flash_is_blank(const tim_flash *flash, uint32_t offset, uint32_t bytes);

/* Erase the pages that cover `bytes` from `offset` (page aligned), and look whether they are blank. */
tim_status tim_flash_erase(const tim_flash *flash, uint32_t offset, uint32_t bytes);

/* Program and read back. */
tim_status tim_flash_program(const tim_flash *flash, uint32_t offset, const uint8_t *data, uint32_t bytes);

#endif
