"""Kernels for Armv7-M and Armv8-M Mainline that multiply by weights other than zero only, as generated Thumb-2 assembly.

As in `long_asm` a word holds two pixels 23 bits apart, and SMLAL multiplies both by a weight. Eight pixels share a weight and
its address: 9 instructions for 8 products, and 3 a group of seven. Streams are what `sparse_streams` writes.
"""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.asm_text import Epilogue, function
from tinymlaas_compiler_tvm.int8.long_asm import PIXEL_FIELD, apply, requantize, split
from tinymlaas_compiler_tvm.int8.sparse_streams import GROUP, TURN, WINDOW
from tinymlaas_compiler_tvm.native.program import AsmKernel

_PAIRS = (("r2", "r3"), ("r4", "r5"), ("r6", "r7"), ("r8", "r9"))
# Bytes of code for one weight: so far apart lie the places at which a group can be entered.
_MATRIX_SLOT, _DENSE_SLOT = 36, 16


def _table(slots: int, slot_bytes: int, between: int) -> list[str]:
    """The table of TBB, which jumps into `slots` pieces of code of equal length that follow `between` bytes after it."""
    size = slots + slots % 2
    entries = [(size + between + slot_bytes * slot) // 2 for slot in range(slots)]
    return [f".byte {', '.join(map(str, entries + [0] * (size - slots)))}"]


def _matrix_slot(number: int) -> list[str]:
    lines = [f"ubfx lr, r12, #{4 * number}, #4", "add r0, r0, lr, lsl #4", "ldrd r10, r11, [r0], #8"]
    # One byte more after a group: the next one begins at a word.
    lines.append(f"ldrsb lr, [r1], #{2 if number == GROUP - 1 else 1}")
    for first in (0, 2):
        if first:
            lines.append("ldrd r10, r11, [r0], #8")
        for (low, high), pixels in zip(_PAIRS[first : first + 2], ("r10", "r11"), strict=True):
            lines.append(f"smlal {low}, {high}, {pixels}, lr")
    return lines


def matrix(epilogue: Epilogue, dsp: bool) -> AsmKernel:
    """`void f(const void *patch, const void *stream, int8_t *out, const int32_t args[3])`.

    All output channels of eight pixels whose packed pairs lie interleaved in the patch, 16 bytes a k. args: distance of the
    pixels, distance of the channels, bytes of the stream.
    """
    # Stack: 0 out, 4 channel distance, 8 pixel distance, 12 end of stream, 16 patch.
    lines = [
        "push {r4, r5, r6, r7, r8, r9, r10, r11, lr}",
        "sub sp, #20",
        "ldm r3, {r4, r5, r6}",
        "add r6, r1",
        "strd r2, r5, [sp, #0]",
        "strd r4, r6, [sp, #8]",
        "str r0, [sp, #16]",
        "1:",
        # The bias in both fields of each sum: bias * 2**23 + bias in 64 bits.
        "ldr r4, [r1], #4",
        f"asr r3, r4, #{32 - PIXEL_FIELD}",
        f"adds r2, r4, r4, lsl #{PIXEL_FIELD}",
        "adc r3, r3, r4, asr #31",
    ]
    for low, high in _PAIRS[1:]:
        lines += [f"mov {low}, r2", f"mov {high}, r3"]
    lines += [
        "ldr r12, [r1], #4",
        "ubfx lr, r12, #28, #3",
        "and r10, lr, #3",
        "add r1, r10",
        "tbb [pc, lr]",
        *_table(GROUP, _MATRIX_SLOT, 4),
        "2:",
        "ldr r12, [r1], #4",
    ]
    for number in range(GROUP):
        lines += _matrix_slot(number)
    lines += ["cmp r12, #0", "blt.w 2b"]
    for low, high in _PAIRS:
        lines += split(low, high, "r0", PIXEL_FIELD)
    values = tuple(value for pair in _PAIRS for value in pair)
    lines += requantize(values, "r1", ("r10", "r11", "r12", "lr"), "r0", epilogue, dsp)
    lines += ["ldm sp, {r10, r11, r12}", "add r0, r10, r12, lsl #1", f"strb {values[0]}, [r10]"]
    lines += [f"strb {values[1]}, [r10, r12]", "add r10, r11", "str r10, [sp]"]
    for i in range(2, 8, 2):
        lines += [f"strb {values[i]}, [r0]", f"strb {values[i + 1]}, [r0, r12]"]
        lines += ["add r0, r0, r12, lsl #1"] if i < 6 else []
    lines += [
        "ldrd r12, r0, [sp, #12]",
        "cmp r1, r12",
        "bne.w 1b",
        "add sp, #20",
        "pop {r4, r5, r6, r7, r8, r9, r10, r11, pc}",
    ]
    return function(f"tim_sp8{'d' if dsp else ''}_{epilogue.tag}", lines, 36 + 20)


def dense(windows: bool, epilogue: Epilogue, dsp: bool) -> AsmKernel:
    """`void f(const int8_t *x, const void *stream, int8_t *out, const int32_t args[])`: one row, one channel after the other.

    4 instructions a weight. args: bytes of the stream, K rounded up to windows of 256, then the parameters of all channels if
    they are uniform. `windows`: K is more than one of them.
    """
    kept = ["r4", "r5", *(["r6"] if epilogue.signed else [])]
    lines = [
        "push {r4, r5, r6, r7, r8, r9, r10, r11, lr}",
        "sub sp, #12",
        "str r0, [sp, #0]",
        "ldrd r10, r11, [r3], #8",
        "add r10, r1",
        "add r11, r0",
        "strd r10, r11, [sp, #4]",
        *([f"ldm r3, {{{', '.join(kept)}}}"] if epilogue.uniform else []),
        "1:",
        "ldr r3, [r1], #4",
        "2:",
        "ldrh r12, [r1], #2",
        "and lr, r12, #7",
        "tbb [pc, lr]",
        *_table(TURN, _DENSE_SLOT, 0),
        "3:",
    ]
    for _ in range(TURN):
        lines += ["ldrb r8, [r1], #1", "ldrsb r9, [r1], #1", "ldrsb r8, [r0, r8]", "mla r3, r8, r9, r3"]
    lines += [f"subs r12, r12, #{TURN}", "bpl.w 3b"]
    if windows:
        lines += [f"add r0, r0, #{WINDOW}", "ldr r8, [sp, #8]", "cmp r0, r8", "bne.w 2b", "ldr r0, [sp, #0]"]
    # Windows may end at a halfword.
    lines += ["add r1, r1, #2", "bic r1, r1, #3", "lsl r3, r3, #9"]
    if epilogue.uniform:
        lines += apply(("r3",), ("r4", "r5", "r6", "r9"), "r8", epilogue, dsp)
    else:
        lines += requantize(("r3",), "r1", ("r4", "r5", "r6", "r9"), "r8", epilogue, dsp)
    lines += [
        "strb r3, [r2], #1",
        "ldr r8, [sp, #4]",
        "cmp r1, r8",
        "bne.w 1b",
        "add sp, #12",
        "pop {r4, r5, r6, r7, r8, r9, r10, r11, pc}",
    ]
    return function(f"tim_sfc{'w' if windows else ''}{'d' if dsp else ''}_{epilogue.tag}", lines, 36 + 12)
