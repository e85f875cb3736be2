"""Kernels for Armv6-M, which has one multiplication (32 by 32 to 32 bits) and eight registers that most instructions take.

Convolutions take four pixels at a time, two in a word: x1 * 2**16 + x0 times a weight, summed over a chunk of some k, is
T = X1 * 2**16 + X0 with both sums, as long as |X0| < 2**15. With 2**15 added its upper half is X1. U, the sum of all T modulo
2**32, and V, that of the upper halves, are kept in high registers, which only ADD and MOV reach: the second pixel's sum is V, the
first one's U - V * 2**16. Where a chunk's weights are too large, what is over comes as products of their own (`small_streams`).
"""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.asm_text import function
from tinymlaas_compiler_tvm.native.program import AsmKernel

PUSH = [
    "push {r4, r5, r6, r7, lr}",
    "mov r4, r8",
    "mov r5, r9",
    "mov r6, r10",
    "mov r7, r11",
    "push {r4, r5, r6, r7}",
]
POP = [
    "pop {r4, r5, r6, r7}",
    "mov r8, r4",
    "mov r9, r5",
    "mov r10, r6",
    "mov r11, r7",
    "pop {r4, r5, r6, r7, pc}",
]
PUSHED = 36
_SUMS = ("r8", "r9", "r10", "r11")


def unrolled(k: int, limit: int) -> int:
    """The most k a turn, up to `limit`, that leave no rest."""
    return max(u for u in range(1, limit + 1) if k % u == 0)


def _back(label: str, end: str, skip: str) -> list[str]:
    """Back to a label that may be farther than a conditional branch reaches, unless `end` holds."""
    return [f"b{end} {skip}f", f"b {label}b", f"{skip}:"]


def _fold(words: list[str]) -> list[str]:
    """Chunks' sums into U and V; lr holds 2**15."""
    lines = []
    for word, first, second in zip(words, _SUMS[::2], _SUMS[1::2], strict=False):
        lines += [f"add {word}, lr", f"add {first}, {word}", f"asrs {word}, {word}, #16", f"add {second}, {word}"]
    return lines


def _fold_exactly(words: list[str], scratch: str) -> list[str]:
    """The same without 2**15, which U's start knows nothing of."""
    lines = []
    for word, first, second in zip(words, _SUMS[::2], _SUMS[1::2], strict=False):
        lines += [f"add {first}, {word}", f"sxth {scratch}, {word}", f"subs {word}, {word}, {scratch}"]
        lines += [f"asrs {word}, {word}, #16", f"add {second}, {word}"]
    return lines


def requantize(
    value: str,
    registers: tuple[str, ...],
    shift: int,
    signed: bool,
    free: str,
    corner: tuple[str, str] | None = None,
) -> list[str]:
    """`value`, a sum with the negated base, to an int8 in place, as `narrow` says; flags are those of that sum.

    `registers`: span, low, high, offset, one for what comes between; corner and extra are in `corner`, else the words at r1.
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
    if signed and corner is not None:
        lines += [f"cmp {value}, {corner[0]}", "blo 6f", f"add {scratch}, {corner[1]}", "6:"]
    elif signed:
        lines += [f"ldr {free}, [r1]", f"cmp {value}, {free}", "blo 6f", f"ldr {free}, [r1, #4]"]
        lines += [f"adds {scratch}, {scratch}, {free}", "6:"]
    lines += [f"muls {value}, {high}, {value}", f"adds {value}, {value}, {scratch}", f"add {value}, {offset}"]
    return [*lines, "9:", f"lsrs {value}, {value}, #24"]


def _weights(count: int, chunk: int, totals: list[str], more: list[str]) -> list[str]:
    """Products of `count` weights, a multiple of four and of `chunk`; r1 and r0 go on."""
    next_byte = ["asrs r5, r5, #8", "sxtb r2, r5"]
    weight = [["ldmia r1!, {r5}", "sxtb r2, r5"], next_byte, next_byte, ["asrs r2, r5, #8"]]
    lines = []
    for k in range(count):
        into, pair = (totals, "{r6, r7}") if k % chunk == 0 else (more, "{r3, r4}")
        lines += [*weight[k % 4], f"ldmia r0!, {pair}", *[f"muls {x}, r2, {x}" for x in into]]
        lines += [] if into is totals else [f"adds {t}, {t}, {x}" for t, x in zip(totals, more, strict=True)]
        lines += _fold(totals) if (k + 1) % chunk == 0 else []
    return lines


def matrix(turn: int, chunk: int, pixels: int, shift: int, signed: bool) -> AsmKernel:
    """`void f(const int32_t *patch, const uint8_t *stream, int8_t *out, const int32_t args[7])`.

    All channels of four pixels, whose words lie side by side in the patch, 8 bytes a k, or of the first two. args: bytes of the
    patch, bytes of the stream, distances of the second, third and fourth pixel's outputs from the first's, distance of
    channels, where U starts. `turn` counts k, a multiple of four and of `chunk`.
    """
    totals, sums, more = ["r6", "r7"][: pixels // 2], _SUMS[:pixels], ["r3", "r4"][: pixels // 2]
    # Stack: 0 end of patch, 4 end of stream, 8 pixel distances, 20 channel distance, 24 start of U, 28 patch, 32 out.
    lines = [*PUSH, "sub sp, #36", "str r0, [sp, #28]", "str r2, [sp, #32]"]
    lines += ["ldmia r3!, {r4, r5}", "adds r4, r4, r0", "adds r5, r5, r1", "str r4, [sp, #0]", "str r5, [sp, #4]"]
    lines += ["ldmia r3!, {r2, r4, r5, r6, r7}"]
    lines += [f"str {r}, [sp, #{at}]" for r, at in (("r2", 8), ("r4", 12), ("r5", 16), ("r6", 20), ("r7", 24))]
    lines += ["movs r2, #1", "lsls r2, r2, #15", "mov lr, r2"]
    lines += ["1:", "ldr r0, [sp, #28]", "ldr r2, [sp, #0]", "mov r12, r2", "ldr r2, [sp, #24]", "movs r3, #0"]
    lines += [f"mov {register}, {'r3' if number % 2 else 'r2'}" for number, register in enumerate(sums)]
    lines += ["2:", *_weights(turn, chunk, totals, more), "cmp r0, r12", *_back("2", "eq", "3")]
    # The span and whether something is over: how many of a batch, words of an offset into the patch and a weight, and so on
    # until there are none.
    lines += ["ldmia r1!, {r4}", "lsrs r4, r4, #1", "bcc 5f", "mov r12, r4", "ldmia r1!, {r5}"]
    lines += ["9:", *[f"movs {t}, #0" for t in totals]]
    lines += ["4:", "ldmia r1!, {r3}", "asrs r2, r3, #16", "uxth r3, r3", "ldr r4, [sp, #28]", "adds r4, r4, r3"]
    lines += ["ldm r4, {r3, r4}", *[f"muls {x}, r2, {x}" for x in more]]
    lines += [f"adds {t}, {t}, {x}" for t, x in zip(totals, more, strict=True)]
    lines += ["subs r5, #1", "bne 4b", *_fold_exactly(totals, "r3"), "ldmia r1!, {r5}", "cmp r5, #0", "bne 9b"]
    lines += ["mov r4, r12", "5:", "ldmia r1!, {r3, r5, r6, r7}", "mov r12, r5"]
    lines += [] if signed else ["ldr r0, [sp, #32]"]
    for number, total in enumerate(sums):
        if number % 2:
            lines += [f"mov r2, {total}"]
        else:
            lines += [f"mov r5, {sums[number + 1]}", "lsls r5, r5, #16", f"mov r2, {total}", "subs r2, r2, r5"]
        lines += ["adds r2, r2, r3"]
        lines += requantize("r2", ("r4", "r6", "r7", "r12", "r5"), shift, signed, "r0")
        lines += ["ldr r0, [sp, #32]"] if signed else []
        lines += [f"ldr r5, [sp, #{4 + 4 * number}]", "strb r2, [r0, r5]"] if number else ["strb r2, [r0]"]
    lines += ["adds r1, #8"] if signed else []
    lines += ["ldr r2, [sp, #20]", "adds r0, r0, r2", "str r0, [sp, #32]"]
    lines += ["ldr r0, [sp, #4]", "cmp r1, r0", *_back("1", "eq", "6")]
    name = f"tim_sm{pixels}_t{turn}c{chunk}q{shift}{'s' if signed else ''}"
    return function(name, [*lines, "add sp, #36", *POP], PUSHED + 36)


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
    lines = [*PUSH, "mov r9, r2", "mov r11, r3", "1:"]
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
    return function(f"tim_sdw_{tag}", [*lines, *POP], PUSHED)
