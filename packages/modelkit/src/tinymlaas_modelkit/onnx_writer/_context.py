"""What writing ONNX nodes shares: names, constants, layouts, QuantizeLinear and DequantizeLinear around each operator.

A tensor of the graph (NHWC) is an ONNX value and the permutation that made it from the tensor, so that the Transposes
that
convolutions need (NCHW) are written once and not between every two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from tinymlaas_modelkit.graph import Activation, DType, Graph, Op, Quantization, Tensor

Array = npt.NDArray[Any]
Perm = tuple[int, ...]
NCHW: Perm = (0, 3, 1, 2)
LONGEST_NAME = 64


@dataclass(frozen=True)
class Value:
    """An ONNX value: the tensor of the graph transposed by `perm`."""

    name: str
    perm: Perm


@dataclass
class Context:
    """The ONNX graph under construction."""

    graph: Graph
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    cache: dict[tuple[str, object], str] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        """A value name that nothing else has; long names (TensorFlow joins those of fused nodes) are cut."""
        candidate, number = name, 0
        if len(name) > LONGEST_NAME:
            candidate = name = f"{name[:LONGEST_NAME]}…"
        while candidate in self.taken:
            number += 1
            candidate = f"{name}_{number}"
        self.taken.add(candidate)
        return candidate

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node with one output."""
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"{op}_{len(self.nodes)}", **attributes))
        return output

    def initializer(self, name: str, array: Array) -> str:
        """Add a constant; the same constant under one name is added once."""
        array = np.asarray(array)
        key = (name, (array.dtype.str, array.shape, array.tobytes()))
        if key not in self.cache:
            unique = self.unique(name)
            self.initializers[unique] = numpy_helper.from_array(
                np.ascontiguousarray(array).reshape(array.shape), unique
            )
            self.cache[key] = unique
        return self.cache[key]

    # Quantization

    def parameters(self, tensor: Tensor, q: Quantization, perm: Perm) -> tuple[list[str], dict[str, int]]:
        """Scale and zero point as constants, and the axis attribute where there are several."""
        dtype = np.dtype(tensor.dtype.value)
        zeros = q.zero_points.astype(dtype)
        if q.scales.size == 1:
            scale = self.initializer(f"{tensor.name}/scale", q.scales.reshape(()))
            return [scale, self.initializer("zero_point", zeros.reshape(()))], {}
        assert q.axis is not None
        names = [
            self.initializer(f"{tensor.name}/scale", q.scales.reshape(-1)),
            self.initializer("zero_point", zeros.reshape(-1)),
        ]
        return names, {"axis": perm.index(q.axis)}

    def dequantized(self, name: str, tensor: Tensor, perm: Perm) -> str:
        """The reals of an integer ONNX value (adds DequantizeLinear once)."""
        key = (name, "dequantized")
        if key not in self.cache:
            assert tensor.quantization is not None
            parameters, axis = self.parameters(tensor, tensor.quantization, perm)
            self.cache[key] = self.node("DequantizeLinear", [name, *parameters], self.unique(f"{name}/real"), **axis)
        return self.cache[key]

    def constant(self, name: str, perm: Perm, shape: tuple[int, ...] | None = None) -> str:
        """A constant of the graph, transposed and reshaped, as reals (adds DequantizeLinear when it is quantized).

        `shape` must keep the channel axis of a per-channel quantization at the place where `perm` puts it.
        """
        tensor = self.graph.tensors[name]
        array = np.asarray(tensor.data).transpose(perm)
        array = array if shape is None else array.reshape(shape)
        raw = self.initializer(name, array)
        return raw if tensor.quantization is None else self.dequantized(raw, tensor, perm)

    # Inputs of operators

    def stored(self, name: str, perm: Perm) -> str:
        """The ONNX value of a tensor in a layout (adds Transpose once), with the element type of the tensor."""
        value = self.values[name]
        if value.perm == perm:
            return value.name
        key = (value.name, ("layout", perm))
        if key not in self.cache:
            move = tuple(value.perm.index(p) for p in perm)
            self.cache[key] = self.node("Transpose", [value.name], self.unique(f"{value.name}/layout"), perm=move)
        return self.cache[key]

    def real(self, name: str, perm: Perm) -> str:
        """The reals of a tensor in a layout, computed or constant."""
        tensor = self.graph.tensors[name]
        if tensor.is_constant:
            return self.constant(name, perm)
        stored = self.stored(name, perm)
        return stored if tensor.quantization is None else self.dequantized(stored, tensor, perm)

    def plain(self, name: str) -> str:
        """A tensor as it stands in the graph: constants and computed values in the graph's layout and element type."""
        tensor = self.graph.tensors[name]
        if tensor.data is not None:
            return self.initializer(name, np.asarray(tensor.data))
        return self.stored(name, self.identity(name))

    def perm(self, name: str) -> Perm:
        """The layout that a tensor has now."""
        return self.values[name].perm

    def identity(self, name: str) -> Perm:
        """The layout of the graph itself."""
        return tuple(range(len(self.graph.tensors[name].shape)))

    # Results

    def result_name(self, name: str, perm: Perm) -> str:
        """The ONNX name for a result: that of the graph's output when nothing stands between, else one of its own."""
        if name in self.graph.outputs and perm == self.identity(name):
            return name
        return self.unique(f"{name}/nchw" if name in self.graph.outputs else name)

    def finish(self, op: Op, real: str, perm: Perm, output: int = 0) -> None:
        """Bind a result: apply the fused activation to the reals, quantize them if the tensor is integer."""
        tensor = self.graph.tensors[op.outputs[output]]
        real = self.activated(real, op.attributes.get("activation", Activation.NONE))
        name = self.result_name(tensor.name, perm)
        if tensor.quantization is None:
            # The node that made the reals gets the tensor's name.
            self._rename(real, name)
        else:
            parameters, axis = self.parameters(tensor, tensor.quantization, perm)
            self.node("QuantizeLinear", [real, *parameters], name, **axis)
        self.values[tensor.name] = Value(name, perm)

    def activated(self, real: str, activation: object) -> str:
        """The reals after a fused activation."""
        bounds = {Activation.RELU6: (0.0, 6.0), Activation.RELU_N1_TO_1: (-1.0, 1.0)}
        if activation == Activation.RELU:
            return self.node("Relu", [real], self.unique(f"{real}/relu"))
        if isinstance(activation, Activation) and activation in bounds:
            low, high = bounds[activation]
            limits = [self.initializer(f"clip/{v}", np.asarray(v, np.float32)) for v in (low, high)]
            return self.node("Clip", [real, *limits], self.unique(f"{real}/clip"))
        return real

    def _rename(self, old: str, new: str) -> None:
        last = self.nodes[-1]
        for position, name in enumerate(last.output):
            if name == old:
                last.output[position] = new
                return
        self.node("Identity", [old], new)


def onnx_type(dtype: DType) -> int:
    """The ONNX element type."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype.value)))
