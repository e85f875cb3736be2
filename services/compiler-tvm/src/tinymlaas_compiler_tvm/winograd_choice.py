"""Which layers change to Winograd's convolutions for objective `latency`: those that gain, as far as flash allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tinymlaas_compiler_tvm.certificates import certificate_message, image_bytes
from tinymlaas_compiler_tvm.errors import DoesNotFit
from tinymlaas_compiler_tvm.int8 import winograd
from tinymlaas_compiler_tvm.int8.lowering import image
from tinymlaas_compiler_tvm.parts import CompiledParts
from tinymlaas_compiler_tvm.target import Machine
from tinymlaas_modelkit.graph import Graph

# The driver's code, about.
_DRIVER_BYTES = 700


@dataclass(frozen=True)
class Candidate:
    """A layer that may change to Winograd: its output, instructions saved and bytes of flash added (estimates)."""

    output: str
    saved: int
    added: int


def candidates(graph: Graph, machine: Machine) -> list[Candidate]:
    """The layers of a graph that would gain, in the graph's order."""
    if not machine.dsp or machine.mve:
        return []
    found = []
    for op in graph.ops:
        if winograd.suits(graph, op):
            height, width, outputs = image(graph.tensor(op.outputs[0]))
            weights = graph.tensor(str(op.inputs[1]))
            nonzero = int(np.count_nonzero(weights.data)) if weights.data is not None else weights.elements
            candidate = estimate(op.outputs[0], height, width, weights.shape[3], outputs, nonzero)
            found += [candidate] if candidate.saved > 0 else []
    return found


def estimate(output: str, height: int, width: int, channels: int, outputs: int, nonzero: int) -> Candidate:
    """What a layer of height x width x outputs would save and take, by the instructions of both ways' loops.

    The other way leaves out zeros where that is faster: `nonzero` counts the weights that it can't.
    """
    k = 9 * channels
    direct = height * width * min(outputs * (0.72 * k + 12) + k, (9.5 * nonzero + 70 * outputs + 20 * k) / 8)
    pairs = -(-height // 2) * -(-width // 4)
    tiled = pairs * (64 * channels + 100 + -(-outputs // 2) * (16 * (2.5 * channels + 2) + 220))
    # Copies of outputs at the edges that fill no tile.
    outside = pairs * 8 - height * width
    tiled += 8 * outputs * outside
    streams = 16 * 2 * channels * (outputs + outputs % 2) - k * (outputs + outputs % 2)
    return Candidate(output, int(direct - tiled), streams + _code_bytes(channels) + _DRIVER_BYTES)


def _code_bytes(channels: int) -> int:
    """At most what a layer's two kernels take: four bytes an instruction, and that of the widest epilogue."""
    return 1_150 + 1_500 + 40 * max(channels // 4, 16)


def choose(found: Sequence[Candidate], room: int | None) -> list[str]:
    """Outputs of the layers that change, those first that save most instructions an added byte; None: flash is no limit.

    A layer that is too large for what is left is passed over; smaller ones after it may fit still.
    """
    chosen = []
    for candidate in sorted(found, key=lambda each: -each.saved / each.added):
        if room is not None:
            if candidate.added > room:
                continue
            room -= candidate.added
        chosen.append(candidate.output)
    return chosen


def with_layers(
    found: Sequence[Candidate], plain: CompiledParts, flash_bytes: int, build: Callable[[frozenset[str]], CompiledParts]
) -> CompiledParts | None:
    """The module with as many of the layers by Winograd as its image and the device allow; None if that is none.

    `plain` is the module without; `build` makes one with the layers of those outputs, or raises DoesNotFit; `flash_bytes` is 0
    where nobody set a limit.
    """
    taken = image_bytes(plain, certificate_message(plain))
    chosen = choose(found, flash_bytes - taken if flash_bytes else None)
    while chosen:
        try:
            made = build(frozenset(chosen))
        except DoesNotFit:
            pass
        else:
            if not flash_bytes or image_bytes(made, certificate_message(made)) <= flash_bytes:
                return made
        chosen = chosen[:-1]
    return None
