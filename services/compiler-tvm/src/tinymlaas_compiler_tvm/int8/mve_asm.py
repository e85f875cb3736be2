"""Kernels for cores with MVE (Helium), as assembly text; everything is int8 in, int8 out, int32 in between.

Sums of 16 products are one VMLADAV into an even core register, so that eight sums (two pixels by four channels, or eight
channels) are in flight. The epilogue is that of `requant`, vector by vector: sums * 256 (+ bias), high word of the product,
offset, narrowing shift with saturation. Outputs are stored by scatter, so that each kernel writes either layout.

Instruction semantics: Arm v8-M Architecture Reference Manual (DDI 0553B), C2.4. Kernels are leaves; r13 is only the stack, which
stays aligned to 8 bytes; d8-d15 and r4-r11 are saved.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinymlaas_compiler_tvm.native.program import AsmKernel

LANES = 16
_NARROWING = 16
_PUSHED = 9 * 4 + 8 * 8


@dataclass(frozen=True)
class MveEpilogue:
    """How a layer's sums become int8: fixed `shift` (-1: a channel's own), correction of negative sums, bias, clamp."""

    shift: int
    signed: bool
    biased: bool
    low: int
    high: int

    @property
    def tag(self) -> str:
        """Part of a kernel's name."""
        kind = (
            ("v" if self.shift < 0 else str(self.shift)) + ("s" if self.signed else "") + ("b" if self.biased else "")
        )
        clamp = "" if (self.low, self.high) == (-128, 127) else f"_c{self.low + 128}_{self.high + 128}"
        return f"q{kind}{clamp}"


def _function(name: str, lines: list[str], stack_bytes: int) -> AsmKernel:
    body = "\n".join(line if line.endswith(":") else f"\t{line}" for line in lines)
    text = (
        f'\t.section .text.{name},"ax",%progbits\n\t.p2align 2\n\t.global {name}\n\t.hidden {name}\n'
        f"\t.type {name},%function\n\t.thumb_func\n{name}:\n{body}\n\t.size {name}, . - {name}\n"
    )
    return AsmKernel(name, text, stack_bytes)


def _prologue(frame: int) -> list[str]:
    # The frame's size is 4 modulo 8, as nine core registers are pushed.
    return ["push {r4-r11, lr}", "vpush {d8-d15}", f"sub sp, #{frame}"]


def _end(frame: int) -> list[str]:
    return [f"add sp, #{frame}", "vpop {d8-d15}", "pop {r4-r11, pc}"]


def _clamp(value: str, spare: str, epilogue: MveEpilogue) -> list[str]:
    """Narrow eight (or four) saturated 16-bit values to int8 in the low byte of their lanes, and clamp them."""
    lines = [f"vqmovnb.s16 {value}, {value}"]
    for wanted, instruction, end in ((epilogue.low, "vmax", -128), (epilogue.high, "vmin", 127)):
        if wanted != end:
            lines += [
                f"mov.w r0, #{wanted & 0xFF}",
                f"vdup.8 {spare}, r0",
                f"{instruction}.s8 {value}, {value}, {spare}",
            ]
    return lines


def _finish_two(epilogue: MveEpilogue) -> list[str]:
    """Sums in q0 and q1 to int8 in the 16-bit lanes of q0, q0's in the even ones; parameters come from r1 in fours."""
    lines = ["vshl.i32 q0, q0, #8", "vshl.i32 q1, q1, #8"]
    if epilogue.biased:
        lines += ["vldrw.u32 q2, [r1], #16", "vadd.i32 q0, q0, q2", "vadd.i32 q1, q1, q2"]
    lines += ["vldrw.u32 q2, [r1], #16", "vmulh.s32 q4, q0, q2", "vmulh.s32 q5, q1, q2"]
    lines += ["vldrw.u32 q2, [r1], #16", "vadd.i32 q4, q4, q2", "vadd.i32 q5, q5, q2"]
    if epilogue.signed:
        lines += ["vldrw.u32 q2, [r1], #16"]
        for sums, value in (("q0", "q4"), ("q1", "q5")):
            lines += [f"vpt.s32 lt, {sums}, zr", f"vsubt.i32 {value}, {value}, q2"]
    lines += _narrow_two(epilogue)
    return lines + _clamp("q0", "q2", epilogue)


def _narrow_two(epilogue: MveEpilogue) -> list[str]:
    if epilogue.shift < 0:
        shifts = ["vldrw.u32 q2, [r1], #16", "vshl.s32 q4, q4, q2", "vshl.s32 q5, q5, q2"]
        return [*shifts, "vqmovnb.s32 q0, q4", "vqmovnt.s32 q0, q5"]
    lines = []
    shift = epilogue.shift
    if shift > _NARROWING:
        lines += [f"vshr.s32 {q}, {q}, #{shift - _NARROWING}" for q in ("q4", "q5")]
        shift = _NARROWING
    return [*lines, f"vqshrnb.s32 q0, q4, #{shift}", f"vqshrnt.s32 q0, q5, #{shift}"]


_SUMS = ("r0", "r2", "r4", "r6", "r8", "r10", "r12", "r14")
_COLLECT = [
    "vmov q0[2], q0[0], r0, r4",
    "vmov q0[3], q0[1], r2, r6",
    "vmov q1[2], q1[0], r8, r12",
    "vmov q1[3], q1[1], r10, r14",
]


def _plan(steps: int) -> tuple[int, int]:
    """(steps an iteration, iterations) after the first step: all unrolled where they are few."""
    rest = steps - 1
    if steps <= 18:
        return rest, 1
    return next((each, rest // each) for each in range(18, 0, -1) if rest % each == 0)


def matrix(depth: int, ragged: bool, epilogue: MveEpilogue, *, padded: bool) -> AsmKernel:
    """Two pixels by all channels: `f(pixel 0, pixel 1, out, stream, arguments)`.

    The stream has, for each four channels, `depth` / 16 times four vectors of weights, then the epilogue's parameters. The
    arguments are eight 16-bit offsets of the scatter, the stream's bytes, the output's step of four channels, and the lanes of
    the last four channels as a predicate (used where `ragged`). Reads exactly `depth` bytes a pixel unless `padded`, when
    it reads up to the next multiple of 16.
    """
    steps = -(-depth // LANES)
    tail = 0 if padded else depth % LANES
    each, times = _plan(steps)
    direct = times == 1 and (steps - 1) * LANES <= 127
    frame = 12
    name = f"tim_mve_mm{depth}{'p' if padded else ''}{'r' if ragged else ''}_{epilogue.tag}"
    lines = [*_prologue(frame), f"ldr r4, [sp, #{frame + _PUSHED}]", "vldrh.u16 q7, [r4]"]
    lines += ["ldr r6, [r4, #16]", "ldr r8, [r4, #20]", "str r8, [sp]"]
    if ragged:
        lines += ["ldr r8, [r4, #24]", "str r8, [sp, #4]"]
    lines += ["mov r5, r1", "mov r1, r3", "mov r7, r2", "mov r3, r0", "add.w r11, r1, r6"]
    if tail and times == 1:
        lines.append(f"mov.w r9, #{tail}")
    lines.append("1:")

    def step(index: int, first: bool, last: bool) -> list[str]:
        at = [f"[r3, #{index * LANES}]", f"[r5, #{index * LANES}]"] if direct else ["[r3], #16", "[r5], #16"]
        out = []
        if last and tail:
            if times > 1:
                out.append(f"mov.w r9, #{tail}")
            out += ["vctp.8 r9", "vpstt", f"vldrbt.u8 q0, {at[0]}", f"vldrbt.u8 q1, {at[1]}"]
        else:
            out += [f"vldrb.u8 q0, {at[0]}", f"vldrb.u8 q1, {at[1]}"]
        out += [f"vldrw.u32 q{2 + channel}, [r1], #16" for channel in range(4)]
        kind = "vmladav" if first else "vmladava"
        for channel in range(4):
            out.append(f"{kind}.s8 {_SUMS[channel]}, q0, q{2 + channel}")
            out.append(f"{kind}.s8 {_SUMS[4 + channel]}, q1, q{2 + channel}")
        return out

    lines += step(0, True, steps == 1)
    if times == 1:
        for index in range(1, steps):
            lines += step(index, False, index == steps - 1)
    else:
        whole = times - 1 if tail else times
        lines += [f"mov.w r9, #{whole}", "2:"]
        for _ in range(each):
            lines += step(0, False, False)
        lines += ["subs.w r9, r9, #1", "bne 2b"]
        if tail:
            for index in range(each):
                lines += step(0, False, index == each - 1)
    if not direct:
        lines += [f"subw r3, r3, #{steps * LANES}", f"subw r5, r5, #{steps * LANES}"]
    lines += [*_COLLECT, *_finish_two(epilogue)]
    if ragged:
        lines += ["movw r0, #0xffff", "cmp r1, r11", "it eq", "ldreq r0, [sp, #4]", "vmsr p0, r0", "vpst"]
        lines += ["vstrbt.16 q0, [r7, q7]"]
    else:
        lines += ["vstrb.16 q0, [r7, q7]"]
    lines += ["ldr r0, [sp]", "add r7, r0", "cmp r1, r11", "bne 1b", *_end(frame)]
    return _function(name, lines, frame + _PUSHED)


def dense(depth: int, ragged: bool, epilogue: MveEpilogue) -> AsmKernel:
    """One row by all channels, eight at a time: `f(row, out, stream, arguments)`; arguments as those of `matrix`.

    The stream has, for each eight channels, `depth` / 16 times eight vectors of weights, then the parameters of the first four
    and of the last four, each kind one after the other.
    """
    steps = -(-depth // LANES)
    tail = depth % LANES
    each, times = _plan(steps)
    if times > 1 and tail:
        each, times = steps - 1, 1
    frame = 12
    name = f"tim_mve_row{depth}{'r' if ragged else ''}_{epilogue.tag}"
    lines = [*_prologue(frame), "vldrh.u16 q7, [r3]", "ldr r6, [r3, #16]"]
    lines += ["ldr r8, [r3, #24]", "str r8, [sp, #4]"]
    lines += ["mov r7, r1", "mov r1, r2", "mov r3, r0", "add.w r11, r1, r6", f"movw r5, #{tail}", "1:"]

    def step(first: bool, last: bool) -> list[str]:
        load = ["vctp.8 r5", "vpst", "vldrbt.u8 q0, [r3], #16"] if last and tail else ["vldrb.u8 q0, [r3], #16"]
        kind = "vmladav" if first else "vmladava"
        out = load
        for channel in range(0, 8, 4):
            out += [f"vldrw.u32 q{1 + i}, [r1], #16" for i in range(4)]
            out += [f"{kind}.s8 {_SUMS[channel + i]}, q0, q{1 + i}" for i in range(4)]
        return out

    lines += step(True, steps == 1)
    if times == 1:
        for index in range(1, steps):
            lines += step(False, index == steps - 1)
    else:
        lines += [f"mov.w r9, #{times}", "2:"]
        for _ in range(each):
            lines += step(False, False)
        lines += ["subs.w r9, r9, #1", "bne 2b"]
    lines += [f"subw r3, r3, #{steps * LANES}", *_COLLECT, *_finish_eight(epilogue)]
    if ragged:
        lines += ["movw r0, #0xffff", "cmp r1, r11", "it eq", "ldreq r0, [sp, #4]", "vmsr p0, r0", "vpst"]
        lines += ["vstrbt.16 q0, [r7, q7]"]
    else:
        lines += ["vstrb.16 q0, [r7, q7]"]
    lines += ["adds r7, #8", "cmp r1, r11", "bne 1b", *_end(frame)]
    return _function(name, lines, frame + _PUSHED)


def _finish_eight(epilogue: MveEpilogue) -> list[str]:
    """As `_finish_two`, but the two vectors have parameters of their own, one after the other."""
    load = ["vldrw.u32 q2, [r1], #16", "vldrw.u32 q3, [r1], #16"]
    lines = ["vshl.i32 q0, q0, #8", "vshl.i32 q1, q1, #8"]
    if epilogue.biased:
        lines += [*load, "vadd.i32 q0, q0, q2", "vadd.i32 q1, q1, q3"]
    lines += [*load, "vmulh.s32 q4, q0, q2", "vmulh.s32 q5, q1, q3"]
    lines += [*load, "vadd.i32 q4, q4, q2", "vadd.i32 q5, q5, q3"]
    if epilogue.signed:
        lines += load
        for sums, value, negative in (("q0", "q4", "q2"), ("q1", "q5", "q3")):
            lines += [f"vpt.s32 lt, {sums}, zr", f"vsubt.i32 {value}, {value}, {negative}"]
    if epilogue.shift < 0:
        lines += [*load, "vshl.s32 q4, q4, q2", "vshl.s32 q5, q5, q3", "vqmovnb.s32 q0, q4", "vqmovnt.s32 q0, q5"]
    else:
        lines += _narrow_two(epilogue)
    return lines + _clamp("q0", "q2", epilogue)


def rows() -> AsmKernel:
    """Copy rows one after the other: `f(to, from, bytes, rows, pitch)` gives the end of what was written; bytes > 0."""
    lines = ["push {r4, r5, r6, lr}", "ldr r4, [sp, #16]", "1:", "mov r5, r1", "dlstp.8 lr, r2", "mov r6, r0", "2:"]
    lines += ["vldrb.u8 q0, [r5], #16", "vstrb.8 q0, [r6], #16", "letp lr, 2b"]
    lines += ["add r0, r2", "add r1, r4", "subs r3, #1", "bne 1b", "pop {r4, r5, r6, pc}"]
    return _function("tim_mve_rows", lines, 16)


def copy() -> AsmKernel:
    """Copy bytes: `f(to, from, bytes)`."""
    lines = ["push {r7, lr}", "cbz r2, 2f", "dlstp.8 lr, r2", "1:", "vldrb.u8 q0, [r1], #16", "vstrb.8 q0, [r0], #16"]
    lines += ["letp lr, 1b", "2:", "pop {r7, pc}"]
    return _function("tim_mve_copy", lines, 8)


def sums() -> AsmKernel:
    """Sums over pixels, four channels at a time: `f(in, sums, pixels, channels)`; channels a multiple of 4."""
    lines = ["push {r4, lr}", "mov r12, r3", "1:", "vmov.i32 q0, #0", "mov r4, r0", "dls lr, r2", "2:"]
    lines += ["vldrb.s32 q1, [r4]", "add r4, r12", "vadd.i32 q0, q0, q1", "le lr, 2b"]
    lines += ["vstrw.32 q0, [r1], #16", "adds r0, #4", "subs r3, #4", "bne 1b", "pop {r4, pc}"]
    return _function("tim_mve_sums", lines, 8)


def add() -> AsmKernel:
    """(a * alpha + b * beta + gamma) >> shift, clamped: `f(a, b, out, {n, alpha, beta, gamma, -shift, low, high})`."""
    lines = ["push {r4-r8, lr}", "vpush {d8-d9}"]
    lines += ["ldr r4, [r3, #4]", "vdup.32 q4, r4", "ldr r5, [r3, #8]", "ldr r6, [r3, #12]", "ldr r7, [r3, #16]"]
    lines += [
        "ldr r4, [r3, #20]",
        "vdup.32 q2, r4",
        "ldr r4, [r3, #24]",
        "vdup.32 q3, r4",
        "ldr r4, [r3]",
        "dlstp.32 lr, r4",
        "1:",
    ]
    lines += ["vldrb.s32 q0, [r0], #4", "vldrb.s32 q1, [r1], #4", "vmlas.s32 q0, q4, r6", "vmla.s32 q0, q1, r5"]
    lines += ["vshl.s32 q0, r7", "vmax.s32 q0, q0, q2", "vmin.s32 q0, q0, q3", "vstrb.32 q0, [r2], #4", "letp lr, 1b"]
    lines += ["vpop {d8-d9}", "pop {r4-r8, pc}"]
    return _function("tim_mve_add", lines, 24 + 16)


def add_exact(shifted: int, subtract: bool) -> AsmKernel:
    """TFLite's ADD with its roundings: `f(a, b, out, arguments)`; `shifted` of the operands (0: none) is divided by a power of 2.

    The arguments are words: n, -zero * 2**20 and multiplier of a, the same of b, minus the exponent of the division,
    multiplier, left shift and minus the exponent of the sum, output zero point, low, high. VQRDMULH is the reference's doubling
    high multiply; a division rounds half away from zero, which is VRSHL after one is taken from negative values.
    """
    name = f"tim_mve_add_exact{shifted}{'s' if subtract else ''}"
    lines = ["push {r4-r11, lr}", "vpush {d8-d15}", "sub sp, #4", "ldr r4, [r3, #4]", "ldr r5, [r3, #8]"]
    lines += ["ldr r6, [r3, #12]", "ldr r7, [r3, #16]", "ldr r8, [r3, #24]", "ldr r9, [r3, #36]", "ldr r10, [r3, #28]"]
    for register, at in (("q5", 40), ("q6", 44), ("q7", 20), ("q4", 32)):
        lines += [f"ldr r12, [r3, #{at}]", f"vdup.32 {register}, r12"]
    lines += ["mov.w r11, #0x100000", "vdup.32 q3, r11", "ldr r12, [r3]", "dlstp.32 lr, r12", "1:"]

    def divide(value: str, exponent: str) -> list[str]:
        sign = [f"vand q2, {value}, {exponent}", "vshr.s32 q2, q2, #31", f"vqadd.s32 {value}, {value}, q2"]
        return [*sign, f"vrshl.s32 {value}, {value}, {exponent}"]

    for number, (value, pointer, offset, multiplier) in enumerate((("q0", "r0", "r4", "r5"), ("q1", "r1", "r6", "r7"))):
        lines += [f"vldrb.s32 {value}, [{pointer}], #4", f"vmlas.s32 {value}, q3, {offset}"]
        lines += [f"vqrdmulh.s32 {value}, {value}, {multiplier}"]
        lines += divide(value, "q7") if shifted == number + 1 else []
    lines += [f"{'vsub' if subtract else 'vadd'}.i32 q0, q0, q1", "vshl.s32 q0, r10", "vqrdmulh.s32 q0, q0, r8"]
    lines += [*divide("q0", "q4"), "vadd.i32 q0, q0, r9", "vmax.s32 q0, q0, q5", "vmin.s32 q0, q0, q6"]
    lines += ["vstrb.32 q0, [r2], #4", "letp lr, 1b", "add sp, #4", "vpop {d8-d15}", "pop {r4-r11, pc}"]
    return _function(name, lines, 4 + _PUSHED)
