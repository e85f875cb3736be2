/* Tensor records and the golden section: spec/inference-module.md section 5. */
#include "tim_internal.h"

uint32_t tim_dtype_bytes(uint32_t dtype) {
    static const uint8_t BYTES[TIM_BOOL + 1] = {0, 1, 1, 2, 2, 4, 4, 8, 4, 2, 1};
    return dtype <= TIM_BOOL ? BYTES[dtype] : 0;
}

static bool zero_point_fits(uint32_t dtype, int32_t zero_point) {
    switch (dtype) {
        case TIM_INT8: return zero_point >= -128 && zero_point <= 127;
        case TIM_UINT8: return zero_point >= 0 && zero_point <= 255;
        case TIM_INT16: return zero_point >= -32768 && zero_point <= 32767;
        case TIM_UINT16: return zero_point >= 0 && zero_point <= 65535;
        case TIM_INT32: return true;
        default: return false;
    }
}

static bool record_is_valid(const uint8_t *record, uint32_t kind) {
    uint32_t element = tim_dtype_bytes(record[1]);
    uint32_t rank = record[2];
    if (record[0] != kind || element == 0 || rank > TIM_MAX_RANK || record[3] != 0 || tim_u32(record + 44) != 0) {
        return false;
    }
    uint64_t bytes = element;
    for (uint32_t d = 0; d < TIM_MAX_RANK; d++) {
        uint32_t dimension = tim_u32(record + 20 + 4 * d);
        if ((dimension != 0) != (d < rank)) return false;
        if (d < rank) {
            bytes *= dimension; /* below 2^31 before, so below 2^63 after */
            if (bytes > TIM_MAX_MEMORY_BYTES) return false;
        }
    }
    if (tim_tensor_bytes(record) != bytes) return false;
    uint32_t scale = tim_u32(record + 12);
    int32_t zero_point = (int32_t)tim_u32(record + 16);
    if (scale >= TIM_INFINITY_BITS) return false;
    return scale == 0 ? zero_point == 0 : zero_point_fits(record[1], zero_point);
}

tim_status tim_check_tensors(const tim_module *module) {
    uint32_t count = (uint32_t)module->input_count + module->output_count;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *record = tim_tensor_record(module, i);
        bool is_input = i < module->input_count;
        if (!record_is_valid(record, is_input ? 1u : 2u)) return TIM_TENSORS_INVALID;
        uint32_t offset = tim_u32(record + 8);
        if (module->kind != TIM_NATIVE) {
            if (offset != TIM_NO_ARENA_OFFSET) return TIM_TENSORS_INVALID;
            continue;
        }
        uint32_t bytes = tim_tensor_bytes(record);
        if (offset % 4u != 0 || offset > module->arena_bytes || bytes > module->arena_bytes - offset) {
            return TIM_TENSORS_INVALID;
        }
        for (uint32_t j = is_input ? 0u : module->input_count; j < i; j++) {
            const uint8_t *other = tim_tensor_record(module, j);
            uint32_t other_offset = tim_u32(other + 8);
            if (offset < other_offset + tim_tensor_bytes(other) && other_offset < offset + bytes) {
                return TIM_TENSORS_INVALID;
            }
        }
    }
    return TIM_OK;
}

static bool class_applies(uint32_t numerics, uint32_t dtype) {
    if (numerics == TIM_WITHIN_LSB) return dtype >= TIM_INT8 && dtype <= TIM_UINT32;
    return numerics == TIM_BIT_EXACT || dtype == TIM_FLOAT32;
}

static bool numerics_are_valid(const tim_module *module) {
    uint32_t numerics = module->golden[2];
    uint32_t lsb = tim_u32(module->golden + 4);
    uint32_t rtol = tim_u32(module->golden + 8);
    uint32_t atol = tim_u32(module->golden + 12);
    bool lsb_is_valid = numerics == TIM_WITHIN_LSB ? lsb >= 1u && lsb <= 255u : lsb == 0;
    bool tolerance_is_valid = numerics == TIM_WITHIN_TOLERANCE
                                  ? rtol < TIM_INFINITY_BITS && atol < TIM_INFINITY_BITS && (rtol | atol) != 0
                                  : (rtol | atol) == 0;
    bool applies = false;
    for (uint32_t i = 0; i < module->output_count; i++) {
        applies |= class_applies(numerics, tim_tensor_record(module, module->input_count + i)[1]);
    }
    return lsb_is_valid && tolerance_is_valid && applies;
}

tim_status tim_check_golden(const tim_module *module) {
    const uint8_t *golden = module->golden;
    if (module->golden_bytes < TIM_GOLDEN_HEADER_BYTES) return TIM_GOLDEN_INVALID;
    uint32_t count = tim_u16(golden);
    if (count < 1u || count > TIM_MAX_GOLDEN_VECTORS || golden[2] < TIM_BIT_EXACT || golden[2] > TIM_WITHIN_TOLERANCE ||
        golden[3] < 1u || golden[3] > 2u || !tim_all_zero(golden + 16, 16) || !numerics_are_valid(module)) {
        return TIM_GOLDEN_INVALID;
    }
    uint32_t tensors = (uint32_t)module->input_count + module->output_count;
    uint64_t vector = 0;
    for (uint32_t i = 0; i < tensors; i++) vector += tim_align(tim_tensor_bytes(tim_tensor_record(module, i)));
    if (module->golden_bytes != TIM_GOLDEN_HEADER_BYTES + count * vector) return TIM_GOLDEN_INVALID;
    const uint8_t *data = golden + TIM_GOLDEN_HEADER_BYTES;
    for (uint32_t v = 0; v < count; v++) {
        for (uint32_t i = 0; i < tensors; i++) {
            uint32_t bytes = tim_tensor_bytes(tim_tensor_record(module, i));
            if (!tim_all_zero(data + bytes, tim_align(bytes) - bytes)) return TIM_GOLDEN_INVALID;
            data += tim_align(bytes);
        }
    }
    return TIM_OK;
}

static tim_status tensor_info(const tim_module *module, uint32_t index, tim_tensor *tensor) {
    const uint8_t *record = tim_tensor_record(module, index);
    tensor->dtype = record[1];
    tensor->rank = record[2];
    for (uint32_t d = 0; d < TIM_MAX_RANK; d++) tensor->dims[d] = tim_u32(record + 20 + 4 * d);
    tensor->bytes = tim_tensor_bytes(record);
    tensor->arena_offset = tim_u32(record + 8);
    memcpy(&tensor->scale, record + 12, sizeof tensor->scale);
    tensor->zero_point = (int32_t)tim_u32(record + 16);
    return TIM_OK;
}

tim_status tim_input_info(const tim_module *module, uint32_t index, tim_tensor *tensor) {
    return index < module->input_count ? tensor_info(module, index, tensor) : TIM_ARGUMENT_INVALID;
}

tim_status tim_output_info(const tim_module *module, uint32_t index, tim_tensor *tensor) {
    return index < module->output_count ? tensor_info(module, module->input_count + index, tensor)
                                        : TIM_ARGUMENT_INVALID;
}
