"""Winograd's F(2x2, 3x3) in integers for cores with the DSP extension, as generated Thumb-2 assembly.

Two tiles that lie side by side (4 x 4 pixels each, two columns shared) go through two kernels: `transform` makes V = B^T d B of
all their channels; `product` sums U V over the channels at each of the 16 positions of a tile, two tiles by two channels in
registers, and makes A^T M A and the outputs of the sums M.

Scratch of the two: 16 positions of `position_bytes`. Each holds, for four channels k0..k3 at a time, the halfword pairs
(k0, k2) of both tiles, then (k1, k3) of both; behind them is room for four sums. The order of positions lets both kernels walk
straight through.

Reference: A. Lavin, S. Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, section 4.1.
"""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.asm_text import Epilogue, function
from tinymlaas_compiler_tvm.int8.dsp_asm import requantize
from tinymlaas_compiler_tvm.native.program import AsmKernel

_ROWS = (1, 2, 0, 3)
_COLUMNS = (0, 3, 1, 2)
# (row, column) of V, U and M in the order in which they stand in scratch and stream.
POSITIONS = tuple((row, column) for row in _ROWS for column in _COLUMNS)
# STRD and LDRD walk by up to 1020 bytes.
MOST_CHANNELS = 248
_GROUPS_UNROLLED = 16
# Sums are 4 * accumulator; `requantize` wants 256 * accumulator.
PLAIN_SHIFT = 6


def position_bytes(channels: int) -> int:
    """Bytes of scratch for a position of both tiles: V of all input channels, four sums."""
    return 4 * channels + 16


def transform(channels: int) -> AsmKernel:
    """`void f(const int8_t *const rows[4], int32_t *scratch)`: V of two tiles; `rows` begin at the left one's first pixel.

    Four channels a turn: B^T d, column by column, to the stack; then times B, row by row, to the scratch.
    """
    step = position_bytes(channels)
    lines = [
        "push {r4, r5, r6, r7, r8, r9, r10, r11, lr}",
        "sub sp, #4",
        "mov lr, r1",
        "ldm r0, {r0, r1, r2, r3}",
        f"add r4, r0, #{channels}",
        "str r4, [sp]",
        "1:",
        "push {r0, r1, r2, r3}",
    ]
    for column in range(6):
        for register, pointer in (("r4", "r0"), ("r7", "r1"), ("r9", "r2"), ("r11", "r3")):
            lines.append(f"ldr {register}, [{pointer}, #{column * channels}]")
        # d0 in r4, r5; d1 in r7, r8; d2 in r9, r10; d3 in r11, r12: pairs (k0, k2), (k1, k3).
        for low, high in (("r4", "r5"), ("r7", "r8"), ("r9", "r10"), ("r11", "r12")):
            lines += [f"sxtb16 {high}, {low}, ror #8", f"sxtb16 {low}, {low}"]
        lines += [
            "ssub16 r4, r4, r9",
            "ssub16 r5, r5, r10",
            "sadd16 r6, r7, r9",
            "ssub16 r9, r9, r7",
            "ssub16 r11, r7, r11",
            "sadd16 r7, r8, r10",
            "ssub16 r10, r10, r8",
            "ssub16 r12, r8, r12",
            "push {r4, r5, r6, r7, r9, r10, r11, r12}",
        ]
    for row in _ROWS:
        for column in range(6):
            lines.append(f"ldrd r{column}, r{column + 6}, [sp, #{32 * (5 - column) + 8 * row}]")
        for column in _COLUMNS:
            # The pairs (k1, k3) first, so that the store of (k0, k2) can move on.
            for first, place in ((6, "[lr, #8]"), (0, f"[lr], #{step}")):
                lines += _columns_of_two_tiles(column, [f"r{first + x}" for x in range(6)], place)
    lines += [
        "add sp, #192",
        "pop {r0, r1, r2, r3}",
        f"movw r4, #{16 * step - 16}",
        "sub lr, r4",
        *(f"adds {pointer}, #4" for pointer in ("r0", "r1", "r2", "r3")),
        "ldr r4, [sp]",
        "cmp r0, r4",
        "bne.w 1b",
        "add sp, #4",
        "pop {r4, r5, r6, r7, r8, r9, r10, r11, pc}",
    ]
    return function(f"tim_wino_in_{channels}", lines, 36 + 4 + 16 + 192)


def _columns_of_two_tiles(column: int, x: list[str], place: str) -> list[str]:
    """A column of V of both tiles out of a row of six; the columns come in the order of _COLUMNS, and use up `x`."""
    if column == 0:
        return [f"ssub16 {x[0]}, {x[0]}, {x[2]}", f"ssub16 r12, {x[2]}, {x[4]}", f"strd {x[0]}, r12, {place}"]
    if column == 3:
        return [f"ssub16 {x[0]}, {x[1]}, {x[3]}", f"ssub16 {x[5]}, {x[3]}, {x[5]}", f"strd {x[0]}, {x[5]}, {place}"]
    if column == 1:
        return [f"sadd16 {x[0]}, {x[1]}, {x[2]}", f"sadd16 {x[5]}, {x[3]}, {x[4]}", f"strd {x[0]}, {x[5]}, {place}"]
    return [f"ssub16 {x[1]}, {x[2]}, {x[1]}", f"ssub16 {x[3]}, {x[4]}, {x[3]}", f"strd {x[1]}, {x[3]}, {place}"]


def _sums(channels: int) -> list[str]:
    """The sums of one position of two tiles (at r0) by two channels (at r1): 10 instructions for 16 products."""
    lines = []
    for group in range(channels // 4):
        lines += ["ldmia r0!, {r6, r7, r8, r9}", "ldmia r1!, {r10, r11, r12, lr}"]
        for sums, weights in ((("r2", "r3"), "r10"), (("r4", "r5"), "r11")):
            for total, values in zip(sums, ("r6", "r7"), strict=True):
                lines.append(
                    f"smlad {total}, {values}, {weights}, {total}" if group else f"smuad {total}, {values}, {weights}"
                )
        for sums, weights in ((("r2", "r3"), "r12"), (("r4", "r5"), "lr")):
            for total, values in zip(sums, ("r8", "r9"), strict=True):
                lines.append(f"smlad {total}, {values}, {weights}, {total}")
    lines.append("stmia r0!, {r2, r3, r4, r5}")
    return lines


def _add(totals: tuple[str, str], values: tuple[str, str], sign: int) -> list[str]:
    name = "add" if sign > 0 else "sub"
    return [f"{name} {total}, {total}, {value}" for total, value in zip(totals, values, strict=True)]


def _outputs(step: int) -> list[str]:
    """A^T M A of both tiles of the channel whose sums begin at r0 and whose bias stands at r1.

    Results, both tiles each: row 0 in r2, r3 and r4, r5; row 1 in r6, r7 and r8, r9.
    """

    def load(*registers: str) -> str:
        return f"ldrd {', '.join(registers)}, [r0], #{step}"

    first, second = (("r2", "r3"), ("r4", "r5")), (("r6", "r7"), ("r8", "r9"))
    # Row 1 of M; in its columns 0, 3, 1, 2. The bias on position (1, 1) reaches every output once.
    lines = [load("r2", "r3"), load("r8", "r9"), load("r4", "r5"), load("r10", "r11"), "ldr lr, [r1], #4"]
    lines += _add(("r4", "r5"), ("lr", "lr"), 1)
    lines += [*_add(first[0], first[1], 1), *_add(first[0], ("r10", "r11"), 1)]
    lines += [*_add(first[1], ("r10", "r11"), -1), *_add(first[1], ("r8", "r9"), -1)]
    # Row 2.
    lines += [load("r6", "r7"), load("r10", "r11"), load("r8", "r9"), load("r12", "lr")]
    lines += [*_add(second[0], second[1], 1), *_add(second[0], ("r12", "lr"), 1)]
    lines += [*_add(second[1], ("r12", "lr"), -1), *_add(second[1], ("r10", "r11"), -1)]
    # Their sum goes to output row 0, their difference to row 1.
    for upper, lower in zip(first, second, strict=True):
        for a, b in zip(upper, lower, strict=True):
            lines += [f"sub {b}, {a}, {b}", f"rsb {a}, {b}, {a}, lsl #1"]
    for outputs, sign in ((first, 1), (second, -1)):
        # Rows 0 and 3: the sums of columns 0, 1, 2 to the left output, those of 1, -2, -3 to the right one.
        for left, right in ((1, 0), (0, -1), (1, 1), (1, -1)):
            lines.append(load("r10", "r11"))
            for output, share in ((outputs[0], left), (outputs[1], right)):
                lines += _add(output, ("r10", "r11"), share * sign) if share else []
    return lines


def _requantize_and_store(epilogue: Epilogue, shift: int) -> list[str]:
    """Eight results of `_outputs` to int8 and to their pixels; reads the channel's parameters at r1."""
    registers = ["r10", "r11", *(["r12"] if epilogue.signed else []), *(["lr"] if epilogue.variable else [])]
    lines = [f"ldmia r1!, {{{', '.join(registers)}}}"]
    for value in range(2, 10):
        lines += [f"lsl r{value}, r{value}, #{shift}"] if shift else []
        lines += requantize(f"r{value}", "r10", "r11", "r12", "lr", "r0", epilogue)
    lines += ["ldrd r10, r11, [sp, #8]", "ldrd r12, lr, [sp, #16]", "add r0, r10, lr"]
    for base, pixels in (("r10", ("r2", "r4", "r3", "r5")), ("r0", ("r6", "r8", "r7", "r9"))):
        places = (f"[{base}]", f"[{base}, r11]", f"[{base}, r11, lsl #1]", f"[{base}, r12]")
        lines += [f"strb {value}, {place}" for value, place in zip(pixels, places, strict=True)]
    return [*lines, "ldr r11, [sp, #24]", "add r10, r11", "str r10, [sp, #8]"]


def product(channels: int, shift: int, epilogue: Epilogue) -> AsmKernel:
    """`void f(int32_t *scratch, const uint8_t *stream, int8_t *out, const int32_t args[5])`: two tiles, all output channels.

    args: distance of pixels, three times that, distance of rows, distance of channels, bytes of the stream. Sums are
    multiplied by 2**shift before they are requantized.
    """
    step = position_bytes(channels)
    unroll = 16
    while unroll > 1 and unroll * (channels // 4) > _GROUPS_UNROLLED:
        unroll //= 2
    # Stack: 0 first sum, 4 scratch, 8 out, 12 pixels, 16 three pixels, 20 rows, 24 channels, 28 end of stream, 32 of scratch.
    lines = [
        "push {r4, r5, r6, r7, r8, r9, r10, r11, lr}",
        "sub sp, #36",
        "ldm r3, {r4, r5, r6, r7, r8}",
        "add r8, r1",
        "strd r4, r5, [sp, #12]",
        "strd r6, r7, [sp, #20]",
        "str r8, [sp, #28]",
        f"add r4, r0, #{4 * channels}",
        f"movw r5, #{16 * step}",
        "add r5, r0",
        "strd r4, r0, [sp, #0]",
        "str r2, [sp, #8]",
        "str r5, [sp, #32]",
        "1:",
        "ldr r0, [sp, #4]",
    ]
    if unroll < 16:
        lines.append("2:")
    for _ in range(unroll):
        lines += _sums(channels)
    if unroll < 16:
        lines += ["ldr r6, [sp, #32]", "cmp r0, r6", "bne.w 2b"]
    for second in (False, True):
        lines += ["ldr r0, [sp, #0]", *(["adds r0, #8"] if second else [])]
        lines += [*_outputs(step), *_requantize_and_store(epilogue, shift)]
    lines += [
        "ldr r6, [sp, #28]",
        "cmp r1, r6",
        "bne.w 1b",
        "add sp, #36",
        "pop {r4, r5, r6, r7, r8, r9, r10, r11, pc}",
    ]
    return function(f"tim_wino_mm_{channels}s{shift}_{epilogue.tag}", lines, 36 + 36)
