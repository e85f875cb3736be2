/* Observer of a native payload inside QEMU: counts its instructions, checks every data access, ends the emulator.
 *
 * It is loaded into qemu-system-arm as a TCG plugin; the declarations below are those of QEMU's documented plugin interface
 * (docs/devel/tcg-plugins), of which it uses only what has not changed since version 1. Arguments: payload=, size=, back=
 * (where the payload returns to), handler= (of faults), done= (end of the harness), limit=, image= (the payload's file),
 * out= (result file), and three windows as stack=begin:end, ro=begin:end, arena=begin:end.
 *
 * The result file: 12 words of 64 bits, see `header`, then for each halfword of the payload: executions, jumps away from it,
 * and six sums of bytes: read and written in stack, payload and arena.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*translated_fn)(uint64_t, struct qemu_plugin_tb *);
typedef void (*executed_fn)(unsigned, void *);
typedef void (*accessed_fn)(unsigned, uint32_t, uint64_t, void *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t, translated_fn);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, executed_fn, int, void *);
extern void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, accessed_fn, int, int, void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
extern unsigned qemu_plugin_mem_size_shift(uint32_t);
extern bool qemu_plugin_mem_is_store(uint32_t);
enum { NO_REGISTERS = 0, READS_AND_WRITES = 3 };

#ifndef PLUGIN_VERSION
#define PLUGIN_VERSION 1
#endif
EXPORT int qemu_plugin_version = PLUGIN_VERSION;

enum { DONE = 1, LIMIT, RANGE, FETCH, FAULT, SLEEP };
enum { STACK, PAYLOAD, ARENA, WINDOWS };
struct window { uint64_t begin, end; };

static struct {
  uint64_t reason, pc, address, size, store, instructions, lowest_stack_write, arena_end, returned, halves, spare[2];
} header;
static struct window windows[WINDOWS];
static uint64_t payload, size, back, handler, done, limit, expected, previous;
static uint64_t *executed, *taken, *moved;
static uint8_t *image;
static char out[4096];
static bool inside, faulted;

static void finish(uint64_t reason) {
  FILE *file = fopen(out, "wb");
  header.reason = reason;
  if (file) {
    fwrite(&header, sizeof header, 1, file);
    fwrite(executed, 8, header.halves, file);
    fwrite(taken, 8, header.halves, file);
    fwrite(moved, 48, header.halves, file);
    fclose(file);
  }
  _exit(0);
}

static void on_payload(unsigned cpu, void *data) {
  uint64_t offset = (uintptr_t)data & 0xffffffff, bytes = (uintptr_t)data >> 32, pc = payload + offset;
  (void)cpu;
  header.pc = pc;
  if (inside && pc != expected) taken[previous] += 1;
  inside = true;
  if (header.instructions == limit) finish(LIMIT);
  header.instructions += 1;
  executed[offset / 2] += 1;
  previous = offset / 2;
  expected = pc + bytes;
}

static void on_sleep(unsigned cpu, void *data) {
  (void)cpu, (void)data;
  finish(SLEEP);
}

static void on_other(unsigned cpu, void *data) {
  uint64_t pc = (uintptr_t)data;
  (void)cpu;
  if (!inside) {
    if (pc == done) finish(faulted ? FAULT : DONE);
    return;
  }
  if (pc == back) {
    inside = false;
    header.returned = 1;
  } else if (pc == handler) {
    inside = false;
    faulted = true;
  } else {
    header.address = pc;
    finish(FETCH);
  }
}

static void on_access(unsigned cpu, uint32_t info, uint64_t address, void *data) {
  uint64_t bytes = (uint64_t)1 << qemu_plugin_mem_size_shift(info), end = address + bytes;
  uint64_t offset = (uintptr_t)data & 0xffffffff;
  bool store = qemu_plugin_mem_is_store(info);
  (void)cpu;
  for (int i = 0; i < WINDOWS; ++i) {
    if (address < windows[i].begin || end > windows[i].end || (store && i == PAYLOAD)) continue;
    moved[6 * (offset / 2) + 2 * i + store] += bytes;
    if (i == STACK && store && address < header.lowest_stack_write) header.lowest_stack_write = address;
    if (i == ARENA && end > header.arena_end) header.arena_end = end;
    return;
  }
  header.address = address;
  header.size = bytes;
  header.store = store;
  for (int i = 0; i < WINDOWS; ++i) /* the first byte that is not allowed */
    if ((!store || i != PAYLOAD) && address >= windows[i].begin && address < windows[i].end)
      header.address = windows[i].end;
  header.pc = payload + offset;
  finish(RANGE);
}

static void on_translation(uint64_t id, struct qemu_plugin_tb *block) {
  size_t count = qemu_plugin_tb_n_insns(block);
  (void)id;
  for (size_t i = 0; i < count; ++i) {
    struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(block, i);
    uint64_t pc = qemu_plugin_insn_vaddr(insn), offset = pc - payload;
    if (offset >= size) {
      qemu_plugin_register_vcpu_insn_exec_cb(insn, on_other, NO_REGISTERS, (void *)(uintptr_t)pc);
      continue;
    }
    unsigned first = image[offset] | image[offset + 1] << 8, second = image[offset + 2] | image[offset + 3] << 8;
    /* QEMU's own figure also counts what it looked at behind the last instruction of a page. */
    uint64_t bytes = first >> 11 >= 0x1d ? 4 : 2;
    void *data = (void *)(uintptr_t)(offset | bytes << 32);
    qemu_plugin_register_vcpu_insn_exec_cb(insn, on_payload, NO_REGISTERS, data);
    qemu_plugin_register_vcpu_mem_cb(insn, on_access, NO_REGISTERS, READS_AND_WRITES, data);
    bool narrow = (first & 0xffef) == 0xbf20, wide = first == 0xf3af && (second & 0xfffe) == 0x8002;
    if (narrow || wide) /* WFE and WFI: nothing would ever wake it */
      qemu_plugin_register_vcpu_insn_exec_cb(insn, on_sleep, NO_REGISTERS, NULL);
  }
}

static void window_of(struct window *window, const char *text) {
  char *rest;
  window->begin = strtoull(text, &rest, 0);
  window->end = strtoull(rest + 1, NULL, 0);
}

static bool load_image(const char *path) {
  FILE *file = fopen(path, "rb");
  image = calloc(size + 4, 1);
  bool read = file && image && fread(image, 1, size, file) == size;
  if (file) fclose(file);
  return read;
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv) {
  const char *path = "";
  (void)info;
  for (int i = 0; i < argc; ++i) {
    char *value = strchr(argv[i], '=');
    if (!value) return -1;
    *value++ = 0;
    struct { const char *name; uint64_t *into; } numbers[] = {
      {"payload", &payload}, {"size", &size}, {"back", &back}, {"handler", &handler}, {"done", &done}, {"limit", &limit}};
    for (size_t n = 0; n < sizeof numbers / sizeof *numbers; ++n)
      if (!strcmp(argv[i], numbers[n].name)) *numbers[n].into = strtoull(value, NULL, 0);
    if (!strcmp(argv[i], "stack")) window_of(&windows[STACK], value);
    if (!strcmp(argv[i], "ro")) window_of(&windows[PAYLOAD], value);
    if (!strcmp(argv[i], "arena")) window_of(&windows[ARENA], value);
    if (!strcmp(argv[i], "out")) snprintf(out, sizeof out, "%s", value);
    if (!strcmp(argv[i], "image")) path = value;
  }
  header.halves = (size + 1) / 2;
  header.lowest_stack_write = windows[STACK].end;
  executed = calloc(header.halves + 1, 8);
  taken = calloc(header.halves + 1, 8);
  moved = calloc(header.halves + 1, 48);
  if (!size || !executed || !taken || !moved || !load_image(path)) return -1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  return 0;
}
