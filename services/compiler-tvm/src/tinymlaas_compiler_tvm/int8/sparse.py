"""Whether a layer's single zeros are left out: its kernels for weights other than zero against its other ones, by estimate.

A decision from the layer alone; where some layer's favours the sparse kernels, `compile` makes the module without them too and
keeps the better one, as exact figures have it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinymlaas_compiler_tvm.int8 import long_streams
from tinymlaas_compiler_tvm.int8.channels import Layer
from tinymlaas_compiler_tvm.int8.lowering import Lowering
from tinymlaas_compiler_tvm.int8.sparse_streams import GROUP, TURN, dense_entries, entry_counts

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


def _parameter_bytes(layer: Layer, uniform: bool = False) -> int:
    return 0 if uniform else 4 * layer.parameter_words


def matrix_cost(layer: Layer, pixels: int) -> Cost:
    """Cost of `sparse_asm.matrix` for a convolution of that many output pixels.

    Eight pixels a run: 9 instructions a weight, 3 a group of seven weights, about 70 a channel, and 20 a k to pack the pixels.
    """
    channels, k = layer.weights.shape
    counts = entry_counts(layer.weights)
    groups = -(-counts // GROUP)
    run = 9 * int(counts.sum()) + 3 * int(groups.sum()) + (70 + 16 * int(layer.signed)) * channels + 20 * k
    first = counts - (groups - 1) * GROUP
    # A first group of n weights takes n + 1 bytes and fills up a word; the others take 8.
    weights = int((-(-(first + 1) // 4) * 4 + 8 * (groups - 1) + 4 * groups).sum())
    return Cost(-(-pixels // 8) * run, weights + channels * (4 + _parameter_bytes(layer)))


def other_matrix_cost(layer: Layer, pixels: int, dsp: bool) -> Cost:
    """Cost of the kernels that multiply by zeros: `dsp_asm.two_by_two` or `long_asm.two_by_four`."""
    channels, k = layer.weights.shape
    pairs = -(-channels // 2)
    if dsp:
        run = pairs * (2.9 * k + 32 + 8 * layer.signed) + 2 * k
        size = pairs * (8 + 2 * (-(-k // 4) * 4) + 2 * _parameter_bytes(layer))
        return Cost(-(-pixels // 2) * run, size)
    run = pairs * (7.3 * k + 75 + 16 * layer.signed) + 8 * k
    size = pairs * (-(-2 * k // 4) * 4 + 2 * (_parameter_bytes(layer) + 4 * layer.biased))
    return Cost(-(-pixels // 4) * run, size)


def dense_cost(layer: Layer, rows: int) -> Cost:
    """Cost of `sparse_asm.dense`: 4 instructions a weight, 2 a turn of eight, 5 a window, about 16 a channel."""
    per_row, size = 0.0, 0
    for row in layer.weights:
        windows = [len(window) for window in dense_entries(row)]
        per_row += 4 * sum(windows) + 2 * sum(-(-count // TURN) for count in windows) + 5 * len(windows) + 16
        size += 4 + (2 * sum(windows) + 2 * len(windows) + 2) // 4 * 4 + _parameter_bytes(layer, layer.uniform)
    return Cost(rows * per_row, size)


def other_dense_cost(layer: Layer, rows: int, dsp: bool) -> Cost:
    """Cost of `dsp_asm.dense` or `long_asm.dense`."""
    channels, k = layer.weights.shape
    fours = -(-channels // 4)
    if dsp:
        padded = -(-k // 8) * 8
        size = fours * (16 + 4 * padded + 4 * _parameter_bytes(layer, layer.uniform))
        return Cost(rows * (fours * (3.5 * padded + 45) + padded), size)
    size = fours * (4 * k + 4 * (_parameter_bytes(layer) + 4 * layer.biased))
    return Cost(rows * (fours * (5.4 * k + 75) + 4 * k), size)


def possible(state: Lowering, layer: Layer) -> bool:
    """Whether the target and the sums of a layer allow kernels that leave out zeros, and the options ask for them."""
    machine = state.machine
    return state.settings.zeros != "" and machine.mainline and not machine.mve and long_streams.fits_fields(layer)


def matrix_pays(state: Lowering, layer: Layer, pixels: int) -> bool:
    """Whether a convolution of that many output pixels leaves out its zeros."""
    if not possible(state, layer):
        return False
    dsp = state.machine.dsp and layer.packable
    return matrix_cost(layer, pixels).better_than(other_matrix_cost(layer, pixels, dsp), state.settings.zeros)


def dense_pays(state: Lowering, layer: Layer, rows: int) -> bool:
    """Whether a fully connected layer of that many rows leaves out its zeros."""
    if not possible(state, layer):
        return False
    dsp = state.machine.dsp and layer.packable and not state.settings.scratch_free_dense
    return dense_cost(layer, rows).better_than(other_dense_cost(layer, rows, dsp), state.settings.zeros)
