"""Kernels for Armv6-M, which has one multiplication (32 by 32 to 32 bits) and eight registers that most instructions take.

Sums stand in high registers, which only ADD and MOV reach; the low ones hold operands. Two int8 weights come as a halfword
256 * a + b: its product sums 256 * A + B, and that of its sign-extended low byte B, so that no shift separates them.
"""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.asm_text import function
from tinymlaas_compiler_tvm.native.program import AsmKernel

_PUSH = [
    "push {r4, r5, r6, r7, lr}",
    "mov r4, r8",
    "mov r5, r9",
    "mov r6, r10",
    "mov r7, r11",
    "push {r4, r5, r6, r7}",
]
_POP = [
    "pop {r4, r5, r6, r7}",
    "mov r8, r4",
    "mov r9, r5",
    "mov r10, r6",
    "mov r11, r7",
    "pop {r4, r5, r6, r7, pc}",
]
_PUSHED = 36


def unrolled(k: int, limit: int) -> int:
    """The most k a turn, up to `limit`, that leave no rest."""
    return max(u for u in range(1, limit + 1) if k % u == 0)


def two_by_three(unroll: int) -> AsmKernel:
    """`void f(const int32_t *patch, const uint8_t *weights, int32_t sums[6], const int32_t *patch_end)`.

    Two channels, halfwords 256 * a + b, of three pixels, three words a k; K is a multiple of `unroll`.
    sums: of the first channel times 256 for each pixel, then of the second.
    """
    firsts, seconds = ("r8", "r9", "r10"), ("r11", "r12", "lr")
    lines = [*_PUSH, "push {r2, r3}", "movs r2, #0"]
    lines += [f"mov {register}, r2" for register in (*firsts, *seconds)]
    lines.append("1:")
    for i in range(unroll):
        lines += ["ldmia r0!, {r2, r3, r4}", f"ldrh r5, [r1, #{2 * i}]", "sxtb r6, r5", "sxth r5, r5"]
        for x, first, second in zip(("r2", "r3"), firsts, seconds, strict=False):
            lines += [
                f"movs r7, {x}",
                "muls r7, r5, r7",
                f"muls {x}, r6, {x}",
                f"add {first}, r7",
                f"add {second}, {x}",
            ]
        lines += ["muls r5, r4, r5", "muls r4, r6, r4", "add r10, r5", "add lr, r4"]
    lines += [f"adds r1, #{2 * unroll}", "ldr r7, [sp, #4]", "cmp r0, r7", "beq 2f", "b 1b", "2:", "pop {r0, r1}"]
    for first, second, offset in zip(firsts, seconds, (0, 4, 8), strict=True):
        lines += [f"mov r2, {first}", f"mov r3, {second}", "subs r2, r2, r3"]
        lines += [f"str r2, [r0, #{offset}]", f"str r3, [r0, #{offset + 12}]"]
    return function(f"tim_sum6_u{unroll}", [*lines, *_POP], _PUSHED + 8)


def dense(unroll: int) -> AsmKernel:
    """`void f(const int8_t *x, const uint8_t *weights, int32_t sums[4], const int8_t *x_end)`.

    Four channels of one row, K a multiple of `unroll`; a word a k: halfwords 256 * a + b and 256 * c + d.
    sums: of a and c times 256, of b and d.
    """
    lines = [*_PUSH, "push {r2, r3}", "movs r7, #0"]
    lines += [f"mov {register}, r7" for register in ("r8", "r9", "r10", "r11")]
    lines.append("1:")
    for _ in range(unroll):
        lines.append("ldmia r1!, {r3}")
        lines += ["ldrsb r2, [r0, r7]", "adds r0, #1"]
        lines += ["sxth r4, r3", "sxtb r5, r3", "asrs r6, r3, #16", "sxtb r3, r6"]
        for register, total in (("r4", "r8"), ("r5", "r9"), ("r6", "r10"), ("r3", "r11")):
            lines += [f"muls {register}, r2, {register}", f"add {total}, {register}"]
    lines += ["ldr r3, [sp, #4]", "cmp r0, r3", "beq 2f", "b 1b", "2:", "pop {r0, r1}"]
    for first, second, offset in (("r8", "r9", 0), ("r10", "r11", 8)):
        lines += [f"mov r2, {first}", f"mov r3, {second}", "subs r2, r2, r3"]
        lines += [f"str r2, [r0, #{offset}]", f"str r3, [r0, #{offset + 4}]"]
    return function(f"tim_sum4_u{unroll}", [*lines, *_POP], _PUSHED + 8)
