"""A planned program as source text: one C file and one assembly file.

All identifiers are generated (`tim_...`, `B<n>`); no text of a model reaches either file.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinymlaas_compiler_tvm.native import runtime, softfloat
from tinymlaas_compiler_tvm.native.program import Program
from tinymlaas_compiler_tvm.target import Machine

PREFIX = "tim_"
ENTRY = f"{PREFIX}entry"
CONSTANTS = f"{PREFIX}constants"
CONSTANTS_FILE = "constants.bin"

_PRELUDE = """\
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define NOINLINE __attribute__((noinline))
extern const uint8_t tim_constants[] __attribute__((visibility("hidden")));
#define W(offset) (tim_constants + (offset))
"""

_ASM_PROTOTYPES = {
    "tim_mm_": "void {}(const int32_t *, const uint8_t *, int8_t *, const int32_t *);",
    "tim_wino_in_": "void {}(const int8_t *const *, int32_t *);",
    "tim_wino_mm_": "void {}(int32_t *, const uint8_t *, int8_t *, const int32_t *);",
    "tim_gather_planar": "void {}(const int8_t *, int32_t *, int32_t, int32_t);",
    "tim_gather_run": "int32_t *{}(const int8_t *, int32_t *, int32_t);",
}


def c_source(program: Program, offsets: Sequence[int], machine: Machine) -> str:
    """The C file; `offsets` are the arena offsets of the program's buffers."""
    parts = [_PRELUDE, f"#define LONG_MULTIPLY {int(machine.long_multiply)}", runtime.COMMON]
    if machine.arm:
        parts.append(runtime.ARM_MEMORY)
    if not machine.long_multiply:
        parts.append(runtime.ARMV6M)
    if program.uses_float:
        if machine.hard_float:
            parts.append("#define HARD_FLOAT 1")
        else:
            parts.append(softfloat.ARM if machine.arm else softfloat.RISCV)
        parts.append(softfloat.ARM_WIDE if machine.arm else softfloat.RISCV_WIDE)
    for buffer in program.buffers:
        parts.append(f"#define {buffer.macro} (arena + {offsets[buffer.index]})")
    for name in sorted(program.asm_kernels):
        for prefix, prototype in _ASM_PROTOTYPES.items():
            if name.startswith(prefix):
                parts.append(prototype.format(name))
    parts += [kernel.text for kernel in program.c_kernels.values()]
    for step in program.steps:
        parts.append(f"__attribute__((noinline)) void {step.symbol}(uint8_t *arena) {{\n  {step.body}\n}}")
    calls = "\n".join(f"  {step.symbol}(arena);" for step in program.steps)
    parts.append(f"int32_t {ENTRY}(uint8_t *arena) {{\n{calls}\n  return 0;\n}}\n")
    return "\n".join(parts)


def asm_source(program: Program, arm: bool) -> str:
    """The assembly file: kernels, and the constants as one object that is included from a file."""
    head = "\t.syntax unified\n\t.thumb\n" if arm else ""
    progbits = "%progbits" if arm else "@progbits"
    kind = "%object" if arm else "@object"
    kernels = "".join(program.asm_kernels[name].text for name in sorted(program.asm_kernels))
    constants = (
        f'\t.section .rodata.{CONSTANTS},"a",{progbits}\n\t.p2align 4\n\t.global {CONSTANTS}\n\t.hidden {CONSTANTS}\n'
        f'\t.type {CONSTANTS},{kind}\n{CONSTANTS}:\n\t.incbin "{CONSTANTS_FILE}"\n\t.size {CONSTANTS}, . - {CONSTANTS}\n'
    )
    return head + kernels + constants
