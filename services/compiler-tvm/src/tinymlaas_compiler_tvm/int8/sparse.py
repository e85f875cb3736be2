"""Whether a layer's single zeros are left out: its kernels for weights other than zero against its other ones, by estimate.

A decision from the layer alone; where some layer's favours the sparse kernels, `compile` makes the module without them too and
keeps the better one, as exact figures have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tinymlaas_compiler_tvm.int8 import long_streams
from tinymlaas_compiler_tvm.int8.channels import Layer
from tinymlaas_compiler_tvm.int8.lowering import Lowering
from tinymlaas_compiler_tvm.int8.sparse_streams import GROUP, TURN, dense_entries, entry_counts
from tinymlaas_compiler_tvm.target import Machine

# How the kinds of steps end that leave out zeros.
SPARSE = "_sparse"


@dataclass(frozen=True)
class Cost:
    """What a layer takes: instructions an inference, and bytes of its stream."""

    instructions: float
    bytes: float

    def better_than(self, other: Cost, objective: str) -> bool:
        """By the objective: instructions, bytes, or (`balanced`) a percent of the one for a percent of the other."""
        if objective in ("latency", "ram"):
            return self.instructions < other.instructions
        if objective == "flash":
            return self.bytes < other.bytes
        return self.instructions * self.bytes < other.instructions * other.bytes


class Form(StrEnum):
    """Of the kernels: assembly for Armv7-M and Armv8-M Mainline, C, or C for the eight registers of Armv6-M."""

    ASSEMBLY = "assembly"
    C = "c"
    C_FEW_REGISTERS = "c, few registers"


# Instructions of eight pixels: a weight, a group of seven, a channel, packing a k.
_RATES = {Form.ASSEMBLY: (9, 3, 70, 20), Form.C: (34, 12, 130, 50), Form.C_FEW_REGISTERS: (85, 20, 230, 100)}
# Instructions of a fully connected layer: a weight, a turn of eight.
_DENSE_RATES = {Form.ASSEMBLY: (4, 2), Form.C: (9, 0), Form.C_FEW_REGISTERS: (11, 0)}


def form_for(machine: Machine) -> Form:
    """The kernels that a machine gets."""
    if machine.mainline:
        return Form.ASSEMBLY
    return Form.C_FEW_REGISTERS if machine.arm else Form.C


def _parameter_bytes(layer: Layer, uniform: bool = False) -> int:
    return 0 if uniform else 4 * layer.parameter_words


def matrix_cost(layer: Layer, pixels: int, form: Form = Form.ASSEMBLY) -> Cost:
    """Cost of `sparse_asm.matrix`, or its form in C, for a convolution of that many output pixels: runs of eight pixels."""
    channels, k = layer.weights.shape
    counts = entry_counts(layer.weights)
    groups = -(-counts // GROUP)
    each, group, channel, pack = _RATES[form]
    run = (
        each * int(counts.sum()) + group * int(groups.sum()) + (channel + 16 * int(layer.signed)) * channels + pack * k
    )
    first = counts - (groups - 1) * GROUP
    # A first group of n weights takes n + 1 bytes and fills up a word; the others take 8.
    weights = int((-(-(first + 1) // 4) * 4 + 8 * (groups - 1) + 4 * groups).sum())
    parameters = _parameter_bytes(layer) if form is Form.ASSEMBLY else 12
    return Cost(-(-pixels // 8) * run, weights + channels * (4 + parameters))


def other_matrix_cost(layer: Layer, pixels: int, family: str) -> Cost:
    """Cost of the kernels that multiply by zeros, by their family."""
    channels, k = layer.weights.shape
    pairs = -(-channels // 2)
    if family == "dsp":
        run = pairs * (2.9 * k + 32 + 8 * layer.signed) + 2 * k
        size = pairs * (8 + 2 * (-(-k // 4) * 4) + 2 * _parameter_bytes(layer))
        return Cost(-(-pixels // 2) * run, size)
    if family == "long":
        run = pairs * (7.3 * k + 75 + 16 * layer.signed) + 8 * k
        size = pairs * (-(-2 * k // 4) * 4 + 2 * (_parameter_bytes(layer) + 4 * layer.biased))
        return Cost(-(-pixels // 4) * run, size)
    if family == "small":
        return Cost(-(-pixels // 4) * (channels * (8 * k + 90) + 12 * k), channels * (-(-k // 4) * 4 + 24))
    return Cost(-(-pixels // 2) * (pairs * (15 * k + 90) + 12 * k), pairs * (8 + 2 * (-(-k // 4) * 4) + 24))


def dense_cost(layer: Layer, rows: int, form: Form = Form.ASSEMBLY) -> Cost:
    """Cost of `sparse_asm.dense` or its form in C: also 5 instructions a window, about 16 a channel."""
    each, turn = _DENSE_RATES[form]
    parameters = _parameter_bytes(layer, layer.uniform) if form is Form.ASSEMBLY else 12
    per_row, size = 0.0, 0
    for row in layer.weights:
        windows = [len(window) for window in dense_entries(row)]
        turns = sum(-(-count // TURN) for count in windows)
        per_row += each * sum(windows) + turn * turns + 5 * len(windows) + 16
        size += 4 + (2 * sum(windows) + 2 * len(windows) + 2) // 4 * 4 + parameters
    return Cost(rows * per_row, size)


def other_dense_cost(layer: Layer, rows: int, family: str) -> Cost:
    """Cost of the kernels that multiply by zeros, by their family."""
    channels, k = layer.weights.shape
    fours = -(-channels // 4)
    if family == "dsp":
        padded = -(-k // 8) * 8
        size = fours * (16 + 4 * padded + 4 * _parameter_bytes(layer, layer.uniform))
        return Cost(rows * (fours * (3.5 * padded + 45) + padded), size)
    if family == "long":
        size = fours * (4 * k + 4 * (_parameter_bytes(layer) + 4 * layer.biased))
        return Cost(rows * (fours * (5.4 * k + 75) + 4 * k), size)
    if family == "small":
        return Cost(rows * channels * (2.2 * k + 60), channels * (k + 12))
    return Cost(rows * channels * (7 * k + 30), channels * (16 + -(-k // 4) * 4))


def possible(state: Lowering, layer: Layer) -> bool:
    """Whether the target and the sums of a layer allow kernels that leave out zeros, and the options ask for them."""
    if not state.settings.zeros or state.machine.mve:
        return False
    return not state.machine.mainline or long_streams.fits_fields(layer)


def matrix_pays(state: Lowering, layer: Layer, pixels: int, family: str) -> bool:
    """Whether a convolution of that many output pixels leaves out its zeros; `family` is that of its kernels else."""
    if not possible(state, layer):
        return False
    mine = matrix_cost(layer, pixels, form_for(state.machine))
    return mine.better_than(other_matrix_cost(layer, pixels, family), state.settings.zeros)


def dense_pays(state: Lowering, layer: Layer, rows: int, family: str) -> bool:
    """Whether a fully connected layer of that many rows leaves out its zeros; `family` is that of its kernels else."""
    if not possible(state, layer):
        return False
    mine = dense_cost(layer, rows, form_for(state.machine))
    return mine.better_than(other_dense_cost(layer, rows, family), state.settings.zeros)
