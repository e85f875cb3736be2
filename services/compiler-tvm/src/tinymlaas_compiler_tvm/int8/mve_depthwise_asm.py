"""Depthwise kernels for cores with MVE, as assembly text: 3 by 3 over planes, and any other over channels side by side.

3 by 3: the input lies in planes. Four rows of a plane are interleaved in scratch by VST4, column by column, so that one vector
holds four columns of four rows: the patches of two by two neighbouring outputs (stride 1), or that of one output (stride 2). A
patch's sum is one VMLADAV with weights that stand in the lanes of its nine values; zeros stand in the others. Outputs are
scattered, so that they may lie in either layout. Any other: a pixel's taps are given by their addresses, four channels at a time.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinymlaas_compiler_tvm.int8.mve_asm import _PUSHED, LANES, MveEpilogue, _clamp, _end, _function, _prologue
from tinymlaas_compiler_tvm.native.program import AsmKernel

MAX_WIDTH = 112
_FRAME = 44


@dataclass(frozen=True)
class Plane:
    """A layer's geometry: rows and columns in and out, stride, padding above and to the left, the output's byte strides."""

    in_rows: int
    in_columns: int
    rows: int
    columns: int
    stride: int
    top: int
    left: int
    pixel: int
    channel: int

    @property
    def chunks(self) -> int:
        """Vectors a row of the input takes."""
        return -(-self.in_columns // LANES)

    @property
    def padded_columns(self) -> int:
        """Columns of the interleaved rows: those that are read, and those that whole vectors write."""
        blocks = 2 * -(-self.columns // 2) + 2 if self.stride == 1 else 8 * -(-self.columns // 4) + 4
        return max(blocks, self.left + self.chunks * LANES)

    @property
    def scratch_bytes(self) -> int:
        """The interleaved rows and a row of zero points, in whole vectors."""
        return -(-4 * self.padded_columns // LANES) * LANES + self.chunks * LANES

    @property
    def usable(self) -> bool:
        """Whether the kernel can walk it."""
        small = self.in_columns <= MAX_WIDTH and self.in_rows < 256 and self.rows * self.columns * self.pixel < 1 << 16
        return small and self.rows >= 2 and self.columns >= 2 and max(self.top, self.left) <= 1

    @property
    def tag(self) -> str:
        """Part of the kernel's name."""
        values = (self.in_rows, self.in_columns, self.rows, self.columns, self.stride, self.top, self.left)
        return "_".join(map(str, (*values, self.pixel, self.channel)))


def weight_vectors(taps: npt.NDArray[np.int64], stride: int) -> bytes:
    """The weights [3, 3] of a channel as the kernel takes them: lane 4 * column + row."""
    vectors = []
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)) if stride == 1 else ((0, 0),):
        lanes = np.zeros((4, 4), np.int8)
        lanes[column : column + 3, row : row + 3] = taps.T
        vectors.append(lanes.tobytes())
    return b"".join(vectors)


def depthwise(plane: Plane, channels: int, zero: int, epilogue: MveEpilogue) -> AsmKernel:
    """All channels: `f(in, out, stream, scratch)`. A channel's stream: weights, then words: bias * 256 if any, multiplier,
    offset, correction of negatives if any, -shift if its own."""
    name = f"tim_mve_dw{channels}_{plane.tag}_z{zero + 128}_{epilogue.tag}"
    vectors = 4 if plane.stride == 1 else 1
    words = 2 + epilogue.biased + epilogue.signed + (epilogue.shift < 0)
    interleaved = -(-4 * plane.padded_columns // LANES) * LANES
    lines = [*_prologue(_FRAME), "str r0, [sp, #16]", "str r1, [sp, #20]", "mov r11, r2", "str r3, [sp, #24]"]
    offsets = (
        (0, plane.pixel, plane.columns * plane.pixel, (plane.columns + 1) * plane.pixel)
        if plane.stride == 1
        else tuple(i * plane.pixel for i in range(4))
    )
    for index, offset in enumerate(offsets):
        lines += [*_constant("r4", offset), f"str r4, [sp, #{4 * index}]"]
    lines += [f"mov.w r4, #{channels}", "str r4, [sp, #28]"]
    lines += [
        f"mov.w r4, #{zero & 0xFF}",
        "vdup.8 q0, r4",
        *_constant("r4", plane.scratch_bytes // LANES),
        "dls lr, r4",
    ]
    lines += ["1:", "vstrb.8 q0, [r3], #16", "le lr, 1b"]
    if plane.in_columns % LANES:
        lines += [f"mov.w r4, #{plane.in_columns % LANES}", "vctp.8 r4", "vmrs r4, p0", "str r4, [sp, #32]"]
    lines += ["10:", *(f"vldrw.u32 q{4 + i}, [r11], #16" for i in range(vectors))]
    lines += _scalars(epilogue)
    lines += ["ldr r7, [sp, #20]", "ldr r5, [sp, #16]"]
    if plane.top:
        lines += [f"subw r5, r5, #{plane.in_columns}"]
    lines += [f"mvn r9, #{plane.top - 1}" if plane.top else "movs r9, #0"]
    lines += ["11:", *_gather(plane, interleaved), *_blocks(plane, epilogue), *_next_rows(plane)]
    lines += [
        "ldr r0, [sp, #16]",
        *_constant("r2", plane.in_rows * plane.in_columns),
        "add r0, r2",
        "str r0, [sp, #16]",
    ]
    lines += ["ldr r0, [sp, #20]", *_constant("r2", plane.channel), "add r0, r2", "str r0, [sp, #20]"]
    lines += [f"add.w r11, r11, #{4 * words}", "ldr r0, [sp, #28]", "subs r0, #1", "str r0, [sp, #28]", "bne.w 10b"]
    return _function(name, lines + _end(_FRAME), _FRAME + _PUSHED)


def _constant(register: str, value: int) -> list[str]:
    lines = [f"movw {register}, #{value & 0xFFFF}"]
    return lines if value < 1 << 16 else [*lines, f"movt {register}, #{value >> 16}"]


def _scalars(epilogue: MveEpilogue) -> list[str]:
    """Bias to r8, offset to r10, correction of negatives to r12; the multiplier and a shift of its own are read again."""
    at = 0
    lines = []
    if epilogue.biased:
        lines.append("ldr r8, [r11]")
        at = 4
    lines.append(f"ldr r10, [r11, #{at + 4}]")
    if epilogue.signed:
        lines.append(f"ldr r12, [r11, #{at + 8}]")
    return lines


def _gather(plane: Plane, interleaved: int) -> list[str]:
    """Interleave the rows from r9 (which may lie outside) on; r5 is the place of the first one in the plane."""
    count = 4 if plane.stride == 1 else 3
    pointers = ("r0", "r2", "r4", "r6")[:count]
    lines = [f"cmp r9, #{max(plane.in_rows - count + 1, 0)}", "bhs 20f", "mov r0, r5"]
    for before, pointer in itertools.pairwise(pointers):
        lines.append(f"addw {pointer}, {before}, #{plane.in_columns}")
    lines += ["b 21f", "20:", "ldr r3, [sp, #24]", f"addw r3, r3, #{interleaved}", "mov r1, r9", "mov lr, r5"]
    for pointer in pointers:
        lines += [f"cmp r1, #{plane.in_rows}", "ite lo", f"movlo {pointer}, lr", f"movhs {pointer}, r3"]
        if pointer != pointers[-1]:
            lines += ["adds r1, #1", f"addw lr, lr, #{plane.in_columns}"]
    lines += ["21:", "ldr r3, [sp, #24]"]
    if plane.in_columns % LANES:
        lines += ["ldr r1, [sp, #32]", "vmsr p0, r1"]
    lines.append(f"add.w r1, r3, #{4 * plane.left}" if plane.left else "mov r1, r3")
    for chunk in range(plane.chunks):
        part = chunk == plane.chunks - 1 and plane.in_columns % LANES
        if part:
            lines.append("vpst" + "t" * (count - 1))
        lines += [
            f"vldrb{'t' if part else ''}.u8 q{i}, [{pointer}, #{16 * chunk}]" for i, pointer in enumerate(pointers)
        ]
        lines += [f"vst4{i}.8 {{q0, q1, q2, q3}}, [r1]{'!' if i == 3 else ''}" for i in range(4)]
    written = plane.left + plane.chunks * LANES
    needed = (plane.columns - 1) * plane.stride + 3
    beyond = range(plane.left + plane.in_columns, min(written, needed))
    if len(beyond):
        lines += [f"ldr r1, [r3, #{interleaved}]"]
        lines += [f"str r1, [r3, #{4 * column}]" for column in beyond]
    return lines


def _sums(plane: Plane) -> list[str]:
    """The sums of four outputs in q0; r3 moves to the next ones."""
    if plane.stride == 1:
        lines = ["vldrw.u32 q0, [r3], #8"]
        lines += [f"vmladav.s8 {register}, q0, q{4 + i}" for i, register in enumerate(("r0", "r2", "r4", "r6"))]
    else:
        lines = []
        for i, register in enumerate(("r0", "r2", "r4", "r6")):
            lines += [f"vldrw.u32 q{i & 1}, [r3], #8", f"vmladav.s8 {register}, q{i & 1}, q4"]
    return [*lines, "vmov q0[2], q0[0], r0, r4", "vmov q0[3], q0[1], r2, r6"]


def _block(plane: Plane, epilogue: MveEpilogue, lanes: int = 4) -> list[str]:
    """Four outputs, of which `lanes` are stored, at r1."""
    lines = [*_sums(plane), "vshl.i32 q0, q0, #8"]
    if epilogue.biased:
        lines.append("vadd.i32 q0, q0, r8")
    lines += ["vmulh.s32 q2, q0, q5" if plane.stride == 2 else "vmulh.s32 q2, q0, q1", "vadd.i32 q2, q2, r10"]
    if epilogue.signed:
        lines += ["vpt.s32 lt, q0, zr", "vsubt.i32 q2, q2, r12"]
    shift = epilogue.shift
    if shift < 0:
        lines += ["ldr r0, [sp, #36]", "vshl.s32 q2, r0", "vqmovnb.s32 q2, q2"]
    else:
        if shift > 16:
            lines.append(f"vshr.s32 q2, q2, #{shift - 16}")
        lines.append(f"vqshrnb.s32 q2, q2, #{min(shift, 16)}")
    lines += _clamp("q2", "q0", epilogue)
    if lanes < 4:
        lines += [f"movs r0, #{lanes}", "vctp.32 r0", "vpst", "vstrbt.32 q2, [r1, q3]"]
    else:
        lines += ["vstrb.32 q2, [r1, q3]"]
    return lines


def _blocks(plane: Plane, epilogue: MveEpilogue) -> list[str]:
    """The outputs of one row (stride 2) or two (stride 1) from r7 on."""
    multiplier = 4 * epilogue.biased
    lines = [f"ldr r0, [r11, #{multiplier}]", f"vdup.32 {'q5' if plane.stride == 2 else 'q1'}, r0"]
    if epilogue.shift < 0:
        lines += [f"ldr r0, [r11, #{multiplier + 8 + 4 * epilogue.signed}]", "str r0, [sp, #36]"]
    lines += ["vldrw.u32 q3, [sp]", "mov r1, r7"]
    each = 2 if plane.stride == 1 else 4
    whole, rest = divmod(plane.columns, each)
    if whole:
        lines += [f"mov.w lr, #{whole}", "12:", *_block(plane, epilogue)]
        lines += [*_advance("r1", each * plane.pixel), "le lr, 12b"]
    if rest and plane.stride == 1:
        # The last column again with the one before it, which gets the same value once more.
        lines += ["subs r3, #4", *_advance("r1", -plane.pixel), *_block(plane, epilogue)]
    elif rest:
        lines += _block(plane, epilogue, rest)
    return lines


def _advance(register: str, by: int) -> list[str]:
    kind = "addw" if by >= 0 else "subw"
    if abs(by) < 4096:
        return [f"{kind} {register}, {register}, #{abs(by)}"]
    return [*_constant("r2", abs(by)), f"{kind[:3]}.w {register}, {register}, r2"]


def _next_rows(plane: Plane) -> list[str]:
    """On to the next rows: r9 the first input row, r5 its place, r7 the output row; two rows at a time with stride 1, the last
    of an odd number of rows together with the one before it."""
    row = plane.columns * plane.pixel
    last = plane.rows - (2 if plane.stride == 1 else 1)
    lines = [f"cmp r9, #{last * plane.stride - plane.top}" if last * plane.stride >= plane.top else "cmn r9, #1"]
    lines.append("beq 13f")
    if plane.stride == 1 and plane.rows % 2:
        before = plane.rows - 3 - plane.top
        lines += [
            f"cmp r9, #{before}" if before >= 0 else f"cmn r9, #{-before}",
            "ite eq",
            "moveq r0, #1",
            "movne r0, #2",
        ]
        lines += ["add r9, r0", *_constant("r2", plane.in_columns), "mla r5, r0, r2, r5"]
        lines += [*_constant("r2", row), "mla r7, r0, r2, r7"]
    else:
        outputs = 1 if plane.stride == 2 else 2
        lines += ["add.w r9, r9, #2", *_advance("r5", 2 * plane.in_columns), *_advance("r7", outputs * row)]
    return [*lines, "b.w 11b", "13:"]


def taps(channels: int, epilogue: MveEpilogue) -> AsmKernel:
    """One pixel of any depthwise convolution: `f(addresses, out, stream, {taps, output's channel stride})`.

    Channels lie side by side at each address. The stream has, for each four channels, their weights tap by tap, then the
    epilogue's parameters. Reads and writes exactly `channels` bytes.
    """
    ragged = channels % 4 != 0
    name = f"tim_mve_taps{channels}_{epilogue.tag}"
    lines = [*_prologue(12), "mov r10, r0", "ldr r4, [r3]", "ldr r5, [r3, #4]", "movs r8, #0"]
    lines += ["vidup.u32 q3, r8, #1", "vmul.i32 q3, q3, r5", "lsls r5, r5, #2", f"movw r6, #{channels}", "movs r9, #0"]
    lines += ["1:", "vmov.i32 q0, #0", "mov r8, r10", *(["vctp.32 r6"] if ragged else []), "dls lr, r4", "2:"]
    lines += ["ldr r7, [r8], #4", "add r7, r9"]
    lines += ["vpst", "vldrbt.s32 q1, [r7]"] if ragged else ["vldrb.s32 q1, [r7]"]
    lines += [
        "vldrb.s32 q2, [r2], #4",
        "vmul.i32 q1, q1, q2",
        "vadd.i32 q0, q0, q1",
        "le lr, 2b",
        "vshl.i32 q0, q0, #8",
    ]
    load = "vldrw.u32 q1, [r2], #16"
    lines += [load, "vadd.i32 q0, q0, q1"] if epilogue.biased else []
    lines += [load, "vmulh.s32 q2, q0, q1", load, "vadd.i32 q2, q2, q1"]
    lines += [load, "vpt.s32 lt, q0, zr", "vsubt.i32 q2, q2, q1"] if epilogue.signed else []
    if epilogue.shift < 0:
        lines += [load, "vshl.s32 q2, q2, q1", "vqmovnb.s32 q2, q2"]
    else:
        lines += [f"vshr.s32 q2, q2, #{epilogue.shift - 16}"] if epilogue.shift > 16 else []
        lines.append(f"vqshrnb.s32 q2, q2, #{min(epilogue.shift, 16)}")
    lines += _clamp("q2", "q1", epilogue)
    lines += ["vctp.32 r6", "vpst", "vstrbt.32 q2, [r1, q3]"] if ragged else ["vstrb.32 q2, [r1, q3]"]
    lines += ["add r1, r5", "adds r9, #4", "subs r6, #4", "bgt 1b", *_end(12)]
    return _function(name, lines, 12 + _PUSHED)
