"""What convolutions and fully connected layers share: biases with the input's zero point, and requantization a channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinymlaas_compiler_tvm import arithmetic, float_arithmetic, narrow, requant
from tinymlaas_compiler_tvm.int8.lowering import Lowering, activation_of, quantized, unsupported
from tinymlaas_modelkit.graph import DType, Op, OpKind, Quantization

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Layer:
    """A layer's weights [channels, K] in the order of the kernel's patch, biases with the zero point folded in, requantization.

    `narrow` is the requantization without long multiplication; None where the machine has that, or where none was found.
    """

    weights: Int64s
    biases: Int64s
    fitted: requant.Fit
    low: int
    high: int
    narrow: narrow.Narrow | None = None

    @property
    def signed(self) -> bool:
        """Whether negative accumulators need an offset of their own."""
        return self.fitted.negatives is not None

    @property
    def biased(self) -> bool:
        """Whether accumulators start at a bias."""
        return bool(np.any(self.biases))

    @property
    def uniform(self) -> bool:
        """Whether all channels are requantized by the same numbers."""
        fitted = self.fitted
        columns = [fitted.shifts, fitted.multipliers, fitted.offsets]
        columns += [] if fitted.negatives is None else [fitted.negatives]
        return all(bool(np.all(values == values[0])) for values in columns)

    @property
    def parameter_words(self) -> int:
        """Words a channel in the streams of DSP kernels."""
        return 2 + int(self.signed) + int(self.fitted.shift < 0)

    def parameters(self, channel: int) -> list[int]:
        """A channel's multiplier, offset[, negative][, shift] for DSP kernels; zeros for a channel of -1."""
        if channel < 0:
            return [0] * self.parameter_words
        fitted = self.fitted
        values = [int(fitted.multipliers[channel]), int(fitted.offsets[channel])]
        if fitted.negatives is not None:
            values.append(int(fitted.negatives[channel]))
        if fitted.shift < 0:
            values.append(int(fitted.shifts[channel]))
        return values

    def portable_parameters(self, channel: int) -> list[int]:
        """A channel's multiplier, offset, and negative * 32 + shift."""
        if channel < 0:
            return [0, 0, 0]
        fitted = self.fitted
        negative = 0 if fitted.negatives is None else int(fitted.negatives[channel])
        return [
            int(fitted.multipliers[channel]),
            int(fitted.offsets[channel]),
            negative * 32 + int(fitted.shifts[channel]),
        ]

    @property
    def packable(self) -> bool:
        """Whether two weights fit a halfword as 256 * a + b whatever their pairing."""
        return bool(self.weights.min(initial=0) >= -127)


def real_multipliers(
    op: Op, in_scale: float, quantization: Quantization, channels: int, out_scale: float
) -> list[float]:
    """Output steps a unit of accumulator, a channel, as TFLite's kernels compute them."""
    scales = np.broadcast_to(quantization.scales.reshape(-1), (channels,)).astype(np.float32)
    if op.kind is OpKind.FULLY_CONNECTED and quantization.scales.size == 1:
        # The reference multiplies these two scales in float32.
        product = float(np.float32(in_scale) * scales[0])
        return [product / out_scale] * channels
    return [float(in_scale) * float(scale) / out_scale for scale in scales]


def reference(
    state: Lowering, op: Op, channels: int, low: int, high: int
) -> tuple[Callable[[Int64s], Int64s], npt.NDArray[np.float64]]:
    """The map from accumulators to outputs that the reference computes, and its slope a channel."""
    _, in_scale, _ = quantized(state, op, op.inputs[0])
    _, out_scale, zero_point = quantized(state, op, op.outputs[0])
    quantization = state.tensor(op.inputs[1]).quantization
    if quantization is None:
        raise unsupported(op, "weights have no quantization")
    scales = np.broadcast_to(quantization.scales.reshape(-1), (channels,)).astype(np.float32)
    if state.settings.rounding == "onnx":
        units = float(in_scale) * scales.astype(np.float64)
        return float_arithmetic.requantization(units, out_scale, zero_point, low, high), units / out_scale
    reals = real_multipliers(op, in_scale, quantization, channels, out_scale)
    pairs = [arithmetic.quantize_multiplier(real) for real in reals]
    multipliers = np.array([pair[0] for pair in pairs], np.int64)[:, None]
    shifts = np.array([pair[1] for pair in pairs], np.int64)[:, None]

    def in_fixed_point(acc: Int64s) -> Int64s:
        return arithmetic.requantize(acc, multipliers, shifts, zero_point, low, high)

    return in_fixed_point, multipliers[:, 0] * 2.0 ** (shifts[:, 0] - 31)


def _fit_alike(
    function: Callable[[Int64s], Int64s],
    slope: npt.NDArray[np.float64],
    acc_low: Int64s,
    acc_high: Int64s,
    clamp: tuple[int, int],
) -> requant.Fit | None:
    """The same parameters for all channels of a layer with one scale, proven over all their accumulators at once."""
    channels = slope.size
    low, high = acc_low.min(keepdims=True), acc_high.max(keepdims=True)

    def of_first(acc: Int64s) -> Int64s:
        return function(np.broadcast_to(acc, (channels, acc.shape[1])))[:1]

    one = requant.fit_best(requant.find_steps(of_first, slope[:1], low, high, *clamp), low, high)
    if one is None:
        return None
    negatives = None if one.negatives is None else np.repeat(one.negatives, channels)
    return requant.Fit(
        np.repeat(one.shifts, channels),
        np.repeat(one.multipliers, channels),
        np.repeat(one.offsets, channels),
        negatives,
    )


def _narrow(
    function: Callable[[Int64s], Int64s],
    slope: npt.NDArray[np.float64],
    acc_low: Int64s,
    acc_high: Int64s,
    clamp: tuple[int, int],
    alike: bool,
) -> narrow.Narrow | None:
    """Requantization without long multiplication; the same for all channels of a layer with one scale, if `alike` allows it."""
    channels = slope.size
    if alike and channels > 1 and np.all(slope == slope[0]):
        least, greatest = acc_low.min(keepdims=True), acc_high.max(keepdims=True)

        def of_first(acc: Int64s) -> Int64s:
            return function(np.broadcast_to(acc, (channels, acc.shape[1])))[:1]

        one = narrow.fit(requant.find_steps(of_first, slope[:1], least, greatest, *clamp), least, greatest)
        if one is not None:
            return one.repeated(channels)
    return narrow.fit(requant.find_steps(function, slope, acc_low, acc_high, *clamp), acc_low, acc_high)


def make_layer(state: Lowering, op: Op, weights: Int64s) -> Layer:
    """The layer of an operator with `weights` [channels, K]; OpUnsupported for what the kernels can't hold."""
    filter_tensor = state.tensor(op.inputs[1])
    if filter_tensor.dtype is not DType.INT8 or filter_tensor.quantization is None:
        raise unsupported(op, "weights are not int8", filter_tensor.dtype)
    if np.any(filter_tensor.quantization.zero_points != 0):
        raise unsupported(op, "weights with a zero point other than 0")
    channels = weights.shape[0]
    _, out_scale, out_zero = quantized(state, op, op.outputs[0])
    _, _, in_zero = quantized(state, op, op.inputs[0])
    biases = np.zeros(channels, np.int64)
    if len(op.inputs) > 2 and op.inputs[2] is not None:
        data = state.tensor(op.inputs[2]).data
        if data is None:
            raise unsupported(op, "bias is not constant", "int32")
        biases = data.astype(np.int64).reshape(-1)
    biases = biases - in_zero * weights.sum(axis=1)
    activation = activation_of(op)
    low, high = state.activation_range(activation, out_scale, out_zero)
    function, slope = reference(state, op, channels, low, high)
    extremes = np.stack([weights * -128, weights * 127])
    sum_low, sum_high = extremes.min(axis=0).sum(axis=1), extremes.max(axis=0).sum(axis=1)
    limit = 1 << (31 - requant.PRE_SHIFT)
    # A huge bias (a dead channel's, mostly) is taken out of the accumulator; the requantization's offset makes up for it.
    outside = (biases + sum_low <= -limit) | (biases + sum_high >= limit)
    centre = np.where(outside, biases + (sum_low + sum_high) // 2, 0)
    biases = biases - centre
    acc_low, acc_high = biases + sum_low, biases + sum_high
    if acc_low.min() <= -limit or acc_high.max() >= limit:
        raise unsupported(op, "accumulators may pass 23 bits")

    def centred(acc: Int64s) -> Int64s:
        return function(acc + centre[:, None])

    fitted = None
    if channels > 1 and np.all(slope == slope[0]) and not outside.any():
        fitted = _fit_alike(function, slope, acc_low, acc_high, (low, high))
    if fitted is None:
        steps = requant.find_steps(centred, slope, acc_low, acc_high, low, high)
        fitted = requant.fit_best(steps, acc_low, acc_high)
    if fitted is None:
        raise unsupported(op, "no exact requantization was found")
    small = None
    if state.machine.arm and not state.machine.long_multiply:
        small = _narrow(centred, slope, acc_low, acc_high, (low, high), alike=not outside.any())
    return Layer(weights, biases, fitted, low, high, small)
