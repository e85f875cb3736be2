"""What the generators of Thumb-2 kernels share: the epilogue of a layer, functions as text.

Conventions: r13 is only ever the stack; every kernel is a leaf and saves r4-r11 and lr; 8-byte stack alignment is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinymlaas_compiler_tvm.native.program import AsmKernel


@dataclass(frozen=True)
class Epilogue:
    """How accumulators become int8: `shift` of SSAT (-1: a channel's own), `signed` offsets, a `clamp` narrower than int8's,
    a bias a channel (`biased`) where the kernel adds it after the sums, one set of parameters for all channels (`uniform`)."""

    shift: int
    signed: bool
    clamp: tuple[int, int] | None = None
    biased: bool = False
    uniform: bool = False

    @property
    def variable(self) -> bool:
        """Whether each channel has its own shift."""
        return self.shift < 0

    @property
    def tag(self) -> str:
        """Part of the kernel's name."""
        clamp = "" if self.clamp is None else f"_c{self.clamp[0] + 128}_{self.clamp[1] + 128}"
        flags = ((self.signed, "s"), (self.biased, "b"), (self.uniform, "u"))
        letters = "".join(letter for flag, letter in flags if flag)
        return f"q{'v' if self.variable else self.shift}{letters}{clamp}"


def function(name: str, lines: list[str], stack_bytes: int) -> AsmKernel:
    """An assembly function in a section of its own; labels are lines that end with a colon."""
    body = "\n".join(line if line.endswith(":") else f"\t{line}" for line in lines)
    text = (
        f'\t.section .text.{name},"ax",%progbits\n\t.p2align 2\n\t.global {name}\n\t.hidden {name}\n'
        f"\t.type {name},%function\n\t.thumb_func\n{name}:\n{body}\n\t.size {name}, . - {name}\n"
    )
    return AsmKernel(name, text, stack_bytes)


def clamp_lines(value: str, epilogue: Epilogue) -> list[str]:
    """`value`, saturated to int8 already, into the layer's clamp."""
    lines: list[str] = []
    if epilogue.clamp is not None:
        low, high = epilogue.clamp
        if low > -128:
            lines += [f"cmp {value}, #{low}", "it lt", f"movlt {value}, #{low}"]
        if high < 127:
            lines += [f"cmp {value}, #{high}", "it gt", f"movgt {value}, #{high}"]
    return lines


def add_constant(register: str, value: int) -> list[str]:
    """`register` += value, |value| < 4096."""
    if value == 0:
        return []
    return [f"{'add' if value > 0 else 'sub'}w {register}, {register}, #{abs(value)}"]
