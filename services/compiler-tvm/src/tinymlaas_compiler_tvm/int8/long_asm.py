"""Kernels for Armv7-M and Armv8-M Mainline without the DSP extension: two products in one 64-bit multiply-accumulate.

A word x = x1 * 2**23 + x0 of two int8 values times an int8 value, summed by SMLAL, is X1 * 2**23 + X0 with the two sums; X0 is
the low 23 bits with their sign while |X0| < 2**22, and X1 the rest. (At 2**24 the word itself would overflow for x1 = -128.)
Convolutions pack two pixels so (in scratch memory, so that weights stay int8 in flash), fully connected layers two weights (by
a mask, after the load, 24 bits apart: the lower one is made positive first), depthwise layers two neighbours.
Streams are what `long_streams` writes. The sums start
at zero; a bias is added to them at the end.
"""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.asm_text import Epilogue, clamp_lines, function
from tinymlaas_compiler_tvm.native.program import AsmKernel

# Bits between the two pixels of a word.
PIXEL_FIELD = 23
# The bytes of a word that a fully connected layer's mask keeps: 0 and 3.
_MASK_TOP, _MASK_LOW = 0xFF00, 0x00FF


def split(low: str, high: str, scratch: str, width: int) -> list[str]:
    """A 64-bit sum to its two fields' sums times 512: that of the lower `width` bits in `low`, the other in `high`."""
    # LSRS leaves the lower sum's sign in the carry: what it had borrowed from the upper field comes back.
    return [
        f"lsrs {scratch}, {low}, #{width}",
        f"adc {high}, {scratch}, {high}, lsl #{32 - width}",
        f"lsl {high}, {high}, #9",
        f"lsl {low}, {low}, #9",
    ]


def requantize(
    values: tuple[str, ...],
    stream: str,
    registers: tuple[str, str, str, str],
    scratch: str,
    epilogue: Epilogue,
    dsp: bool = False,
) -> list[str]:
    """Sums times 512 of one channel to int8 in place; reads the channel's parameters from `stream` on.

    `registers`, ascending: for multiplier, offset, negative, and one for the bias and whatever comes between. `dsp`: the core
    has SMMLA. Parameters: multiplier, offset[, negative][, bias * 512][, shift].
    """
    multiplier, offset, negative, free = registers
    extra = [*([negative] if epilogue.signed else []), *([free] if epilogue.biased else [])]
    lines = [f"ldmia {stream}!, {{{', '.join([multiplier, offset, *extra])}}}"]
    if epilogue.biased:
        lines += [f"add {value}, {value}, {free}" for value in values]
    return lines + apply(values, registers, scratch, epilogue, dsp, stream)


def apply(
    values: tuple[str, ...],
    registers: tuple[str, str, str, str],
    scratch: str,
    epilogue: Epilogue,
    dsp: bool = False,
    stream: str = "",
) -> list[str]:
    """As `requantize`, with the parameters in their registers, but for a channel's own shift, which `stream` has."""
    multiplier, offset, negative, free = registers
    lines = []
    for value in values:
        plus = offset
        if epilogue.signed:
            lines += [f"and {free}, {negative}, {value}, asr #31", f"sub {free}, {offset}, {free}"]
            plus = free
        if dsp:
            lines.append(f"smmla {value}, {value}, {multiplier}, {plus}")
        else:
            lines += [f"smull {scratch}, {value}, {value}, {multiplier}", f"add {value}, {value}, {plus}"]
    if epilogue.variable:
        lines.append(f"ldr {multiplier}, [{stream}], #4")
    for value in values:
        if epilogue.variable:
            lines += [f"asr {value}, {value}, {multiplier}", f"ssat {value}, #8, {value}"]
        else:
            lines.append(f"ssat {value}, #8, {value}, asr #{epilogue.shift + 1}")
        lines += clamp_lines(value, epilogue)
    return lines


def _zero(registers: list[str]) -> list[str]:
    return [f"mov{'s' if int(register[1:]) < 8 else ''} {register}, #0" for register in registers]


def _end(register: str, start: str, size: int) -> list[str]:
    """`register` = start + size."""
    if size < 4096:
        return [f"addw {register}, {start}, #{size}"]
    high = [f"movt {register}, #{size >> 16}"] if size >> 16 else []
    return [f"movw {register}, #{size & 0xFFFF}", *high, f"add {register}, {start}"]


def two_by_four(k: int, unroll_limit: int, epilogue: Epilogue) -> AsmKernel:
    """`void f(const void *patch, const void *stream, int8_t *out, const int32_t args[5])`.

    All channels, two at a time, of four pixels whose packed pairs lie interleaved in the patch, 8 bytes a k. args: distances
    of the second, third and fourth pixel's outputs from the first's, distance of channels, bytes of the stream.
    """
    unroll = max(u for u in range(1, unroll_limit + 1) if k % u == 0)
    sums = [("r4", "r5"), ("r6", "r7"), ("r8", "r9"), ("r10", "r11")]
    # Stack: 0 out, 4 channel distance, 8 pixel distances, 20 end of stream, 24 patch.
    lines = [
        "push {r4, r5, r6, r7, r8, r9, r10, r11, lr}",
        "sub sp, #28",
        "ldm r3, {r4, r5, r6, r7, r8}",
        "add r8, r1",
        "strd r2, r7, [sp, #0]",
        "strd r4, r5, [sp, #8]",
        "strd r6, r8, [sp, #16]",
        "str r0, [sp, #24]",
        *_end("lr", "r0", 8 * k),
        "1:",
        *_zero([register for pair in sums for register in pair]),
        "2:",
    ]
    for _ in range(unroll):
        lines.append("ldmia r0!, {r2, r3}")
        for first in (0, 2):
            lines.append("ldrsb r12, [r1], #1")
            for (low, high), pixels in zip(sums[first : first + 2], ("r2", "r3"), strict=True):
                lines.append(f"smlal {low}, {high}, {pixels}, r12")
    if unroll < k:
        lines += ["cmp r0, lr", "bne 2b"]
    lines += [*_stream_alignment(2 * k, "r1")]
    for first in (0, 2):
        (a, b), (c, d) = sums[first : first + 2]
        lines += split(a, b, "r0", PIXEL_FIELD) + split(c, d, "r0", PIXEL_FIELD)
        lines += requantize((a, b, c, d), "r1", ("r2", "r3", "r12", "lr"), "r0", epilogue)
    lines.append("ldm sp, {r0, r2, r3, r12, lr}")
    for first in (0, 2):
        (a, b), (c, d) = sums[first : first + 2]
        lines += [f"strb {a}, [r0]", f"strb {b}, [r0, r3]", f"strb {c}, [r0, r12]", f"strb {d}, [r0, lr]", "add r0, r2"]
    lines += [
        "str r0, [sp]",
        "ldrd r2, r0, [sp, #20]",
        *_end("lr", "r0", 8 * k),
        "cmp r1, r2",
        "bne.w 1b",
        "add sp, #28",
        "pop {r4, r5, r6, r7, r8, r9, r10, r11, pc}",
    ]
    return function(f"tim_lm4_k{k}u{unroll}_{epilogue.tag}", lines, 36 + 28)


def _stream_alignment(size: int, register: str) -> list[str]:
    """Skip the padding of `size` bytes to a whole word."""
    return [f"adds {register}, #{-size % 4}"] if size % 4 else []


def two_by_two(k: int, unroll_limit: int, epilogue: Epilogue) -> AsmKernel:
    """As `two_by_four`, same stream and arguments, for one or two pixels: 4 bytes a k in the patch."""
    unroll = max(u for u in range(1, unroll_limit + 1) if k % u == 0)
    sums = [("r4", "r5"), ("r6", "r7")]
    lines = [
        "push {r4, r5, r6, r7, r8, r9, r10, r11, lr}",
        "sub sp, #4",
        "mov r8, r0",
        "mov r9, r2",
        "ldr r10, [r3]",
        "ldrd r11, r2, [r3, #12]",
        "add r2, r1",
        "str r2, [sp]",
        "1:",
        *_zero([register for pair in sums for register in pair]),
        *_end("lr", "r0", 4 * k),
        "2:",
    ]
    for _ in range(unroll):
        lines.append("ldr r2, [r0], #4")
        for low, high in sums:
            lines += ["ldrsb r12, [r1], #1", f"smlal {low}, {high}, r2, r12"]
    if unroll < k:
        lines += ["cmp r0, lr", "bne 2b"]
    lines += [*_stream_alignment(2 * k, "r1")]
    for low, high in sums:
        lines += split(low, high, "r0", PIXEL_FIELD)
        lines += requantize((low, high), "r1", ("r2", "r3", "r12", "lr"), "r0", epilogue)
        lines += [f"strb {low}, [r9]", f"strb {high}, [r9, r10]", "add r9, r11"]
    lines += [
        "ldr r2, [sp]",
        "mov r0, r8",
        "cmp r1, r2",
        "bne 1b",
        "add sp, #4",
        "pop {r4, r5, r6, r7, r8, r9, r10, r11, pc}",
    ]
    return function(f"tim_lm2_k{k}u{unroll}_{epilogue.tag}", lines, 36 + 4)


def pack_four_runs(stride: int = 8) -> AsmKernel:
    """`int32_t *f(const int8_t *const pixels[4], int32_t *patch, int32_t n)`: n k, side by side, of four pixels.

    Words (second, first) and (fourth, third) a k, `stride` bytes apart; returns the patch pointer after the last k.
    """
    lines = [
        "push {r4, r5, r6, r7, r8, r9, r10, lr}",
        "ldm r0, {r4, r5, r6, r7}",
        "subs r2, #4",
        "blt 2f",
        "1:",
    ]
    one = [
        "ldrsb r8, [r4], #1",
        "ldrsb r9, [r5], #1",
        "ldrsb r10, [r6], #1",
        "ldrsb r12, [r7], #1",
        f"add r8, r8, r9, lsl #{PIXEL_FIELD}",
        f"add r10, r10, r12, lsl #{PIXEL_FIELD}",
        f"strd r8, r10, [r1], #{stride}",
    ]
    lines += one * 4
    lines += ["subs r2, #4", "bge 1b", "2:", "adds r2, #4", "beq 4f", "3:", *one, "subs r2, #1", "bne 3b", "4:"]
    lines += ["mov r0, r1", "pop {r4, r5, r6, r7, r8, r9, r10, pc}"]
    return function(f"tim_pack4r{'' if stride == 8 else stride}", lines, 32)


def dense(k: int, unroll_limit: int, epilogue: Epilogue) -> AsmKernel:
    """`void f(const int8_t *x, const void *stream, int8_t *out, const void *stream_end)`: one row, four channels a turn.

    A word of the stream holds the weights of channels c, c + 2, c + 3, c + 1 at one k; the first and third byte's have 128
    added, which a sum over the row takes out again.
    """
    fours, tail = divmod(k, 4)
    unroll = max((u for u in range(1, max(unroll_limit // 4, 1) + 1) if fours % u == 0), default=0) if fours else 0
    # Stack: 0 minus 128 * sum as 64 bits, 8 out, 12 end of stream, 16 x.
    lines = [
        "push {r4, r5, r6, r7, r8, r9, r10, r11, lr}",
        "sub sp, #20",
        "strd r2, r3, [sp, #8]",
        "str r0, [sp, #16]",
        *_end("r4", "r0", k),
        "movs r5, #0",
        "1:",
        "ldrsb r6, [r0], #1",
        "cmp r0, r4",
        "sub r5, r5, r6",
        "bne 1b",
        "lsl r6, r5, #7",
        "asr r7, r6, #31",
        "strd r6, r7, [sp]",
        f"movw r8, #{_MASK_LOW}",
        f"movt r8, #{_MASK_TOP}",
        "3:",
        "ldrd r4, r5, [sp]",
        "ldrd r6, r7, [sp]",
        "ldr r0, [sp, #16]",
    ]
    if unroll:
        if unroll < fours:
            lines += _end("r3", "r0", 4 * fours)
        lines.append("4:")
        for _ in range(unroll):
            lines.append("ldmia r1!, {r9, r10, r11, r12}")
            for word in ("r9", "r10", "r11", "r12"):
                lines += _dense_word(word)
        if unroll < fours:
            lines += ["cmp r0, r3", "bne 4b"]
    for _ in range(tail):
        lines += ["ldr r9, [r1], #4", *_dense_word("r9")]
    lines += split("r4", "r5", "r0", 24) + split("r6", "r7", "r0", 24)
    lines.append("ldr r12, [sp, #8]")
    # Fields: (r4, r5) channels 0 and 1, (r6, r7) channels 2 and 3.
    for value in ("r4", "r5", "r6", "r7"):
        lines += requantize((value,), "r1", ("r2", "r3", "r9", "r10"), "r0", epilogue)
        lines.append(f"strb {value}, [r12], #1")
    lines += [
        "ldr r2, [sp, #12]",
        "str r12, [sp, #8]",
        "cmp r1, r2",
        "bne 3b",
        "add sp, #20",
        "pop {r4, r5, r6, r7, r8, r9, r10, r11, pc}",
    ]
    return function(f"tim_lfc_k{k}u{unroll}_{epilogue.tag}", lines, 36 + 20)


def _dense_word(word: str) -> list[str]:
    return [
        "ldrsb r2, [r0], #1",
        f"and lr, r8, {word}",
        "smlal r4, r5, r2, lr",
        f"and {word}, r8, {word}, ror #16",
        f"smlal r6, r7, r2, {word}",
    ]
