/* Native observers of the simulated CPU: what they see is exact, and they cost nanoseconds instead of microseconds.
 *
 * One `sim_state` belongs to one machine. The CPU emulator calls `sim_on_code` before each instruction and
 * `sim_on_memory` before each data access. Both stop the machine at the first thing that real hardware, or the
 * caller's memory map, would refuse. Layouts must match `_hook.py`. */
#include <stddef.h>
#include <stdint.h>

enum { PERM_READ = 1, PERM_WRITE = 2 };
enum { MAX_RANGES = 16, MAX_SEGMENTS = 4, MOVED_RANGES = 4 };
enum { ALIGN_ANY = 0, ALIGN_NATURAL = 1, ALIGN_THUMB2 = 2 };
enum { STOP_NONE = 0, STOP_LIMIT = 1, STOP_RANGE = 2, STOP_MISALIGNED = 3, STOP_REQUESTED = 4 };
enum { ACCESS_WRITE = 17 }; /* UC_MEM_WRITE */
#define IT_BITS 0x0600fc00u

typedef struct {
    uint64_t base, end; /* end is exclusive */
    uint64_t lowest_write, highest_write; /* highest is exclusive; lowest > highest while nothing was written */
    uint64_t lowest_read, highest_read;
    uint32_t perms, unused;
} sim_range;

typedef struct {
    uint64_t base, end;
    uint64_t *executed; /* one counter for each halfword */
    uint64_t *taken;    /* how often control left the instruction elsewhere than to the next one */
    const uint8_t *code; /* the memory itself */
    uint64_t *moved;     /* bytes that each instruction read and wrote, by range; NULL: not counted */
} sim_segment;

/* Code whose cost is charged to owners: what a function costs together with the shared code that it calls. `map` has for each
 * halfword the owner plus one, or 0 for shared code, which is charged to the owner that ran last. NULL: nobody is charged. */
typedef struct {
    uint64_t base, end, halves;
    const uint16_t *map;
    uint64_t *executed, *taken; /* a row of halfwords for each owner */
    uint64_t *moved;            /* read and written bytes by range, for each owner */
    uint64_t current;
} sim_owners;

typedef struct {
    uint64_t instructions, limit, accesses;
    int (*stop)(void *engine);
    int (*read_register)(void *engine, int id, void *value);
    int (*write_register)(void *engine, int id, const void *value);
    uint64_t pc, pc_size, previous_pc, previous_size;
    uint64_t fault_address, fault_size;
    uint32_t reason, fault_is_write, alignment, range_count, segment_count;
    uint32_t first_half; /* first halfword of the present instruction */
    uint32_t it_left;    /* instructions of an IT block that are still to come, the present one included */
    int32_t xpsr;        /* the emulator's id of XPSR, 0: a CPU without IT */
    sim_range ranges[MAX_RANGES];
    sim_segment segments[MAX_SEGMENTS];
    sim_owners owners;
} sim_state;

uint64_t sim_state_bytes(void) { return sizeof(sim_state); }

static sim_segment *segment_of(sim_state *state, uint64_t address)
{
    for (uint32_t i = 0; i < state->segment_count; i++)
        if (address >= state->segments[i].base && address < state->segments[i].end)
            return &state->segments[i];
    return NULL;
}

static void halt(void *engine, sim_state *state, uint32_t reason)
{
    if (state->reason == STOP_NONE)
        state->reason = reason;
    state->stop(engine);
}

static uint32_t half_at(const sim_segment *segment, uint64_t address)
{
    const uint8_t *at = segment->code + (address - segment->base);
    return at[0] | (uint32_t)at[1] << 8;
}

static void count_owned(const sim_owners *owners, uint64_t *counters, uint64_t address)
{
    if (owners->map && address >= owners->base && address < owners->end)
        counters[owners->current * owners->halves + ((address - owners->base) >> 1)]++;
}

static void enter_owner(sim_owners *owners, uint64_t address)
{
    if (owners->map && address >= owners->base && address < owners->end) {
        uint16_t owner = owners->map[(address - owners->base) >> 1];
        if (owner)
            owners->current = owner - 1u;
    }
}

/* The emulator jumps over instructions whose IT condition fails without telling; a CPU issues them like any other, so they
 * count. Gives the address after them: `address` itself where nothing else happened. */
static uint64_t count_skipped(sim_state *state, sim_segment *segment, uint64_t next, uint64_t address)
{
    while (state->it_left > 1 && next < address) {
        uint32_t half = half_at(segment, next);
        state->instructions++;
        segment->executed[(next - segment->base) >> 1]++;
        count_owned(&state->owners, state->owners.executed, next);
        state->it_left--;
        next += half >= 0xe800 ? 4 : 2;
    }
    return next;
}

void sim_on_code(void *engine, uint64_t address, uint32_t size, void *user)
{
    sim_state *state = user;
    if (state->reason != STOP_NONE) {
        state->stop(engine);
        return;
    }
    if (state->instructions >= state->limit) {
        halt(engine, state, STOP_LIMIT);
        return;
    }
    sim_segment *segment = segment_of(state, address);
    uint64_t next = state->pc + state->pc_size;
    if (state->it_left > 1 && segment && next < address && address - next <= 16 && next >= segment->base)
        next = count_skipped(state, segment, next, address);
    if (state->pc_size && address != next) {
        sim_segment *from = segment && state->pc >= segment->base && state->pc < segment->end
                                ? segment : segment_of(state, state->pc);
        if (from)
            from->taken[(state->pc - from->base) >> 1]++;
        count_owned(&state->owners, state->owners.taken, state->pc);
    }
    state->previous_pc = state->pc;
    state->previous_size = state->pc_size;
    state->pc = address;
    state->pc_size = size;
    state->instructions++;
    if (!segment)
        return;
    uint64_t offset = address - segment->base;
    segment->executed[offset >> 1]++;
    enter_owner(&state->owners, address);
    count_owned(&state->owners, state->owners.executed, address);
    if (state->xpsr) {
        uint32_t half = half_at(segment, address);
        state->first_half = half;
        if ((half & 0xff00) == 0xbf00 && (half & 0xf))
            state->it_left = 5 - (uint32_t)__builtin_ctz(half & 0xf);
        else if (state->it_left)
            state->it_left--;
    }
}

/* For a memory observer the emulator writes the IT state of the present instruction into the CPU, and does not take it
 * out again when the block of code ends: the instructions after the next branch would then run conditionally. */
static void forget_it_state(void *engine, sim_state *state)
{
    uint32_t xpsr = 0;
    if (state->read_register(engine, state->xpsr, &xpsr) == 0 && (xpsr & IT_BITS)) {
        xpsr &= ~IT_BITS;
        state->write_register(engine, state->xpsr, &xpsr);
    }
}

/* Arm v7-M and v8-M Mainline let single loads and stores be unaligned; the multiple, dual, exclusive and
 * floating-point ones fault (DDI 0403E A3.2.1, DDI 0553B B7.3). */
static int thumb2_needs_alignment(const sim_state *state)
{
    uint32_t first = state->first_half;
    if (state->pc_size == 2)
        return (first & 0xf000) == 0xc000 || (first & 0xf600) == 0xb400; /* LDM, STM, PUSH, POP */
    return (first & 0xfe00) == 0xe800                                    /* LDM, STM, LDRD, STRD, LDREX, TBH */
        || (first & 0xfe00) == 0xec00;                                   /* VLDR, VSTR, VLDM, VSTM */
}

/* Book `size` bytes to the instruction that is executing: a row of read and written bytes for each of the first ranges. */
static void count_moved(sim_state *state, uint32_t range, int is_write, uint64_t size)
{
    sim_segment *segment = range < MOVED_RANGES ? segment_of(state, state->pc) : NULL;
    if (segment && segment->moved)
        segment->moved[((state->pc - segment->base) >> 1) * 2 * MOVED_RANGES + 2 * range + (uint32_t)is_write] += size;
    if (segment && state->owners.map)
        state->owners.moved[state->owners.current * 2 * MOVED_RANGES + 2 * range + (uint32_t)is_write] += size;
}

void sim_on_memory(void *engine, int type, uint64_t address, int size, int64_t value, void *user)
{
    sim_state *state = user;
    (void)value;
    if (state->reason != STOP_NONE)
        return;
    state->accesses++;
    if (state->it_left)
        forget_it_state(engine, state);
    int is_write = type == ACCESS_WRITE;
    uint64_t unit = size > 4 ? 4 : (uint64_t)size;
    if ((address & (unit - 1)) && state->alignment != ALIGN_ANY
        && (state->alignment == ALIGN_NATURAL || thumb2_needs_alignment(state))) {
        state->fault_address = address;
        state->fault_size = (uint64_t)size;
        state->fault_is_write = (uint32_t)is_write;
        halt(engine, state, STOP_MISALIGNED);
        return;
    }
    uint32_t need = is_write ? PERM_WRITE : PERM_READ;
    uint64_t end = address + (uint64_t)size;
    for (uint32_t i = 0; i < state->range_count; i++) {
        sim_range *range = &state->ranges[i];
        if (address < range->base || end > range->end || !(range->perms & need))
            continue;
        count_moved(state, i, is_write, (uint64_t)size);
        if (is_write) {
            if (address < range->lowest_write) range->lowest_write = address;
            if (end > range->highest_write) range->highest_write = end;
        } else {
            if (address < range->lowest_read) range->lowest_read = address;
            if (end > range->highest_read) range->highest_read = end;
        }
        return;
    }
    state->fault_address = address;
    state->fault_size = (uint64_t)size;
    state->fault_is_write = (uint32_t)is_write;
    halt(engine, state, STOP_RANGE);
}
