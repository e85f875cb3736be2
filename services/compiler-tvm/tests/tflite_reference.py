"""TFLite's int8 operators in numpy, written from the 8-bit quantization specification, and graphs of one operator.

Independent of the compiler's lowering and kernels: plain loops over windows, int64 accumulators, `arithmetic` for the rounding
(whose own figures come from whole models that are bit-exact to TFLite Micro).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tinymlaas_compiler_tvm import arithmetic
from tinymlaas_modelkit.graph import Activation, DType, Graph, Op, OpKind, Quantization, Tensor

Array = npt.NDArray[np.generic]


def per_tensor(scale: float, zero: int) -> Quantization:
    """One scale and zero point."""
    return Quantization(np.array([scale], np.float32), np.array([zero], np.int32))


@dataclass
class Case:
    """A graph of one operator (or a chain) with what it should give."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    values: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    def activation(self, name: str, shape: tuple[int, ...], scale: float, zero: int) -> None:
        """Declare an int8 tensor."""
        self.tensors[name] = Tensor(name, shape, DType.INT8, per_tensor(scale, zero))

    def graph(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Graph:
        """The graph."""
        return Graph(self.tensors, tuple(self.ops), inputs, outputs)

    def quantization(self, name: str) -> tuple[float, int]:
        """(scale, zero point) of an activation."""
        quantization = self.tensors[name].quantization
        assert quantization is not None
        return quantization.scale, quantization.zero_point

    def convolution(
        self,
        rng: np.random.Generator,
        source: str,
        target: str,
        *,
        kind: OpKind,
        kernel: tuple[int, int] = (1, 1),
        channels: int = 8,
        strides: tuple[int, int] = (1, 1),
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilations: tuple[int, int] = (1, 1),
        activation: Activation = Activation.RELU,
        out_zero: int = -128,
        multiplier: int = 1,
        per_channel: bool = True,
        spread: float = 1.5,
        largest: int = 127,
        zeros: float = 0.0,
    ) -> None:
        """Add a (depthwise) convolution or fully connected layer with random weights up to `largest` and compute its values.

        `zeros`: share of the weights that are zero.
        """
        x = self.values[source]
        in_scale, in_zero = self.quantization(source)
        depthwise = kind is OpKind.DEPTHWISE_CONV_2D
        dense = kind is OpKind.FULLY_CONNECTED
        depth = x.shape[-1]
        if depthwise:
            channels = depth * multiplier
            shape: tuple[int, ...] = (1, *kernel, channels)
        elif dense:
            shape = (channels, depth)
        else:
            shape = (channels, *kernel, depth)
        weights = rng.integers(-largest, largest + 1, shape)
        if zeros:
            weights = np.where(rng.random(shape) < zeros, 0, weights)
        count = channels if per_channel else 1
        scales = (0.02 * 2.0 ** -rng.uniform(0, spread, count)).astype(np.float32)
        biases = rng.integers(-3000, 3000, channels)
        axis = (3 if depthwise else 0) if per_channel else None
        self.tensors[f"{target}.w"] = Tensor(
            f"{target}.w",
            shape,
            DType.INT8,
            Quantization(scales, np.zeros(count, np.int32), axis),
            weights.astype(np.int8),
        )
        self.tensors[f"{target}.b"] = Tensor(f"{target}.b", (channels,), DType.INT32, None, biases.astype(np.int32))
        acc = self._accumulate(x - in_zero, weights, kind, kernel, strides, pads, dilations, multiplier) + biases
        deviation = max(float(np.abs(acc).mean()) * in_scale * float(scales.mean()), 1e-6)
        out_scale = float(np.float32(deviation / 40))
        low, high = arithmetic.activation_range(activation, out_scale, out_zero)
        full = np.broadcast_to(scales, (channels,))
        columns = []
        for channel in range(channels):
            if dense and not per_channel:
                real = float(np.float32(in_scale) * full[channel]) / out_scale
            else:
                real = float(np.float32(in_scale)) * float(full[channel]) / out_scale
            m, s = arithmetic.quantize_multiplier(real)
            columns.append(arithmetic.requantize(acc[..., channel], m, s, out_zero, low, high))
        self.values[target] = np.stack(columns, axis=-1)
        self.activation(target, self.values[target].shape, out_scale, out_zero)
        attributes: dict[str, object] = {"activation": activation}
        if not dense:
            attributes |= {"strides": strides, "pads": pads, "dilations": dilations}
        if depthwise:
            attributes["depth_multiplier"] = multiplier
        self.ops.append(Op(kind, (source, f"{target}.w", f"{target}.b"), (target,), attributes, f"node {target}"))

    @staticmethod
    def _accumulate(
        x: npt.NDArray[np.int64],
        weights: npt.NDArray[np.int64],
        kind: OpKind,
        kernel: tuple[int, int],
        strides: tuple[int, int],
        pads: tuple[int, int, int, int],
        dilations: tuple[int, int],
        multiplier: int,
    ) -> npt.NDArray[np.int64]:
        if kind is OpKind.FULLY_CONNECTED:
            return x.reshape(-1, weights.shape[1]) @ weights.T
        top, left, bottom, right = pads
        padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
        height = (padded.shape[1] - (kernel[0] - 1) * dilations[0] - 1) // strides[0] + 1
        width = (padded.shape[2] - (kernel[1] - 1) * dilations[1] - 1) // strides[1] + 1
        channels = weights.shape[-1] if kind is OpKind.DEPTHWISE_CONV_2D else weights.shape[0]
        acc = np.zeros((1, height, width, channels), np.int64)
        for ky in range(kernel[0]):
            for kx in range(kernel[1]):
                window = padded[
                    :,
                    ky * dilations[0] : ky * dilations[0] + (height - 1) * strides[0] + 1 : strides[0],
                    kx * dilations[1] : kx * dilations[1] + (width - 1) * strides[1] + 1 : strides[1],
                ]
                if kind is OpKind.DEPTHWISE_CONV_2D:
                    acc += np.repeat(window, multiplier, axis=3) * weights[0, ky, kx]
                else:
                    acc += window @ weights[:, ky, kx].T
        return acc
