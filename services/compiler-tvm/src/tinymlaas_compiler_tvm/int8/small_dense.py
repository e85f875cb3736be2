"""Fully connected layers on Armv6-M: four weights a word, two of them in one multiplication.

A word holds one k of four outputs as bytes w + 128: o0, o2, o1, o3. Masked, its bytes 0 and 2 times x sum up in two halves,
o1 * 2**16 + o0. Shifted right by 8, without a mask, they sum up to o3 * 2**16 + o1 * 2**8 + o2, and o1 is known by then. What
128 adds is the same for all outputs: 128 times the sum of x, which is taken off where a chunk's sums start, with 2**15 for the
lower half's sign. Sums are U and V as in `small_asm`; what is over, or left of k, comes as products of their own.
"""

from __future__ import annotations

import numpy as np

from tinymlaas_compiler_tvm.int8.asm_text import function
from tinymlaas_compiler_tvm.int8.channels import Layer
from tinymlaas_compiler_tvm.int8.lowering import words
from tinymlaas_compiler_tvm.int8.small_asm import POP, PUSH, PUSHED, requantize
from tinymlaas_compiler_tvm.int8.small_streams import limited, narrow_of
from tinymlaas_compiler_tvm.native.program import AsmKernel

# Outputs that a pass over the row takes: six sums in high registers.
PASS = 12
MOST_K = 1 << 16
# LDRB reaches 32 bytes from its base (an imm5 on Armv6-M), however far the loops unroll.
_MOST_CHUNK = 32
# Instructions: a chunk of a pass, a product that is over.
_CHUNK_COST, _OVER_COST = 58, 12
_SUMS = ("r8", "r9", "r10", "r11", "r12", "lr")


def _chunk_body(count: int, chunk: int) -> list[str]:
    """Products of `chunk` k of a pass of `count` words."""
    values = ("r3", "r4", "r5")[:count]
    lines = []
    for k in range(chunk):
        lines += [f"ldrb r2, [r0, #{k}]", "sxtb r2, r2", f"ldmia r1!, {{{', '.join(values)}}}"]
        for word, masked, shifted in zip(values, _SUMS[::2], _SUMS[1::2], strict=False):
            lines += [f"movs r6, {word}", "ands r6, r7", "muls r6, r2, r6", f"add {masked}, r6"]
            lines += [f"lsrs {word}, {word}, #8", f"muls {word}, r2, {word}", f"add {shifted}, {word}"]
    return lines


def dense(count: int, chunk: int, shift: int, signed: bool, uniform: bool) -> AsmKernel:
    """`const uint8_t *f(const int8_t *x, const uint8_t *stream, int8_t *out, const int32_t *args)`: outputs of `count` words.

    args: end of the last chunk, sums' starts (two a chunk), four times the outputs, and where all outputs have the same
    requantization (`uniform`) span, offset, low, high[, corner, extra]. Returns the stream's end.
    """
    here, end, starts, mask, row, out, given = (16 * count + 4 * i for i in range(7))
    lines = [*PUSH, f"sub sp, #{given + 4}", f"str r0, [sp, #{here}]", f"str r0, [sp, #{row}]", f"str r2, [sp, #{out}]"]
    lines += [f"str r3, [sp, #{given}]", "ldmia r3!, {r4, r5}", f"str r4, [sp, #{end}]", f"str r5, [sp, #{starts}]"]
    lines += ["movs r7, #255", "lsls r6, r7, #16", "adds r7, r7, r6", f"str r7, [sp, #{mask}]", "movs r2, #0"]
    lines += [f"str r2, [sp, #{4 * i}]" for i in range(4 * count)]
    lines += ["1:", f"ldr r6, [sp, #{starts}]", "ldmia r6!, {r2, r3}", f"str r6, [sp, #{starts}]"]
    lines += [f"mov {register}, {'r3' if i % 2 else 'r2'}" for i, register in enumerate(_SUMS[: 2 * count])]
    lines += [f"ldr r0, [sp, #{here}]", f"ldr r7, [sp, #{mask}]", *_chunk_body(count, chunk)]
    lines += [f"adds r0, #{chunk}", f"str r0, [sp, #{here}]", "mov r0, sp"]
    for masked, shifted in zip(_SUMS[: 2 * count : 2], _SUMS[1 : 2 * count : 2], strict=True):
        lines += ["ldmia r0!, {r2, r3, r4, r5}", f"mov r6, {masked}", "adds r2, r2, r6", "asrs r6, r6, #16"]
        lines += ["adds r3, r3, r6", "lsls r6, r6, #8", f"mov r7, {shifted}", "subs r7, r7, r6", "adds r4, r4, r7"]
        lines += ["asrs r7, r7, #16", "adds r5, r5, r7", "subs r0, #16", "stmia r0!, {r2, r3, r4, r5}"]
    lines += [f"ldr r2, [sp, #{here}]", f"ldr r3, [sp, #{end}]", "cmp r2, r3", "beq 2f", "b 1b", "2:", "mov r0, sp"]
    for _ in range(count):
        lines += ["ldmia r0!, {r2, r3, r4, r5}", "lsls r6, r3, #16", "subs r2, r2, r6", "lsls r6, r5, #16"]
        lines += ["subs r4, r4, r6", "subs r0, #16", "stmia r0!, {r2, r3, r4, r5}"]
    # What is over: how many, words of weight << 24, four times the output << 16, and k.
    lines += [f"ldr r0, [sp, #{row}]", "mov r6, sp", "ldmia r1!, {r7}", "cmp r7, #0", "beq 5f", "4:"]
    lines += ["ldmia r1!, {r3}", "asrs r4, r3, #24", "uxth r5, r3", "ldrsb r5, [r0, r5]", "muls r5, r4, r5"]
    lines += ["lsls r3, r3, #8", "lsrs r3, r3, #24", "ldr r4, [r6, r3]", "adds r4, r4, r5", "str r4, [r6, r3]"]
    lines += ["subs r7, #1", "bne 4b", "5:", f"ldr r2, [sp, #{out}]", "mov r8, r2", f"ldr r3, [sp, #{given}]"]
    lines += ["ldr r2, [r3, #8]", "mov r0, sp", "adds r2, r2, r0", "mov r9, r2"]
    if uniform:
        lines += ["adds r3, #12", "ldmia r3!, {r4, r5, r6, r7}"]
        # The stream's pointer gives way to what comes between.
        corner_lines = ["mov r12, r1", "ldmia r3!, {r1, r2}", "mov r10, r1", "mov r11, r2", "mov r1, r12"]
        lines += corner_lines if signed else []
    lines += ["3:", "ldmia r0!, {r2}", f"ldmia r1!, {{{'r3' if uniform else 'r3, r4, r5, r6, r7'}}}", "adds r2, r2, r3"]
    corner = ("r10", "r11") if uniform else None
    lines += requantize("r2", ("r4", "r6", "r7", "r5", "r3"), shift, signed, "r4", corner)
    lines += ["adds r1, #8"] if signed and not uniform else []
    lines += ["mov r3, r8", "strb r2, [r3]", "adds r3, #1", "mov r8, r3", "cmp r0, r9", "bne 3b", "mov r0, r1"]
    name = f"tim_sd{count}c{chunk}q{shift}{'s' if signed else ''}{'u' if uniform else ''}"
    return function(name, [*lines, f"add sp, #{given + 4}", *POP], PUSHED + given + 4)


def best_chunk(layer: Layer, wanted: int) -> int:
    """The size of chunks, at most `wanted` and what a chunk's loads reach, that costs the layer the fewest instructions."""
    channels, k = layer.weights.shape
    sizes = np.abs(layer.weights)

    def cost(chunk: int) -> int:
        whole = k // chunk * chunk
        falling = -np.sort(-sizes[:, :whole].reshape(channels, -1, chunk), axis=2)
        excess = falling.sum(axis=2) - 255
        over = int((falling.cumsum(axis=2) - falling < excess[:, :, None]).sum())
        rest = int(np.count_nonzero(sizes[:, whole:]))
        return int(-(-channels // PASS) * (k // chunk) * _CHUNK_COST + (over + rest) * _OVER_COST)

    return min(range(min(4, k), min(k, wanted, _MOST_CHUNK) + 1), key=cost)


def pass_stream(layer: Layer, first: int, chunk: int) -> bytes:
    """Weights, what is over, and parameters of up to twelve outputs from `first` on."""
    weights = layer.weights[first : first + PASS]
    count, k = weights.shape
    whole = k // chunk * chunk
    kept = np.zeros((-(-count // 4) * 4, whole), np.int64)
    over = []
    for number, row in enumerate(weights):
        kept[number], found = limited(row[:whole], chunk)
        found += [(place, int(row[place])) for place in range(whole, k) if row[place]]
        over += [(weight << 24) + (4 * number << 16) + place for place, weight in found]
    # [words, k, bytes]: output 1 is byte 2.
    data = (kept + 128).reshape(-1, 4, whole)[:, (0, 2, 1, 3)].transpose(2, 0, 1).astype(np.uint8).tobytes()
    narrow = narrow_of(layer)
    values = [len(over), *over]
    for channel in range(first, first + count):
        # U of the first and third output of a word has 2**15 of each chunk.
        extra = 0 if (channel - first) % 2 else k // chunk << 15
        values.append(int(layer.biases[channel] - narrow.bases[channel]) - extra)
        if not narrow.uniform:
            values += parameters(layer, channel)
    return data + words(values)


def parameters(layer: Layer, channel: int) -> list[int]:
    """Span, offset, low, high[, corner, extra] of an output."""
    narrow = narrow_of(layer)
    columns = [narrow.spans, narrow.offsets, narrow.lows, narrow.highs]
    columns += [narrow.corners, narrow.extras] if narrow.signed else []
    return [int(each[channel]) for each in columns]
