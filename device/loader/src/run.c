/* Running a module: arena, inputs and outputs, payload entry (ABI 1), golden self-test. */
#include "tim_internal.h"

uint32_t tim_arena_bytes(const tim_module *module) { return module->arena_bytes; }

tim_status tim_start(tim_module *module, uint8_t *arena, uint32_t arena_bytes) {
    if (arena == NULL || ((uintptr_t)arena & (module->arena_alignment - 1u)) != 0) return TIM_MISALIGNED;
    if (arena_bytes < module->arena_bytes) return TIM_ARENA_TOO_SMALL;
    module->arena = arena;
    if ((module->critical_flags & TIM_FLAG_STATEFUL) != 0) memset(arena, 0, module->arena_bytes);
    return TIM_OK;
}

static uint8_t *tensor_place(const tim_module *module, uint32_t index) {
    uint32_t offset = tim_u32(tim_tensor_record(module, index) + 8);
    return module->arena == NULL || offset == TIM_NO_ARENA_OFFSET ? NULL : module->arena + offset;
}

uint8_t *tim_input(const tim_module *module, uint32_t index) {
    return index < module->input_count ? tensor_place(module, index) : NULL;
}

const uint8_t *tim_output(const tim_module *module, uint32_t index) {
    return index < module->output_count ? tensor_place(module, module->input_count + index) : NULL;
}

tim_status tim_invoke(tim_module *module, int32_t *payload_error) {
    if (module->kind != TIM_NATIVE) return TIM_KIND_NOT_EXECUTABLE;
    if (module->arena == NULL) return TIM_NOT_STARTED;
    uintptr_t address = (uintptr_t)(module->payload + module->entry_offset);
#if defined(__arm__)
    address |= 1u; /* Thumb */
#endif
    int32_t (*entry)(uint8_t *) = (int32_t (*)(uint8_t *))address;
    int32_t error = entry(module->arena);
    if (payload_error != NULL) *payload_error = error;
    return error == 0 ? TIM_OK : TIM_PAYLOAD_ERROR;
}

uint32_t tim_golden_count(const tim_module *module) { return module->golden == NULL ? 0 : tim_u16(module->golden); }

const uint8_t *tim_golden_tensor(const tim_module *module, uint32_t vector, uint32_t tensor) {
    uint32_t count = (uint32_t)module->input_count + module->output_count;
    if (vector >= tim_golden_count(module) || tensor >= count) return NULL;
    const uint8_t *data = module->golden + TIM_GOLDEN_HEADER_BYTES;
    for (uint32_t step = vector * count + tensor, i = 0; step > 0; step--) {
        data += tim_align(tim_tensor_bytes(tim_tensor_record(module, i)));
        i = i + 1u == count ? 0u : i + 1u;
    }
    return data;
}

static bool within_lsb(uint32_t dtype, const uint8_t *got, const uint8_t *want, uint32_t lsb) {
    int32_t a;
    int32_t b;
    switch (dtype) {
        case TIM_INT8: a = (int8_t)got[0], b = (int8_t)want[0]; break;
        case TIM_UINT8: a = got[0], b = want[0]; break;
        case TIM_INT16: a = (int16_t)tim_u16(got), b = (int16_t)tim_u16(want); break;
        case TIM_UINT16: a = tim_u16(got), b = tim_u16(want); break;
        case TIM_INT32: a = (int32_t)tim_u32(got), b = (int32_t)tim_u32(want); break;
        default: { /* uint32: compare without sign */
            uint32_t x = tim_u32(got);
            uint32_t y = tim_u32(want);
            return (x > y ? x - y : y - x) <= lsb;
        }
    }
    return (a > b ? (uint32_t)a - (uint32_t)b : (uint32_t)b - (uint32_t)a) <= lsb;
}

#ifndef TIM_NO_FLOAT
static float read_f32(const uint8_t *p) {
    float value;
    memcpy(&value, p, sizeof value);
    return value;
}

static float magnitude(float value) { return value < 0.0f ? -value : value; }

static bool within_tolerance(const uint8_t *got, const uint8_t *want, const uint8_t *golden) {
    if (tim_u32(got) == tim_u32(want)) return true;
    float expected = read_f32(want);
    return magnitude(read_f32(got) - expected) <= read_f32(golden + 12) + read_f32(golden + 8) * magnitude(expected);
}
#endif

bool tim_golden_matches(const tim_module *module, uint32_t vector, uint32_t output, const uint8_t *got) {
    if (output >= module->output_count) return false;
    const uint8_t *want = tim_golden_tensor(module, vector, module->input_count + output);
    if (want == NULL || got == NULL) return false;
    const uint8_t *record = tim_tensor_record(module, module->input_count + output);
    uint32_t bytes = tim_tensor_bytes(record);
    uint32_t dtype = record[1];
    uint32_t numerics = module->golden[2];
    if (numerics == TIM_WITHIN_LSB && dtype >= TIM_INT8 && dtype <= TIM_UINT32) {
        uint32_t lsb = tim_u32(module->golden + 4);
        for (uint32_t i = 0; i < bytes; i += tim_dtype_bytes(dtype)) {
            if (!within_lsb(dtype, got + i, want + i, lsb)) return false;
        }
        return true;
    }
#ifndef TIM_NO_FLOAT
    if (numerics == TIM_WITHIN_TOLERANCE && dtype == TIM_FLOAT32) {
        for (uint32_t i = 0; i < bytes; i += 4u) {
            if (!within_tolerance(got + i, want + i, module->golden)) return false;
        }
        return true;
    }
#endif
    return memcmp(got, want, bytes) == 0;
}

tim_status tim_self_test(tim_module *module, uint32_t *failed_vector) {
    uint32_t count = tim_golden_count(module);
    if (count == 0) return TIM_GOLDEN_ABSENT;
    if (module->kind != TIM_NATIVE) return TIM_KIND_NOT_EXECUTABLE;
    if (module->arena == NULL) return TIM_NOT_STARTED;
    if ((module->critical_flags & TIM_FLAG_STATEFUL) != 0) memset(module->arena, 0, module->arena_bytes);
    for (uint32_t v = 0; v < count; v++) {
        if (failed_vector != NULL) *failed_vector = v;
        for (uint32_t i = 0; i < module->input_count; i++) {
            memcpy(tim_input(module, i), tim_golden_tensor(module, v, i),
                   tim_tensor_bytes(tim_tensor_record(module, i)));
        }
        tim_status status = tim_invoke(module, NULL);
        if (status != TIM_OK) return status;
        for (uint32_t i = 0; i < module->output_count; i++) {
            if (!tim_golden_matches(module, v, i, tim_output(module, i))) return TIM_SELF_TEST_FAILED;
        }
    }
    if ((module->critical_flags & TIM_FLAG_STATEFUL) != 0) memset(module->arena, 0, module->arena_bytes);
    return TIM_OK;
}
