"""Kernels for Armv6-M, which has one multiplication (32 by 32 to 32 bits) and eight registers that most instructions take.

Convolutions take four pixels at a time, two in a word: x1 * 2**16 + x0 times a weight, summed over four k, is X1 * 2**16 + X0
with both sums, as long as |X0| < 2**15. X0 is the lower half with its sign, X1 the rest; both are added to sums in high registers,
which only ADD and MOV reach. Where four weights are too large for that, what is over comes as a product of its own
(`small_streams`). Fully connected layers take two weights as a halfword 256 * a + b: its product sums 256 * A + B, and that of
its sign-extended low byte B, so that no shift separates them.
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
_SUMS = ("r8", "r9", "r10", "r11")


def unrolled(k: int, limit: int) -> int:
    """The most k a turn, up to `limit`, that leave no rest."""
    return max(u for u in range(1, limit + 1) if k % u == 0)


def _back(label: str, end: str, skip: str) -> list[str]:
    """Back to a label that may be farther than a conditional branch reaches, unless `end` holds."""
    return [f"b{end} {skip}f", f"b {label}b", f"{skip}:"]


def _split(words: list[str], scratch: str) -> list[str]:
    lines = []
    for word, first, second in zip(words, _SUMS[::2], _SUMS[1::2], strict=False):
        lines += [f"sxth {scratch}, {word}", f"add {first}, {scratch}", f"subs {word}, {word}, {scratch}"]
        lines += [f"asrs {word}, {word}, #16", f"add {second}, {word}"]
    return lines


def requantize(value: str, registers: tuple[str, ...], shift: int, signed: bool, free: str) -> list[str]:
    """`value`, a sum with the negated base, to an int8 in place, as `narrow` says; flags are those of that sum.

    `registers`: span, low, high, offset, one for what comes between; corner and extra are the words at r1.
    """
    span, low, high, offset, scratch = registers
    lines = [
        "bpl 7f",
        f"mov {value}, {offset}",
        "b 9f",
        "7:",
        f"cmp {value}, {span}",
        "bls 8f",
        f"mov {value}, {span}",
        "8:",
    ]
    lines += [f"movs {scratch}, {value}", f"muls {scratch}, {low}, {scratch}", f"lsrs {scratch}, {scratch}, #{shift}"]
    if signed:
        lines += [f"ldr {free}, [r1]", f"cmp {value}, {free}", "blo 6f", f"ldr {free}, [r1, #4]"]
        lines += [f"adds {scratch}, {scratch}, {free}", "6:"]
    lines += [f"muls {value}, {high}, {value}", f"adds {value}, {value}, {scratch}", f"add {value}, {offset}"]
    return [*lines, "9:", f"lsrs {value}, {value}, #24"]


def matrix(unroll: int, pixels: int, shift: int, signed: bool) -> AsmKernel:
    """`void f(const int32_t *patch, const uint8_t *stream, int8_t *out, const int32_t args[6])`.

    All channels of four pixels, whose words lie side by side in the patch, 8 bytes a k, or of the first two. args: bytes of the
    patch, bytes of the stream, distances of the second, third and fourth pixel's outputs from the first's, distance of
    channels. `unroll` counts groups of four k.
    """
    totals, sums, more = ["r6", "r7"][: pixels // 2], _SUMS[:pixels], ["r3", "r4"][: pixels // 2]
    # Stack: 0 end of patch, 4 end of stream, 8 pixel distances, 20 channel distance, 24 patch.
    lines = [*_PUSH, "sub sp, #28", "str r0, [sp, #24]", "ldmia r3!, {r4, r5}", "adds r4, r4, r0", "adds r5, r5, r1"]
    lines += ["str r4, [sp, #0]", "str r5, [sp, #4]", "ldmia r3!, {r4, r5, r6, r7}"]
    lines += [f"str {r}, [sp, #{at}]" for r, at in (("r4", 8), ("r5", 12), ("r6", 16), ("r7", 20))]
    lines += ["mov lr, r2", "1:", "ldr r0, [sp, #24]", "ldr r2, [sp, #0]", "mov r12, r2", "movs r2, #0"]
    lines += [f"mov {register}, r2" for register in sums]
    lines.append("2:")
    for _ in range(unroll):
        lines += ["ldmia r1!, {r5}", "sxtb r2, r5", "ldmia r0!, {r6, r7}", *[f"muls {t}, r2, {t}" for t in totals]]
        for weight in (["asrs r5, r5, #8", "sxtb r2, r5"], ["asrs r5, r5, #8", "sxtb r2, r5"], ["asrs r2, r5, #8"]):
            lines += [*weight, "ldmia r0!, {r3, r4}", *[f"muls {x}, r2, {x}" for x in more]]
            lines += [f"adds {t}, {t}, {x}" for t, x in zip(totals, more, strict=True)]
        lines += _split(totals, "r3")
    lines += ["cmp r0, r12", *_back("2", "eq", "3")]
    # What is over: words of an offset into the patch and a weight.
    lines += ["ldmia r1!, {r5}", "cmp r5, #0", "beq 5f", "4:", "ldmia r1!, {r3}", "asrs r2, r3, #16", "uxth r3, r3"]
    lines += ["ldr r4, [sp, #24]", "adds r4, r4, r3", "ldmia r4!, {r6, r7}", *[f"muls {t}, r2, {t}" for t in totals]]
    lines += [*_split(totals, "r3"), "subs r5, #1", "bne 4b", "5:", "ldmia r1!, {r3, r4, r5, r6, r7}", "mov r12, r5"]
    lines += [] if signed else ["mov r0, lr"]
    for number, total in enumerate(sums):
        lines += [f"mov r2, {total}", "adds r2, r2, r3"]
        lines += requantize("r2", ("r4", "r6", "r7", "r12", "r5"), shift, signed, "r0")
        lines += ["mov r0, lr"] if signed else []
        lines += [f"ldr r5, [sp, #{4 + 4 * number}]", "strb r2, [r0, r5]"] if number else ["strb r2, [r0]"]
    lines += ["adds r1, #8"] if signed else []
    lines += ["ldr r0, [sp, #20]", "add lr, r0", "ldr r0, [sp, #4]", "cmp r1, r0", *_back("1", "eq", "6")]
    name = f"tim_sm{pixels}_u{unroll}q{shift}{'s' if signed else ''}"
    return function(name, [*lines, "add sp, #28", *_POP], _PUSHED + 28)


def pack() -> AsmKernel:
    """`int32_t *f(const int8_t *pixel, int32_t *patch, int32_t n, const int32_t args[4])`: n k of four pixels as two words.

    args: distances of the second, third and fourth pixel from the first, distance of a pixel's k. Returns the patch's end.
    """
    lines = ["push {r4, r5, r6, r7, lr}", "mov r4, r8", "mov r5, r9", "push {r4, r5}"]
    lines += [
        "lsls r2, r2, #3",
        "adds r4, r2, r1",
        "mov r9, r4",
        "ldmia r3!, {r5, r6, r7}",
        "ldr r4, [r3]",
        "mov r8, r4",
    ]
    one = []
    for first, second in (("r4", "r5"), ("r6", "r7")):
        one += [f"ldrsb r2, [r0, {first}]", f"ldrsb r3, [r0, {second}]", "lsls r3, r3, #16", "adds r2, r2, r3"]
        one.append("stmia r1!, {r2}")
    one.append("add r0, r8")
    # An odd k first, then two a turn.
    lines += ["movs r4, #0", "lsls r2, r2, #28", "bpl 1f", *one, "cmp r1, r9", "beq 2f", "1:", *one, *one]
    lines += ["cmp r1, r9", "bne 1b", "2:", "mov r0, r1"]
    lines += ["pop {r4, r5}", "mov r8, r4", "mov r9, r5", "pop {r4, r5, r6, r7, pc}"]
    return function("tim_pack4s", lines, 28)


def _add(register: str, value: int) -> list[str]:
    """`register` += value, in steps of at most 255."""
    verb, left, lines = ("adds" if value > 0 else "subs"), abs(value), []
    while left:
        lines.append(f"{verb} {register}, #{min(left, 255)}")
        left -= min(left, 255)
    return lines


def widen(width: int, pitch: int) -> AsmKernel:
    """`void f(const int8_t *in, int32_t *out, int32_t rows)`: lines of `width` bytes to words, `pitch` words apart."""
    turn = unrolled(width, 16)
    lines = ["push {r4, r5, r6, r7, lr}", *[f"movs r{4 + i}, #{i}" for i in range(4)], "mov lr, r2", "1:"]
    if turn < width:
        lines += ["movs r2, r0", *_add("r2", width), "mov r12, r2"]
    lines.append("2:")
    for start in range(0, turn, 4):
        count = min(turn - start, 4)
        for i in range(count):
            lines += [f"ldrsb r3, [r0, r{4 + i}]", "stmia r1!, {r3}"]
        lines.append(f"adds r0, #{count}")
    if turn < width:
        lines += ["cmp r0, r12", "bne 2b"]
    lines += [*_add("r1", 4 * (pitch - width)), "mov r2, lr", "subs r2, #1", "mov lr, r2", "bne 1b"]
    return function(f"tim_swiden_{width}p{pitch}", [*lines, "pop {r4, r5, r6, r7, pc}"], 20)


def depthwise(
    width: int, pitch: int, stride: tuple[int, int], unroll_limit: int, shift: int, signed: bool
) -> AsmKernel:
    """`void f(const int32_t *plane, const int32_t *block, int8_t *out, int32_t rows)`: 3 by 3 over one plane of words.

    `pitch`: words of a plane's line. block: nine weights, negated base, span, low, high, offset[, corner, extra].
    """
    unroll = unrolled(width, unroll_limit)
    line = 4 * pitch
    # r8 sum, r9 out, r10 end of the line, r11 rows.
    lines = [*_PUSH, "mov r9, r2", "mov r11, r3", "1:"]
    if unroll < width:
        lines += ["movs r2, r0", *_add("r2", 4 * stride[1] * width), "mov r10, r2"]
    lines.append("2:")
    for number in range(unroll):
        for row in range(3):
            lines += ["ldmia r0!, {r2, r3, r4}", "ldmia r1!, {r5, r6, r7}"]
            lines += ["muls r5, r2, r5", "muls r6, r3, r6", "muls r7, r4, r7", "adds r5, r5, r6", "adds r5, r5, r7"]
            if row < 2:
                lines += ["mov r8, r5" if row == 0 else "add r8, r5", *_add("r0", line - 12)]
        lines += _add("r0", 4 * stride[1] - 2 * line - 12)
        lines += ["ldmia r1!, {r2, r3, r4, r6, r7}", "add r5, r8", "adds r5, r5, r2"]
        # The span is not needed any more when corner and extra are.
        lines += requantize("r5", ("r3", "r4", "r6", "r7", "r2"), shift, signed, "r3")
        lines += ["subs r1, #56", "mov r2, r9", f"strb r5, [r2, #{number}]"]
    lines += [f"adds r2, #{unroll}", "mov r9, r2"]
    if unroll < width:
        lines += ["cmp r0, r10", *_back("2", "eq", "3")]
    lines += _add("r0", stride[0] * line - 4 * stride[1] * width)
    lines += ["mov r2, r11", "subs r2, #1", "mov r11, r2", *_back("1", "eq", "4")]
    tag = f"{width}p{pitch}s{stride[0]}{stride[1]}u{unroll}q{shift}{'s' if signed else ''}"
    return function(f"tim_sdw_{tag}", [*lines, *_POP], _PUSHED)


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
