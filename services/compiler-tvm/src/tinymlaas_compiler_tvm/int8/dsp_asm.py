"""Kernels for Arm cores with the DSP extension (Armv7E-M, Armv8-M Mainline + DSP), as generated Thumb-2 assembly.

Conventions: r13 is only ever the stack; every kernel is a leaf and saves r4-r11 and lr; 8-byte stack alignment is kept.
Streams are what `packing` writes. Techniques: two pixels by two channels in registers; two int8 weights in a halfword as
256 * a + b, so that one SMLAD gives 256 * A + B and, after SXTB16, another gives B; requantization as `requant` proves it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinymlaas_compiler_tvm.int8.asm_text import Epilogue, add_constant, clamp_lines, function
from tinymlaas_compiler_tvm.native.program import AsmKernel


def _mac_eight(weights_ready: bool = False) -> list[str]:
    """Eight k of two pixels (pairs interleaved at r0) by two channels (at r1): 23 instructions, 32 products."""
    lines = [] if weights_ready else ["ldmia r1!, {r10, r11, r12, lr}"]
    for low, high in (("r10", "r11"), ("r12", "lr")):
        lines.append("ldmia r0!, {r6, r7, r8, r9}")
        lines += _mac_four(low, high)
    return lines


def _mac_four(low: str, high: str) -> list[str]:
    return [
        f"smlad r2, r6, {low}, r2",
        f"smlad r3, r8, {low}, r3",
        f"sxtb16 {low}, {low}",
        f"smlad r2, r7, {high}, r2",
        f"smlad r3, r9, {high}, r3",
        f"sxtb16 {high}, {high}",
        f"smlad r4, r6, {low}, r4",
        f"smlad r5, r8, {low}, r5",
        f"smlad r4, r7, {high}, r4",
        f"smlad r5, r9, {high}, r5",
    ]


def requantize(
    value: str, multiplier: str, offset: str, negative: str, shift: str, scratch: str, epilogue: Epilogue
) -> list[str]:
    """`value` (accumulator times 256) to int8 in place; `shift` is the register of a channel's own shift."""
    lines = []
    if epilogue.signed:
        lines += [f"and {scratch}, {negative}, {value}, asr #31", f"sub {scratch}, {offset}, {scratch}"]
        offset = scratch
    lines.append(f"smmla {value}, {value}, {multiplier}, {offset}")
    if epilogue.variable:
        lines += [f"asr {value}, {value}, {shift}", f"ssat {value}, #8, {value}"]
    else:
        lines.append(f"ssat {value}, #8, {value}, asr #{epilogue.shift}")
    lines += clamp_lines(value, epilogue)
    return lines


def _split_and_requantize(epilogue: Epilogue) -> list[str]:
    """r2, r3 = 256 A + B and r4, r5 = B of two columns to int8 A, A', B, B'; reads both channels' parameters."""
    split = ["sub r2, r2, r4", "sub r3, r3, r5", "lsls r4, r4, #8", "lsls r5, r5, #8"]
    if epilogue.variable:
        registers = "r6, r7, r8, r9" if epilogue.signed else "r6, r7, r9"
        lines = split
        for values in (("r2", "r3"), ("r4", "r5")):
            lines.append(f"ldmia r1!, {{{registers}}}")
            for value in values:
                lines += requantize(value, "r6", "r7", "r8", "r9", "r12", epilogue)
        return lines
    if epilogue.signed:
        lines = ["ldmia r1!, {r6, r7, r8, r9, r10, r11}", *split]
        sets = [
            ("r2", "r6", "r7", "r8"),
            ("r3", "r6", "r7", "r8"),
            ("r4", "r9", "r10", "r11"),
            ("r5", "r9", "r10", "r11"),
        ]
    else:
        lines = ["ldmia r1!, {r6, r7, r8, r9}", *split]
        sets = [("r2", "r6", "r7", ""), ("r3", "r6", "r7", ""), ("r4", "r8", "r9", ""), ("r5", "r8", "r9", "")]
    for value, multiplier, offset, negative in sets:
        lines += requantize(value, multiplier, offset, negative, "", "r12", epilogue)
    return lines


def two_by_two(unroll: int, single: bool, tail: bool, epilogue: Epilogue) -> AsmKernel:
    """`void f(const void *patch, const void *stream, int8_t *out, const int32_t args[4])`.

    All output channels of two pixels. args: distance of the pixels, distance of the channels, bytes of the stream, bytes of
    the patch that the unrolled loop reads. `unroll` counts groups of eight k; `single`: the loop runs once; `tail`: four more
    k follow.
    """
    name = f"tim_mm_u{unroll}{'' if single else 'n'}{'t' if tail else ''}_{epilogue.tag}"
    lines = [
        "push {r4, r5, r6, r7, r8, r9, r10, r11, lr}",
        "sub sp, #28",
        "ldm r3, {r4, r5, r6, r7}",
        "add r6, r1",
        "add r7, r0",
        "strd r4, r5, [sp, #0]",
        "strd r2, r6, [sp, #8]",
        "strd r7, r0, [sp, #16]",
        "1:",
        "ldmia r1!, {r2, r4}",
        "mov r3, r2",
        "mov r5, r4",
    ]
    if unroll:
        lines.append("2:")
        for _ in range(unroll):
            lines += _mac_eight()
        if not single:
            lines += ["ldr r6, [sp, #16]", "cmp r0, r6", "bne 2b"]
    if tail:
        lines += ["ldmia r1!, {r10, r11}", "ldmia r0!, {r6, r7, r8, r9}", *_mac_four("r10", "r11")]
    lines += _split_and_requantize(epilogue)
    lines += [
        "ldrd r6, r7, [sp, #0]",
        "ldrd r12, r8, [sp, #8]",
        "ldr r0, [sp, #20]",
        "strb r2, [r12]",
        "strb r3, [r12, r6]",
        "add r12, r7",
        "strb r4, [r12]",
        "strb r5, [r12, r6]",
        "add r12, r7",
        "str r12, [sp, #8]",
        "cmp r1, r8",
        "bne 1b",
        "add sp, #28",
        "pop {r4, r5, r6, r7, r8, r9, r10, r11, pc}",
    ]
    return function(name, lines, 36 + 28)


def _dense_half(first: str, second: str, weights: str) -> list[str]:
    words = ("r10", "r11", "r12", "lr")
    lines = [weights]
    for x, w in zip(("r6", "r7", "r8", "r9"), words, strict=True):
        lines.append(f"smlad {first}, {x}, {w}, {first}")
        lines.append(f"sxtb16 {w}, {w}")
        lines.append(f"smlad {second}, {x}, {w}, {second}")
    return lines


def dense(unroll: int, epilogue: Epilogue) -> AsmKernel:
    """`void f(const void *x, const void *stream, int8_t *out, const int32_t args[2])`.

    Four channels a turn of one widened row `x`, K a multiple of 8 * unroll. args: bytes of the stream, bytes of the row, then
    the parameters of all channels if they are uniform.
    Stores come in channel order, four bytes a turn.
    """
    name = f"tim_fc_u{unroll}_{epilogue.tag}"
    lines = [
        "push {r4, r5, r6, r7, r8, r9, r10, r11, lr}",
        "sub sp, #20",
        "ldrd r4, r5, [r3]",
        "add r4, r1",
        "add r5, r0",
        "strd r2, r4, [sp, #0]",
        "strd r5, r0, [sp, #8]",
        *(["adds r3, #8", "str r3, [sp, #16]"] if epilogue.uniform else []),
        "1:",
        "ldmia r1!, {r2, r3, r4, r5}",
        "2:",
    ]
    for _ in range(unroll):
        lines.append("ldmia r0!, {r6, r7, r8, r9}")
        lines += _dense_half("r2", "r4", "ldmia r1!, {r10, r11, r12, lr}")
        lines += _dense_half("r3", "r5", "ldmia r1!, {r10, r11, r12, lr}")
    lines += ["ldr r6, [sp, #8]", "cmp r0, r6", "bne 2b"]
    lines += ["sub r2, r2, r4", "sub r3, r3, r5", "lsls r4, r4, #8", "lsls r5, r5, #8"]
    parameters = ["r6", "r7", *(["r8"] if epilogue.signed else []), *(["r9"] if epilogue.variable else [])]
    if epilogue.uniform:
        lines += ["ldr r10, [sp, #16]", f"ldm r10, {{{', '.join(parameters)}}}"]
    for value in ("r2", "r4", "r3", "r5"):
        if not epilogue.uniform:
            lines.append(f"ldmia r1!, {{{', '.join(parameters)}}}")
        lines += requantize(value, "r6", "r7", "r8", "r9", "r12", epilogue)
    lines += [
        "ldrd r6, r7, [sp, #0]",
        "ldr r0, [sp, #12]",
        "strb r2, [r6], #1",
        "strb r4, [r6], #1",
        "strb r3, [r6], #1",
        "strb r5, [r6], #1",
        "str r6, [sp, #0]",
        "cmp r1, r7",
        "bne 1b",
        "add sp, #20",
        "pop {r4, r5, r6, r7, r8, r9, r10, r11, pc}",
    ]
    return function(name, lines, 36 + 20)


@dataclass(frozen=True)
class DepthwiseShape:
    """A 3 by 3 depthwise layer over planes, walked line by line (lines are rows, or columns where that wastes less).

    `in_step`, `in_line`: bytes between elements and lines of an input plane; likewise out. `stride` is that of both
    directions. `pad_before`: padding before a line's elements and before the first line; `pitch`: elements of a scratch line.
    """

    in_lines: int
    in_length: int
    in_step: int
    in_line: int
    lines: int
    length: int
    out_step: int
    out_line: int
    stride: int
    pad_line: int
    pad_element: int
    pitch: int

    @property
    def tag(self) -> str:
        """Part of the kernel's name."""
        turned = "t" if self.in_step != 1 else ""
        return f"{self.in_lines}x{self.in_length}{turned}s{self.stride}p{self.pad_line}{self.pad_element}"


def _depthwise_row(
    offset: int, first: str, second: str, stride: int, start: tuple[str, str], last: bool, both: bool
) -> list[str]:
    """One kernel row of two outputs (r12, lr): weights (w0, w1) in `first`, (w1, w2) in `second`."""
    advance = 4 * stride
    address = f"[r0, #{offset}]"
    if stride == 1:
        lines = [f"ldrd r10, r11, [r0], #{advance}" if last else f"ldrd r10, r11, {address}"]
        if both:
            lines += [f"smlatb lr, r10, {first}, {start[1]}", f"smlad lr, r11, {second}, lr"]
        lines += [f"smlad r12, r10, {first}, {start[0]}", f"smlabt r12, r11, {second}, r12"]
        return lines
    lines = [f"ldrd r10, r11, {address}"]
    if both:
        lines.append(f"smlad lr, r11, {first}, {start[1]}")
    lines += [f"smlad r12, r10, {first}, {start[0]}", f"smlabt r12, r11, {second}, r12"]
    if both:
        lines.append("ldr r10, [r0, #8]!" if last else f"ldr r10, [r0, #{offset + 8}]")
        lines.append(f"smlabt lr, r10, {second}, lr")
    elif last:
        lines.append("add r0, #8")
    return lines


def _depthwise_outputs(shape: DepthwiseShape, epilogue: Epilogue, both: bool) -> list[str]:
    row = 2 * shape.pitch
    lines = ["ldr r12, [sp, #0]"]
    lines += _depthwise_row(row, "r4", "r5", shape.stride, ("r12", "r12"), False, both)
    lines += _depthwise_row(2 * row, "r6", "r7", shape.stride, ("r12", "lr"), False, both)
    lines += _depthwise_row(0, "r2", "r3", shape.stride, ("r12", "lr"), True, both)
    if epilogue.signed:
        lines.append("ldr r10, [sp, #4]")
    for value in ("r12", "lr") if both else ("r12",):
        if epilogue.variable:
            # The scratch of the signed offset is free again when the shift is needed.
            lines += requantize(value, "r8", "r9", "r10", "r11", "r11", epilogue)
            asr = f"asr {value}, {value}, r11"
            lines.insert(len(lines) - 1 - lines[::-1].index(asr), "ldr r11, [sp, #32]")
        else:
            lines += requantize(value, "r8", "r9", "r10", "", "r11", epilogue)
    lines += [f"strb {value}, [r1], #{shape.out_step}" for value in (("r12", "lr") if both else ("r12",))]
    return lines


def depthwise(shape: DepthwiseShape, epilogue: Epilogue, unroll_limit: int = 4) -> AsmKernel:
    """`void f(const int8_t *in, int8_t *out, const void *stream, int16_t *scratch, const void *stream_end)`.

    One plane after the other: widened into `scratch` (whose padding the caller has filled), computed, written over planes that
    were read already. Stream per channel: six weight words, multiplier, offset, bias[, negative][, shift].
    """
    row = 2 * shape.pitch
    pairs, odd = divmod(shape.length, 2)
    unroll = max((u for u in range(1, unroll_limit + 1) if pairs % u == 0), default=1) if pairs else 0
    # Stack: 0 bias, 4 negative, 8 end of line, 12 end of lines, 16 in, 20 out, 24 stream, 28 scratch, 32 shift;
    # then r4-r11, lr; then stream_end.
    lines = [
        "push {r4, r5, r6, r7, r8, r9, r10, r11, lr}",
        "sub sp, #36",
        "strd r0, r1, [sp, #16]",
        "strd r2, r3, [sp, #24]",
        "1:",
        "ldr r3, [sp, #28]",
    ]
    lines += _widen(shape)
    lines.append("ldr r12, [sp, #24]")
    # Bias, then negative and shift as the epilogue has them.
    extra = ["r10", *(["r11"] if epilogue.signed else []), *(["lr"] if epilogue.variable else [])]
    lines += [f"ldmia r12!, {{r2, r3, r4, r5, r6, r7, r8, r9, {', '.join(extra)}}}", "str r10, [sp, #0]"]
    if epilogue.signed:
        lines.append("str r11, [sp, #4]")
    if epilogue.variable:
        lines.append("str lr, [sp, #32]")
    lines += [
        "str r12, [sp, #24]",
        "ldr r0, [sp, #28]",
        "ldr r1, [sp, #20]",
        f"movw r10, #{row * shape.stride * shape.lines}",
        "add r10, r0",
        "str r10, [sp, #12]",
    ]
    lines.append("3:")
    if pairs:
        if pairs > unroll:
            lines += [f"addw r10, r0, #{4 * shape.stride * pairs}", "str r10, [sp, #8]", "4:"]
        for _ in range(unroll):
            lines += _depthwise_outputs(shape, epilogue, both=True)
        if pairs > unroll:
            lines += ["ldr r10, [sp, #8]", "cmp r0, r10", "bne 4b"]
    if odd:
        lines += _depthwise_outputs(shape, epilogue, both=False)
    lines += add_constant("r0", row * shape.stride - 4 * shape.stride * (pairs + odd))
    lines += add_constant("r1", shape.out_line - shape.out_step * shape.length)
    lines += ["ldr r10, [sp, #12]", "cmp r0, r10", "bne 3b"]
    in_plane, out_plane = shape.in_lines * shape.in_length, shape.lines * shape.length
    lines += [
        "ldrd r0, r1, [sp, #16]",
        f"movw r10, #{in_plane}",
        "add r0, r10",
        f"movw r10, #{out_plane}",
        "add r1, r10",
        "strd r0, r1, [sp, #16]",
        "ldr r12, [sp, #24]",
        "ldr r10, [sp, #72]",
        "cmp r12, r10",
        "bne.w 1b",
        "add sp, #36",
        "pop {r4, r5, r6, r7, r8, r9, r10, r11, pc}",
    ]
    return function(f"tim_dw_{shape.tag}_{epilogue.tag}", lines, 36 + 36)


def _widen(shape: DepthwiseShape) -> list[str]:
    """The plane at [sp, #16] to int16 inside the padding of the scratch at r3."""
    pairs, odd = divmod(shape.in_length, 2)
    unroll = max((u for u in range(1, 7) if pairs % u == 0), default=1) if pairs else 0
    lines = [
        "ldr r0, [sp, #16]",
        *add_constant("r3", 2 * (shape.pad_line * shape.pitch + shape.pad_element)),
        f"mov r4, #{shape.in_lines}",
        "5:",
    ]
    if pairs:
        if pairs > unroll:
            lines += [f"mov r5, #{pairs // unroll}", "6:"]
        for _ in range(unroll):
            lines += [
                f"ldrsb r6, [r0], #{shape.in_step}",
                f"ldrsb r7, [r0], #{shape.in_step}",
                "pkhbt r6, r6, r7, lsl #16",
                "str r6, [r3], #4",
            ]
        if pairs > unroll:
            lines += ["subs r5, #1", "bne 6b"]
    if odd:
        lines += [f"ldrsb r6, [r0], #{shape.in_step}", "strh r6, [r3], #2"]
    lines += add_constant("r0", shape.in_line - shape.in_step * shape.in_length)
    lines += add_constant("r3", 2 * (shape.pitch - shape.in_length))
    lines += ["subs r4, #1", "bne 5b"]
    return lines


def gather_planar() -> AsmKernel:
    """`void f(const int8_t *pixels, int32_t *patch, int32_t groups, int32_t plane)`: two neighbours of 4 * groups planes."""
    lines = [
        "push {r4, r5, r6, r7, r8, r9, r10, lr}",
        "lsl r4, r3, #1",
        "add r5, r3, r4",
        "1:",
        "ldrh r6, [r0]",
        "ldrh r7, [r0, r3]",
        "ldrh r8, [r0, r4]",
        "ldrh r9, [r0, r5]",
        "add r0, r0, r3, lsl #2",
        "orr r8, r6, r8, lsl #16",
        "orr r9, r7, r9, lsl #16",
        "sxtb16 r6, r8",
        "sxtb16 r7, r9",
        "sxtb16 r8, r8, ror #8",
        "sxtb16 r9, r9, ror #8",
        "stmia r1!, {r6, r7, r8, r9}",
        "subs r2, #1",
        "bne 1b",
        "pop {r4, r5, r6, r7, r8, r9, r10, pc}",
    ]
    return function("tim_gather_planar", lines, 32)


def widen_in_place() -> AsmKernel:
    """`void f(int8_t *row, int32_t groups)`: 4 * groups bytes to words (k0, k2), (k1, k3) over themselves, from the end."""
    lines = [
        "push {r4, r5}",
        "add r2, r0, r1, lsl #2",
        "add r3, r0, r1, lsl #3",
        "1:",
        "ldr r4, [r2, #-4]!",
        "sxtb16 r5, r4, ror #8",
        "sxtb16 r4, r4",
        "strd r4, r5, [r3, #-8]!",
        "cmp r2, r0",
        "bne 1b",
        "pop {r4, r5}",
        "bx lr",
    ]
    return function("tim_widen_over", lines, 8)


def gather_run(stride: int) -> AsmKernel:
    """`int32_t *f(const int8_t *run, int32_t *patch, int32_t groups)`: 4 * groups bytes to words (k0, k2), (k1, k3).

    The words of a group go to the patch, `stride` bytes a group; returns the patch pointer after the last group.
    """
    lines = [
        "lsrs r3, r2, #1",
        "push {r4, r5, r6, lr}",
        "beq 2f",
        "1:",
        "ldr r4, [r0], #4",
        "ldr r6, [r0], #4",
        "sxtb16 r5, r4, ror #8",
        "sxtb16 r4, r4",
        f"strd r4, r5, [r1], #{stride}",
        "sxtb16 r5, r6, ror #8",
        "sxtb16 r4, r6",
        f"strd r4, r5, [r1], #{stride}",
        "subs r3, #1",
        "bne 1b",
        "2:",
        "lsls r2, r2, #31",
        "beq 3f",
        "ldr r4, [r0], #4",
        "sxtb16 r5, r4, ror #8",
        "sxtb16 r4, r4",
        f"strd r4, r5, [r1], #{stride}",
        "3:",
        "mov r0, r1",
        "pop {r4, r5, r6, pc}",
    ]
    return function(f"tim_gather_run{stride}", lines, 16)
