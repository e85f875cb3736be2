"""The matrix kernel of int16 convolutions for Arm cores with the DSP extension, as generated Thumb-2 assembly.

Four pixels by two channels in registers. Activations are halfwords already; int8 weights of both channels share a word, which
SXTB16 parts into two words of halfwords: 13 instructions for 16 products. Register conventions are those of `int8.asm_text`.
"""

from __future__ import annotations

from tinymlaas_compiler_tvm.int8.asm_text import function
from tinymlaas_compiler_tvm.native.program import AsmKernel

PIXELS = 4
_MOST_STEPS = 16
_A = ("r2", "r3", "r4", "r5")
_B = ("r6", "r7", "r8", "r9")


def loop_of(k: int) -> tuple[int, int]:
    """(steps of two k in the loop's body, turns): the fewest steps in all, then the longest body."""
    steps = -(-k // 2)
    if steps <= _MOST_STEPS:
        return steps, 1
    unroll = min(range(_MOST_STEPS, _MOST_STEPS // 2 - 1, -1), key=lambda u: (-steps % u, -u))
    return unroll, -(-steps // unroll)


def _step() -> list[str]:
    """Two k: a word of weights A, B, A, B, then a word of each pixel."""
    lines = ["ldr r12, [r1], #4", "sxtb16 lr, r12, ror #8", "sxtb16 r12, r12"]
    for first in (0, 2):
        lines.append("ldmia r0!, {r10, r11}")
        for pixel, value in ((first, "r10"), (first + 1, "r11")):
            lines.append(f"smlad {_A[pixel]}, {value}, r12, {_A[pixel]}")
            lines.append(f"smlad {_B[pixel]}, {value}, lr, {_B[pixel]}")
    return lines


def four_by_two(k: int, positive: bool) -> AsmKernel:
    """`void f(const int32_t *patch, const uint8_t *stream, int8_t *out, const int32_t args[3])`.

    All output channels, an even number, of four pixels whose words alternate in the patch. args: bytes between pixels of the
    output (0: only the first pixel counts, and is written last), bytes of the stream, bytes of the patch. Stream a channel
    pair: two biases, the weights, two words of multiplier and shift. `positive`: results are clamped to [0, 32767].
    """
    unroll, turns = loop_of(k)
    name = f"tim_mm_w{unroll}{'n' if turns > 1 else ''}{'p' if positive else ''}"
    lines = [
        "push {r4, r5, r6, r7, r8, r9, r10, r11, lr}",
        "sub sp, #28",
        "ldm r3, {r4, r5, r6}",
        "add r5, r1",
        "add r6, r0",
        "strd r2, r4, [sp, #0]",
        "strd r5, r0, [sp, #8]",
        "str r6, [sp, #16]",
        "1:",
        "ldrd r2, r6, [r1], #8",
        *(f"mov {register}, r2" for register in _A[1:]),
        *(f"mov {register}, r6" for register in _B[1:]),
        "2:",
    ]
    for _ in range(unroll):
        lines += _step()
    if turns > 1:
        lines += ["ldr r10, [sp, #16]", "cmp r0, r10", "bne 2b"]
    # Half a step of the result is added before the shift but one; the saturation shifts by the last bit.
    lines += ["ldrd r10, r11, [r1], #8", "mov r12, #1", "lsl lr, r12, r11", "lsl r12, r12, r10"]
    saturate = "usat {0}, #15, {0}, asr #1" if positive else "ssat {0}, #16, {0}, asr #1"
    for values, parameter, half in ((_A, "r10", "r12"), (_B, "r11", "lr")):
        for value in values:
            lines += [f"smlawt {value}, {value}, {parameter}, {half}", f"asr {value}, {value}, {parameter}"]
            lines.append(saturate.format(value))
    lines += [f"pkhbt {a}, {a}, {b}, lsl #16" for a, b in zip(_A, _B, strict=True)]
    lines += [
        "ldrd r12, r10, [sp, #0]",
        "add r11, r12, r10, lsl #1",
        "str r5, [r11, r10]",
        "str r4, [r11]",
        "str r3, [r12, r10]",
        "str r2, [r12], #4",
        "str r12, [sp, #0]",
        "ldrd r11, r0, [sp, #8]",
        "cmp r1, r11",
        "bne 1b",
        "add sp, #28",
        "pop {r4, r5, r6, r7, r8, r9, r10, r11, pc}",
    ]
    return function(name, lines, 36 + 28)
