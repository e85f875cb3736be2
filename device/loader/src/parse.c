/* Structure of an image: spec/inference-module.md section 7, steps 1 to 6, in its order. */
#include "tim_internal.h"

static const uint8_t MAGIC[8] = {0x89, 'T', 'I', 'M', '\r', '\n', 0x1a, '\n'};

static bool text_is_valid(const uint8_t *text, uint32_t width) {
    uint32_t length = 0;
    while (length < width && text[length] >= 0x21 && text[length] <= 0x7E) length++;
    return length > 0 && length < width && tim_all_zero(text + length, width - length);
}

static tim_status check_isa(const tim_module *module) {
    if (module->isa > TIM_ISA_RV64GC) return TIM_ISA_INVALID;
    bool cpu_code = module->kind == TIM_NATIVE || module->kind == TIM_SHARED_OBJECT || module->kind == TIM_FIRMWARE;
    bool any = module->isa == TIM_ISA_ANY;
    if (cpu_code == any && module->kind != TIM_IREE_VMFB) return TIM_ISA_INVALID;
    if ((module->features & ~63u) != 0 || (module->features != 0 && any)) return TIM_FEATURES_INVALID;
    return TIM_OK;
}

static tim_status check_memory(const tim_module *module) {
    bool native = module->kind == TIM_NATIVE;
    uint32_t alignment = module->arena_alignment;
    if (module->arena_bytes > TIM_MAX_MEMORY_BYTES || (native && module->arena_bytes == 0) ||
        (alignment & (alignment - 1u)) != 0 || alignment < 16u || alignment > 4096u) {
        return TIM_ARENA_INVALID;
    }
    if (module->stack_bytes > TIM_MAX_MEMORY_BYTES || (native && module->stack_bytes == 0)) return TIM_STACK_INVALID;
    return TIM_OK;
}

static tim_status parse_header(const uint8_t *image, uint32_t size, bool whole, tim_module *module) {
    if (memcmp(image, MAGIC, sizeof MAGIC) != 0) return TIM_BAD_MAGIC;
    if (tim_u16(image + 16) != 1u) return TIM_VERSION_UNSUPPORTED;
    module->image = image;
    module->image_bytes = tim_u32(image + 8);
    if (whole) {
        if (module->image_bytes > size) return TIM_TRUNCATED;
        if (module->image_bytes < size) return TIM_TRAILING_BYTES;
    }
    module->section_count = tim_u16(image + 18);
    module->critical_flags = tim_u16(image + 20);
    module->kind = tim_u16(image + 24);
    module->isa = tim_u16(image + 26);
    module->features = tim_u32(image + 28);
    module->input_count = tim_u16(image + 34);
    module->output_count = tim_u16(image + 36);
    module->entry_offset = tim_u32(image + 40);
    module->arena_bytes = tim_u32(image + 44);
    module->arena_alignment = tim_u32(image + 48);
    module->stack_bytes = tim_u32(image + 52);
    module->security_counter = tim_u32(image + 56);
    module->name = (const char *)(image + 64);
    module->version = (const char *)(image + 96);

    if ((module->critical_flags & ~TIM_FLAG_STATEFUL) != 0) return TIM_FLAGS_UNKNOWN;
    if (module->kind < TIM_NATIVE || module->kind > TIM_FIRMWARE) return TIM_KIND_UNKNOWN;
    tim_status status = check_isa(module);
    if (status != TIM_OK) return status;
    if (tim_u16(image + 32) != (module->kind == TIM_NATIVE ? TIM_LOADER_ABI : 0u)) return TIM_ABI_UNSUPPORTED;
    if (module->input_count < 1u || module->output_count < 1u ||
        (uint32_t)module->input_count + module->output_count > TIM_MAX_TENSORS) {
        return TIM_TENSORS_INVALID;
    }
    if (tim_u16(image + 38) != 0 || tim_u32(image + 60) != 0 || !tim_all_zero(image + 112, 16)) {
        return TIM_RESERVED_NOT_ZERO;
    }
    status = check_memory(module);
    if (status != TIM_OK) return status;
    if (!text_is_valid(image + 64, 32) || !text_is_valid(image + 96, 16)) return TIM_NAME_INVALID;
    return TIM_OK;
}

static tim_status check_table(const uint8_t *image, uint32_t size, uint32_t count) {
    if (count < 2u || count > TIM_MAX_SECTIONS) return TIM_SECTION_TABLE_INVALID;
    if (tim_table_end(count) > size) return TIM_TRUNCATED;
    uint32_t previous = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *row = image + tim_table_end(i);
        uint32_t type = tim_u32(row);
        uint32_t flags = tim_u32(row + 4);
        uint32_t bytes = tim_u32(row + 8);
        if (type <= previous || (flags & ~3u) != 0 || bytes < 1u || bytes > TIM_MAX_SECTION_BYTES) {
            return TIM_SECTION_TABLE_INVALID;
        }
        if (tim_u32(row + 12) != 0) return TIM_RESERVED_NOT_ZERO;
        uint32_t required = type <= TIM_TENSORS ? TIM_SECTION_CRITICAL : TIM_SECTION_DROPPABLE;
        if (type > TIM_CERTIFICATE && (flags & TIM_SECTION_CRITICAL) != 0) return TIM_SECTION_UNKNOWN;
        if (flags != required) return TIM_SECTION_TABLE_INVALID;
        previous = type;
    }
    if (tim_u32(image + tim_table_end(0)) != TIM_PAYLOAD || tim_u32(image + tim_table_end(1)) != TIM_TENSORS) {
        return TIM_SECTION_TABLE_INVALID;
    }
    return TIM_OK;
}

static tim_status check_signature_block(const uint8_t *block, uint32_t size) {
    uint32_t offset = 0;
    for (uint32_t count = 0; offset < size; count++) {
        const uint8_t *record = block + offset;
        uint32_t algorithm = tim_u16(record);
        uint32_t bytes = tim_u32(record + 4);
        uint32_t room = size - offset - TIM_SIGNATURE_HEADER_BYTES; /* size is a multiple of the header's 16 */
        if (count == TIM_MAX_SIGNATURES || algorithm == 0 || tim_u16(record + 2) != 0 || bytes == 0 || bytes > room ||
            !tim_all_zero(record + TIM_SIGNATURE_HEADER_BYTES + bytes, tim_align(bytes) - bytes) ||
            (algorithm == TIM_ALGORITHM_ED25519 && bytes != TIM_ED25519_BYTES)) {
            return TIM_SIGNATURE_BLOCK_INVALID;
        }
        offset += TIM_SIGNATURE_HEADER_BYTES + tim_align(bytes);
    }
    return TIM_OK;
}

/* Place the present sections one after the other, or (`padding_only`) look at the padding behind each. */
static tim_status place_sections(tim_module *module, uint32_t present, uint32_t signature_bytes, bool padding_only) {
    uint32_t offset = tim_table_end(module->section_count) + signature_bytes;
    for (uint32_t i = 0; i < module->section_count; i++) {
        if ((present >> i & 1u) == 0) continue;
        const uint8_t *row = module->image + tim_table_end(i);
        uint32_t type = tim_u32(row);
        uint32_t bytes = tim_u32(row + 8);
        const uint8_t *section = module->image + offset;
        if (padding_only && !tim_all_zero(section + bytes, tim_align(bytes) - bytes)) return TIM_PADDING_NOT_ZERO;
        if (type == TIM_PAYLOAD) module->payload = section;
        if (type == TIM_TENSORS) module->tensors = section;
        if (type == TIM_GOLDEN) {
            module->golden = section;
            module->golden_bytes = bytes;
        }
        offset += tim_align(bytes); /* at most 8 * 2^28 + 8.6 KiB: fits 32 bits */
    }
    return offset == module->image_bytes ? TIM_OK : TIM_SIZE_MISMATCH;
}

tim_status tim_parse_head(const uint8_t *image, uint32_t size, bool whole, tim_module *module) {
    memset(module, 0, sizeof *module);
    if (((uintptr_t)image & (TIM_ALIGNMENT - 1u)) != 0) return TIM_MISALIGNED;
    if (size < TIM_HEADER_BYTES) return TIM_TRUNCATED;
    tim_status status = parse_header(image, size, whole, module);
    if (status != TIM_OK) return status;
    uint32_t count = module->section_count;
    status = check_table(image, size, count);
    if (status != TIM_OK) return status;

    module->payload_bytes = tim_u32(image + tim_table_end(0) + 8);
    bool native = module->kind == TIM_NATIVE;
    if (native ? (module->entry_offset & 1u) != 0 || module->entry_offset >= module->payload_bytes
               : module->entry_offset != 0) {
        return TIM_ENTRY_INVALID;
    }
    uint32_t tensor_bytes = TIM_TENSOR_BYTES * ((uint32_t)module->input_count + module->output_count);
    if (tim_u32(image + tim_table_end(1) + 8) != tensor_bytes) return TIM_TENSORS_INVALID;

    uint32_t present = tim_u16(image + 12);
    if (present >> count != 0) return TIM_SECTION_TABLE_INVALID;
    for (uint32_t i = 0; i < count; i++) {
        bool droppable = (tim_u32(image + tim_table_end(i) + 4) & TIM_SECTION_DROPPABLE) != 0;
        if ((present >> i & 1u) == 0 && !droppable) return TIM_SECTION_MISSING;
    }
    uint32_t signature_bytes = tim_u16(image + 14);
    if (signature_bytes % TIM_ALIGNMENT != 0 || signature_bytes > TIM_MAX_SIGNATURE_BLOCK_BYTES) {
        return TIM_SIGNATURE_BLOCK_INVALID;
    }
    status = place_sections(module, present, signature_bytes, false);
    if (status != TIM_OK) return status;
    uint32_t table_end = tim_table_end(count);
    if (signature_bytes > size - table_end) return TIM_TRUNCATED; /* only for a head that was cut: sizes agree above */
    return check_signature_block(image + table_end, signature_bytes);
}

uint32_t tim_head_bytes(const uint8_t *head) {
    uint32_t count = tim_u16(head + 18);
    uint32_t signature_bytes = tim_u16(head + 14);
    if (memcmp(head, MAGIC, sizeof MAGIC) != 0 || count < 2u || count > TIM_MAX_SECTIONS) return 0;
    if (signature_bytes > TIM_MAX_SIGNATURE_BLOCK_BYTES) signature_bytes = 0; /* the check will refuse it */
    return tim_table_end(count) + signature_bytes;
}

tim_status tim_parse(const uint8_t *image, uint32_t size, tim_module *module) {
    tim_status status = tim_parse_head(image, size, true, module);
    if (status != TIM_OK) return status;
    status = place_sections(module, tim_u16(image + 12), tim_u16(image + 14), true);
    if (status != TIM_OK) return status;
    status = tim_check_tensors(module);
    if (status != TIM_OK) return status;
    return module->golden == NULL ? TIM_OK : tim_check_golden(module);
}
