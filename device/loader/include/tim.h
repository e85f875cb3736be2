/* TinyMLaaS inference module loader, format version 1 (spec/inference-module.md).
 *
 * No allocation, no globals, no libc beyond memcpy, memset, memcmp. Every function is reentrant per
 * module. The image stays where it is (flash): a module only points into it. Integers of the format
 * are little-endian, and so is every CPU this loader runs on.
 */
#ifndef TIM_H
#define TIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TIM_HEADER_BYTES 128u
#define TIM_SECTION_ENTRY_BYTES 48u
#define TIM_TENSOR_BYTES 48u
#define TIM_GOLDEN_HEADER_BYTES 32u
#define TIM_MAX_SECTIONS 8u
#define TIM_MAX_RANK 6u
#define TIM_DIGEST_BYTES 32u
#define TIM_KEY_ID_BYTES 8u
#define TIM_NO_ARENA_OFFSET 0xFFFFFFFFu
#define TIM_LOADER_ABI 1u

/* Verdicts; 0 to 27 are judged by Python's parser alike and have the same names there. */
typedef enum tim_status {
    TIM_OK = 0,
    TIM_TRUNCATED = 1,
    TIM_TRAILING_BYTES = 2,
    TIM_BAD_MAGIC = 3,
    TIM_VERSION_UNSUPPORTED = 4,
    TIM_FLAGS_UNKNOWN = 5,
    TIM_KIND_UNKNOWN = 6,
    TIM_ISA_INVALID = 7,
    TIM_FEATURES_INVALID = 8,
    TIM_ABI_UNSUPPORTED = 9,
    TIM_ENTRY_INVALID = 10,
    TIM_ARENA_INVALID = 11,
    TIM_STACK_INVALID = 12,
    TIM_NAME_INVALID = 13,
    TIM_RESERVED_NOT_ZERO = 14,
    TIM_SECTION_TABLE_INVALID = 15,
    TIM_SECTION_UNKNOWN = 16,
    TIM_SECTION_MISSING = 17,
    TIM_SIZE_MISMATCH = 18,
    TIM_PADDING_NOT_ZERO = 19,
    TIM_TENSORS_INVALID = 20,
    TIM_GOLDEN_INVALID = 21,
    TIM_SIGNATURE_BLOCK_INVALID = 22,
    TIM_SIGNATURE_MISSING = 23,
    TIM_KEY_UNKNOWN = 24,
    TIM_SIGNATURE_INVALID = 25,
    TIM_DIGEST_MISMATCH = 26,
    TIM_DOWNGRADE = 27,
    /* Below: what only a device can find. */
    TIM_MISALIGNED = 32,           /* image or arena address is not aligned */
    TIM_TARGET_UNSUPPORTED = 33,   /* kind, ISA or features are not this device's */
    TIM_ARENA_TOO_SMALL = 34,
    TIM_STACK_TOO_SMALL = 35,
    TIM_NOT_STARTED = 36,
    TIM_PAYLOAD_ERROR = 37,        /* the payload's entry returned non-zero */
    TIM_GOLDEN_ABSENT = 38,        /* no golden section in this image */
    TIM_SELF_TEST_FAILED = 39,
    TIM_KIND_NOT_EXECUTABLE = 40,  /* payload kind has no runner in this firmware */
    TIM_ARGUMENT_INVALID = 41,
    /* Update core (tim_update.h). */
    TIM_FLASH_ERROR = 48,
    TIM_SLOT_INVALID = 49,
    TIM_STATE_INVALID = 50,        /* the slot's state does not allow this call */
    TIM_TOO_LARGE = 51,            /* image does not fit the slot */
    TIM_OFFSET_MISMATCH = 52,      /* bytes do not continue where the slot's download stands */
    TIM_NOTHING_TO_ROLL_BACK = 53,
    TIM_CONFIG_INVALID = 54,       /* flash geometry or slot table is impossible */
    TIM_NOT_CONFIRMED = 55         /* a module that was activated did not prove itself in time */
} tim_status;

enum tim_kind {
    TIM_NATIVE = 1, TIM_TFLITE, TIM_TFLITE_VELA, TIM_IREE_VMFB, TIM_SHARED_OBJECT, TIM_FPGA, TIM_FIRMWARE
};

enum tim_isa {
    TIM_ISA_ANY = 0, TIM_ISA_ARMV6_M, TIM_ISA_ARMV7_M, TIM_ISA_ARMV7E_M, TIM_ISA_ARMV8_M_MAIN,
    TIM_ISA_ARMV8_1_M_MAIN, TIM_ISA_RV32IMC, TIM_ISA_AARCH64, TIM_ISA_X86_64, TIM_ISA_RV64GC
};

enum tim_feature {
    TIM_THUMB2 = 1, TIM_DSP = 2, TIM_FPU_SP = 4, TIM_FPU_DP = 8, TIM_MVE = 16, TIM_MVE_FP = 32
};

enum tim_section_type { TIM_PAYLOAD = 1, TIM_TENSORS, TIM_GOLDEN, TIM_MANIFEST, TIM_CERTIFICATE };

enum tim_dtype {
    TIM_INT8 = 1, TIM_UINT8, TIM_INT16, TIM_UINT16, TIM_INT32, TIM_UINT32, TIM_INT64, TIM_FLOAT32,
    TIM_FLOAT16, TIM_BOOL
};

enum tim_numerics { TIM_BIT_EXACT = 1, TIM_WITHIN_LSB, TIM_WITHIN_TOLERANCE };

#define TIM_FLAG_STATEFUL 1u /* the arena must keep its contents between invocations */

/* An Ed25519 public key that this firmware trusts. */
typedef struct tim_key {
    uint8_t id[TIM_KEY_ID_BYTES]; /* first 8 bytes of SHA-512(public_key) */
    uint8_t public_key[32];
} tim_key;

/* Whom this device trusts and what it can execute; constant data of the firmware. */
typedef struct tim_platform {
    const tim_key *keys;
    uint32_t key_count;
    uint32_t kinds;         /* bit n set: payload kind n is accepted */
    uint32_t isas;          /* bit n set: enum tim_isa n can be executed; bit 0 for portable payloads */
    uint32_t features;      /* enum tim_feature bits that the CPU has and the firmware has enabled */
    uint32_t stack_bytes;   /* stack that the task which invokes can spare; 0 = do not check */
} tim_platform;

/* A row of the tensor table, decoded. */
typedef struct tim_tensor {
    uint8_t dtype;
    uint8_t rank;
    uint32_t dims[TIM_MAX_RANK];
    uint32_t bytes;
    uint32_t arena_offset;
    float scale;            /* 0: not quantized */
    int32_t zero_point;
} tim_tensor;

/* An opened module: plain values and pointers into the image; fields are read-only for callers. */
typedef struct tim_module {
    const uint8_t *image;
    uint32_t image_bytes;
    uint16_t kind;
    uint16_t isa;
    uint32_t features;
    uint16_t critical_flags;
    uint16_t input_count;
    uint16_t output_count;
    uint16_t section_count;
    uint32_t entry_offset;
    uint32_t arena_bytes;
    uint32_t arena_alignment;
    uint32_t stack_bytes;
    uint32_t security_counter;
    const char *name;       /* NUL-terminated, at most 31 characters */
    const char *version;    /* NUL-terminated, at most 15 characters */
    const uint8_t *payload;
    uint32_t payload_bytes;
    const uint8_t *tensors; /* (input_count + output_count) records of 48 bytes */
    const uint8_t *golden;  /* NULL when this image has none */
    uint32_t golden_bytes;
    uint8_t *arena;         /* NULL until tim_start */
} tim_module;

/* Bytes of an image that tim_check_head needs before it can judge: header, section table and signatures.
 * `head` holds at least TIM_HEADER_BYTES; 0 when it cannot be a module. */
uint32_t tim_head_bytes(const uint8_t *head);

/* Judge the signed head alone (structure of header and table, signature, security counter, target) as
 * soon as its `head_bytes` = tim_head_bytes() have arrived: a refused module costs no flash wear.
 * tim_open is still needed on the whole image. */
tim_status tim_check_head(const uint8_t *head, uint32_t head_bytes, const tim_platform *platform,
                          uint32_t minimum_counter);

/* Check structure only; fills `module`. `image` must be 16-byte aligned. Trust nothing yet. */
tim_status tim_parse(const uint8_t *image, uint32_t size, tim_module *module);

/* Check signature (by one of the platform's keys), security counter >= minimum_counter, and the digest of
 * every section in the image. */
tim_status tim_verify(const tim_module *module, const tim_platform *platform, uint32_t minimum_counter);

/* Check that this device accepts the kind and can execute ISA, features and stack of the module. */
tim_status tim_check_target(const tim_module *module, const tim_platform *platform);

/* tim_parse, tim_verify, tim_check_target in this order. */
tim_status tim_open(const uint8_t *image, uint32_t size, const tim_platform *platform,
                    uint32_t minimum_counter, tim_module *module);

uint32_t tim_arena_bytes(const tim_module *module);

/* Bind an arena: aligned to module->arena_alignment, at least tim_arena_bytes long. May be called again.
 * Modules that are not STATEFUL may share an arena as long as they take turns. */
tim_status tim_start(tim_module *module, uint8_t *arena, uint32_t arena_bytes);

/* Decode input or output `index`; TIM_ARGUMENT_INVALID past the end. */
tim_status tim_input_info(const tim_module *module, uint32_t index, tim_tensor *tensor);
tim_status tim_output_info(const tim_module *module, uint32_t index, tim_tensor *tensor);

/* Where to write input / read output `index` inside the arena; NULL before tim_start, past the end, or for
 * payloads whose runtime decides. Inputs are overwritten by a run; outputs hold until the next one. */
uint8_t *tim_input(const tim_module *module, uint32_t index);
const uint8_t *tim_output(const tim_module *module, uint32_t index);

/* Run once: inputs were written to tim_input(), outputs are at tim_output(). `payload_error` (may be NULL)
 * receives what the payload returned. */
tim_status tim_invoke(tim_module *module, int32_t *payload_error);

/* Run every golden vector in the bound arena and compare in the declared numerics class.
 * `worst` (may be NULL): TIM_SELF_TEST_FAILED gives the index of the first failing vector. */
tim_status tim_self_test(tim_module *module, uint32_t *failed_vector);

/* For firmware that runs other payload kinds itself: pointer to the inputs/expected outputs of a vector.
 * `tensor` counts inputs then outputs; NULL past the end or without golden section. */
const uint8_t *tim_golden_tensor(const tim_module *module, uint32_t vector, uint32_t tensor);
uint32_t tim_golden_count(const tim_module *module);

/* Compare one output of a run with its expected bytes in the module's numerics class. */
bool tim_golden_matches(const tim_module *module, uint32_t vector, uint32_t output, const uint8_t *got);

/* The module's identity: 32 bytes, the same for full and stripped images (Python: identity()). */
void tim_identity(const tim_module *module, uint8_t identity[TIM_DIGEST_BYTES]);

/* Name of a status, e.g. "SIGNATURE_INVALID"; build with TIM_NO_STATUS_NAMES to leave the table out. */
const char *tim_status_name(tim_status status);

#ifdef __cplusplus
}
#endif
#endif
