"""What int16 convolutions and fully connected layers share: accumulator bounds, requantization a channel, weight streams."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinymlaas_compiler_tvm.int8.channels import real_multipliers
from tinymlaas_compiler_tvm.int8.lowering import Lowering, activation_of, quantized, unsupported, words
from tinymlaas_compiler_tvm.int16 import reference
from tinymlaas_modelkit.graph import DType, Op

Int64s = npt.NDArray[np.int64]
# A product of accumulator and multiplier loses its low 16 bits first: exact where the whole shift is larger than that.
_HALF = 16


@dataclass(frozen=True)
class Layer16:
    """A layer's weights [channels, K] in the order of the kernel's patch, biases, multipliers and shifts, and the clamp.

    `fits`: whether 32-bit accumulators and a product's high word are enough for every input there is; else 64 bits are needed.
    """

    weights: Int64s
    biases: Int64s
    multipliers: Int64s
    shifts: Int64s
    low: int
    high: int
    fits: bool

    def parameter(self, channel: int) -> int:
        """Multiplier and shift in a word: the multiplier in the upper half, below it the shift beyond 17; 0 without a channel."""
        if channel >= len(self.biases):
            return 0
        return int(self.multipliers[channel]) << _HALF | int(self.shifts[channel]) - _HALF - 1

    def bias(self, channel: int) -> int:
        """A channel's bias; 0 without a channel."""
        return int(self.biases[channel]) if channel < len(self.biases) else 0

    @property
    def clamp(self) -> str:
        """C of the result's clamp, and a name for it: saturation where that is all."""
        if (self.low, self.high) == (reference.LOW, reference.HIGH):
            return "any"
        return "positive" if (self.low, self.high) == (0, reference.HIGH) else "within"


def make_layer(state: Lowering, op: Op, weights: Int64s) -> Layer16:
    """The layer of an operator with `weights` [channels, K]; OpUnsupported for what has no int16 form."""
    filter_tensor = state.tensor(op.inputs[1])
    quantization = filter_tensor.quantization
    if filter_tensor.dtype is not DType.INT8 or quantization is None or np.any(quantization.zero_points != 0):
        raise unsupported(op, "weights are not int8 with zero point 0", filter_tensor.dtype)
    channels = weights.shape[0]
    _, in_scale, in_zero = quantized(state, op, op.inputs[0], DType.INT16)
    _, out_scale, out_zero = quantized(state, op, op.outputs[0], DType.INT16)
    if in_zero or out_zero:
        raise unsupported(op, "zero point other than 0", "int16")
    biases = np.zeros(channels, np.int64)
    if len(op.inputs) > 2 and op.inputs[2] is not None:
        data = state.tensor(op.inputs[2]).data
        if data is None:
            raise unsupported(op, "bias is not constant", "int32")
        biases = data.astype(np.int64).reshape(-1)
    reals = real_multipliers(op, in_scale, quantization, channels, out_scale)
    pairs = [reference.reduced_multiplier(real) for real in reals]
    multipliers = np.array([pair[0] for pair in pairs], np.int64)
    # Zero times anything is zero after any shift.
    shifts = np.array([max(pair[1], _HALF + 1) if pair[0] == 0 else pair[1] for pair in pairs], np.int64)
    extremes = np.stack([weights * reference.LOW, weights * reference.HIGH])
    # A sum may stop anywhere: its bounds include those of its parts.
    least = biases.clip(max=0) + extremes.min(axis=0).sum(axis=1)
    greatest = biases.clip(min=0) + extremes.max(axis=0).sum(axis=1)
    small = least.min() >= -(1 << 31) and greatest.max() < 1 << 31
    low, high = reference.activation_range(activation_of(op), out_scale)
    fits = bool(small and shifts.min() > _HALF and shifts.max() <= _HALF + 31)
    return Layer16(weights, biases, multipliers, shifts, low, high, fits)


def pair_stream(layer: Layer16) -> bytes:
    """Stream of the matrix kernels: per channel pair two biases, then for each four k a word of either channel, two parameters.

    Bytes of a word stand in the order 0, 2, 1, 3: extending the even bytes gives the first two weights as halfwords, the odd
    ones the others.
    """
    channels, k = layer.weights.shape
    fours = -(-k // 4)
    padded = np.zeros((-(-channels // 2) * 2, fours * 4), np.int8)
    padded[:channels, :k] = layer.weights
    ordered = padded.reshape(-1, fours, 4)[:, :, [0, 2, 1, 3]]
    parts = []
    for c in range(0, len(padded), 2):
        parts.append(words([layer.bias(c), layer.bias(c + 1)]))
        parts.append(np.ascontiguousarray(ordered[c : c + 2].transpose(1, 0, 2)).tobytes())
        parts.append(words([layer.parameter(c), layer.parameter(c + 1)]))
    return b"".join(parts)


def word_stream(layer: Layer16, steps: int) -> bytes:
    """Stream of `dsp_asm.four_by_two`: per channel pair two biases, for each two k a word A, B, A, B, two parameters."""
    channels, k = layer.weights.shape
    padded = np.zeros((channels, 2 * steps), np.int8)
    padded[:, :k] = layer.weights
    parts = []
    for c in range(0, channels, 2):
        parts.append(words([layer.bias(c), layer.bias(c + 1)]))
        parts.append(np.ascontiguousarray(padded[c : c + 2].T).tobytes())
        parts.append(words([layer.parameter(c), layer.parameter(c + 1)]))
    return b"".join(parts)


def general_stream(layer: Layer16) -> bytes:
    """Stream of the kernel without bounds: a channel's bias in two words, multiplier, shift, weights, padding to 4 bytes."""
    parts = []
    for channel, weights in enumerate(layer.weights):
        bias = int(layer.biases[channel])
        head = [bias & 0xFFFFFFFF, bias >> 32, int(layer.multipliers[channel]), int(layer.shifts[channel])]
        parts.append(words(head))
        parts.append(weights.astype(np.int8).tobytes() + b"\0" * (-weights.size % 4))
    return b"".join(parts)
