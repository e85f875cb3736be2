"""Graphs of int16 operators with random weights, and TFLite Micro's word on what they compute."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from tflite_micro.python.tflite_micro import runtime

from tinymlaas_modelkit.graph import Activation, DType, Graph, Op, OpKind, Quantization, Tensor
from tinymlaas_modelkit.tflite_writer import write_tflite

Int16s = npt.NDArray[np.int16]
_LIMIT = 1 << 15


def symmetric(scale: float) -> Quantization:
    """One scale, zero point 0."""
    return Quantization(np.array([scale], np.float32), np.array([0], np.int32))


@dataclass
class Wide:
    """A graph in the making; `scale` of its inputs, `values` for them."""

    rng: np.random.Generator
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    inputs: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)

    def activation(self, name: str, shape: tuple[int, ...], scale: float = 3e-4) -> str:
        """Declare an int16 tensor."""
        self.tensors[name] = Tensor(name, shape, DType.INT16, symmetric(scale))
        return name

    def given(self, name: str, shape: tuple[int, ...], scale: float = 3e-4) -> str:
        """An int16 input of the graph: any values, the extremes among them."""
        values = self.rng.integers(-_LIMIT, _LIMIT, shape)
        values.flat[:2] = [-_LIMIT, _LIMIT - 1]
        self.inputs[name] = values.astype(np.int16)
        return self.activation(name, shape, scale)

    def scale(self, name: str) -> float:
        """A declared tensor's scale."""
        quantization = self.tensors[name].quantization
        assert quantization is not None
        return quantization.scale

    def narrow(self, name: str, shape: tuple[int, ...], scale: float, zero: int) -> str:
        """Declare an int8 tensor."""
        quantization = Quantization(np.array([scale], np.float32), np.array([zero], np.int32))
        self.tensors[name] = Tensor(name, shape, DType.INT8, quantization)
        return name

    def layer(
        self,
        source: str,
        target: str,
        kind: OpKind,
        *,
        kernel: tuple[int, int] = (1, 1),
        channels: int = 8,
        strides: tuple[int, int] = (1, 1),
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilations: tuple[int, int] = (1, 1),
        activation: Activation = Activation.NONE,
        groups: int = 1,
        multiplier: int = 1,
        per_channel: bool = True,
        bias: bool = True,
        largest: int = 127,
        spread: float = 1.5,
        loud: float = 6000.0,
        narrow: bool = False,
    ) -> str:
        """Add a layer whose results are about `loud` steps from zero, mostly; with `narrow`, an int8 one."""
        x = self.tensors[source]
        depth = x.shape[-1]
        depthwise, dense = kind is OpKind.DEPTHWISE_CONV_2D, kind is OpKind.FULLY_CONNECTED
        channels = depth * multiplier if depthwise else channels
        shape: tuple[int, ...] = (channels, depth) if dense else (channels, *kernel, depth // groups)
        shape = (1, *kernel, channels) if depthwise else shape
        taps = int(np.prod(shape)) // channels
        assert x.quantization is not None
        count = channels if per_channel else 1
        scales = (0.02 * 2.0 ** -self.rng.uniform(0, spread, count)).astype(np.float32)
        weights = self.rng.integers(-largest, largest + 1, shape)
        axis = (3 if depthwise else 0) if per_channel else None
        zeros = np.zeros(count, np.int32)
        self.tensors[f"{target}.w"] = Tensor(
            f"{target}.w", shape, DType.INT8, Quantization(scales, zeros, axis), weights.astype(np.int8)
        )
        names: list[str | None] = [source, f"{target}.w", None]
        # Uniformly distributed inputs and weights.
        noise = (128 if x.dtype is DType.INT8 else _LIMIT) / 3**0.5 * largest / 3**0.5 * taps**0.5
        if bias:
            own = Quantization(np.float32(x.quantization.scale) * scales, zeros, 0 if per_channel else None)
            data = self.rng.integers(-int(noise), int(noise), channels).astype(np.int32)
            self.tensors[f"{target}.b"] = Tensor(f"{target}.b", (channels,), DType.INT32, own, data)
            names[2] = f"{target}.b"
        if dense:
            out = (*x.shape[:-1], channels)
        else:
            top, left, bottom, right = pads
            out_size = [
                (size + more - (k - 1) * d - 1) // s + 1
                for size, more, k, d, s in zip(
                    x.shape[1:3], (top + bottom, left + right), kernel, dilations, strides, strict=True
                )
            ]
            out = (x.shape[0], *out_size, channels)
        scale = noise * x.quantization.scale * float(scales.mean()) / loud
        if narrow:
            self.narrow(target, out, scale, 5)
        else:
            self.activation(target, out, scale)
        attributes: dict[str, object] = {"activation": activation}
        if dense:
            attributes["keep_num_dims"] = False
        else:
            attributes |= {"strides": strides, "pads": pads, "dilations": dilations}
        if depthwise:
            attributes["depth_multiplier"] = multiplier
        self.ops.append(Op(kind, tuple(names), (target,), attributes, f"node {target}"))
        return target

    def op(self, kind: OpKind, sources: tuple[str, ...], target: str, **attributes: object) -> str:
        """Add an operator whose output is declared."""
        self.ops.append(Op(kind, sources, (target,), attributes, f"node {target}"))
        return target

    def graph(self) -> Graph:
        """The graph; what nobody reads is an output."""
        read = {name for op in self.ops for name in op.inputs}
        outputs = tuple(name for op in self.ops for name in op.outputs if name not in read)
        return Graph(self.tensors, tuple(self.ops), tuple(self.inputs), outputs)

    def expected(self) -> list[npt.NDArray[np.generic]]:
        """What TFLite Micro's reference kernels make of the graph."""
        interpreter = runtime.Interpreter.from_bytes(write_tflite(self.graph()), arena_size=1 << 20)
        for index, values in enumerate(self.inputs.values()):
            interpreter.set_input(values, index)
        interpreter.invoke()
        return [interpreter.get_output(index) for index in range(len(self.graph().outputs))]
