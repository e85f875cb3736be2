"""What translating ONNX nodes shares: values with lazy layout, integer or float emission, fused activations.

An ONNX value is tracked as a tensor of the graph and the permutation that leads from it to the ONNX layout, so a
Transpose
costs nothing until something needs the other layout: networks in NCHW come out in NHWC with no transposes inside. In
the same
way the float output of DequantizeLinear is only a *view* of its integer tensor; the integer operator appears where
views go
in and QuantizeLinear takes the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tinymlaas_modelkit.errors import MalformedModel, OffendingOperator
from tinymlaas_modelkit.graph import Activation, DType, Op, OpKind, Quantization, Tensor
from tinymlaas_modelkit.onnx_reader._source import Node, Source, int_tuple
from tinymlaas_modelkit.quantization import dequantize, same_quantization

Array = npt.NDArray[Any]
Perm = tuple[int, ...]

NARROW = frozenset({"int8", "uint8"})
"""Element types in the file whose quantized activations are int8 in the graph."""

NCHW: Perm = (0, 3, 1, 2)
"""Permutation from a stored NHWC tensor to the ONNX value."""


class NotExpressible(Exception):
    """The node at hand cannot be expressed; the text says why. Caught per node, so that all of them are reported."""


@dataclass(frozen=True)
class Const:
    """A constant; with `quantization` the array holds the integers of a value that ONNX sees as real."""

    name: str
    array: Array
    quantization: Quantization | None = None

    @property
    def real(self) -> Array:
        """The constant as ONNX sees it."""
        return self.array if self.quantization is None else dequantize(self.array, self.quantization)


@dataclass(frozen=True)
class Act:
    """A value computed at run time: `tensor` transposed by `perm`; a `view` is read as real though stored as
    integers."""

    tensor: str
    perm: Perm
    view: bool = False


Value = Const | Act


@dataclass(frozen=True)
class Target:
    """Where an operator's result goes: tensor name, quantization (None: float), fused activation, ONNX values it
    makes, element type."""

    name: str
    quantization: Quantization | None
    activation: Activation
    values: tuple[str, ...]
    absorbed: tuple[int, ...]
    dtype: DType = DType.FLOAT32

    @property
    def integer(self) -> bool:
        """Whether the operator is to compute on integers."""
        return self.quantization is not None


@dataclass
class Context:
    """The graph under construction."""

    source: Source
    quantizations: dict[str, Quantization]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    offending: list[OffendingOperator] = field(default_factory=list)
    cache: dict[tuple[str, object], str] = field(default_factory=dict)
    takes_foreign: bool = False
    integers: frozenset[str] = NARROW

    # Names and tensors

    def unique(self, name: str) -> str:
        """A tensor name not yet used and not reserved for an input or output of the model."""
        reserved = (*self.source.inputs, *self.source.outputs)
        candidate, number = name, 0
        while candidate in self.tensors or candidate in reserved:
            number += 1
            candidate = f"{name}_{number}"
        return candidate

    def constant(self, name: str, array: Array, quantization: Quantization | None = None) -> str:
        """Add a constant tensor and return its name; the same constant is added once."""
        # ascontiguousarray makes a scalar a vector of one.
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        dtype = DType(array.dtype.name)
        key = (name, (array.shape, array.dtype.str, array.tobytes(), _quantization_key(quantization)))
        if key not in self.cache:
            unique = self.unique(name)
            self.tensors[unique] = Tensor(unique, tuple(array.shape), dtype, quantization, array)
            self.cache[key] = unique
        return self.cache[key]

    def emit(
        self,
        kind: OpKind,
        inputs: tuple[str | None, ...],
        name: str,
        shape: tuple[int, ...],
        quantization: Quantization | None,
        attributes: dict[str, object],
        origin: str,
        dtype: DType | None = None,
    ) -> str:
        """Add an operator with one output and return the output's name (dtype int8 when quantized unless given)."""
        unique = self.unique(name)
        if dtype is None:
            dtype = DType.FLOAT32 if quantization is None else DType.INT8
        self.tensors[unique] = Tensor(unique, tuple(shape), dtype, quantization)
        self.ops.append(Op(kind, inputs, (unique,), attributes, origin))
        return unique

    def append(
        self,
        kind: OpKind,
        inputs: tuple[str | None, ...],
        outputs: tuple[str, ...],
        attributes: dict[str, object],
        origin: str,
    ) -> None:
        """Add an operator whose output tensors are there already."""
        self.ops.append(Op(kind, inputs, outputs, attributes, origin))

    # Values

    def value(self, node: Node, position: int) -> Value:
        """The value at an input of a node."""
        return self.values[node.inputs[position]]

    def act(self, node: Node, position: int = 0) -> Act:
        """The value at an input of a node; NotExpressible when it is constant."""
        value = self.value(node, position)
        if isinstance(value, Const):
            raise NotExpressible(f"input {position} is a constant where a computed tensor is expected")
        return value

    def const(self, node: Node, position: int) -> Const:
        """The constant at an input of a node; NotExpressible when it is computed."""
        value = self.value(node, position)
        if isinstance(value, Act):
            raise NotExpressible(f"input {position} is computed where a constant is needed")
        return value

    def parameter(self, node: Node, name: str, position: int) -> tuple[int, ...] | None:
        """Integers that are an attribute in old opsets and a constant input in new ones; None when absent."""
        if node.has_input(position):
            return int_tuple(self.const(node, position).real)
        return int_tuple(node.attributes[name]) if name in node.attributes else None

    def shape_of(self, act: Act) -> tuple[int, ...]:
        """The shape of a value as ONNX sees it."""
        stored = self.tensors[act.tensor].shape
        return tuple(stored[p] for p in act.perm)

    def quantization_of(self, act: Act) -> Quantization | None:
        """The quantization of the tensor behind a value."""
        return self.tensors[act.tensor].quantization

    def dtype_of(self, value: Value) -> DType:
        """The element type of the tensor behind a value."""
        return DType(value.array.dtype.name) if isinstance(value, Const) else self.tensors[value.tensor].dtype

    def layout(self, act: Act, perm: Perm) -> Act:
        """The same value stored so that `perm` leads to the ONNX layout; emits TRANSPOSE, or RESHAPE where no element
        moves."""
        if act.perm == perm:
            return act
        inverse = np.argsort(perm)
        move = tuple(act.perm[i] for i in inverse)
        stored = self.tensors[act.tensor]
        key = (act.tensor, ("layout", move))
        if key not in self.cache:
            shape = tuple(stored.shape[m] for m in move)
            # Elements keep their order when the axes longer than one keep theirs.
            long_axes = [m for m in move if stored.shape[m] != 1]
            if long_axes == sorted(long_axes):
                kind, attributes = OpKind.RESHAPE, {"shape": shape}
            else:
                kind, attributes = OpKind.TRANSPOSE, {"permutation": move}
            self.cache[key] = self.emit(
                kind,
                (act.tensor,),
                f"{act.tensor}_layout",
                shape,
                stored.quantization,
                dict(attributes),
                "layout",
                stored.dtype,
            )
        return Act(self.cache[key], perm, act.view)

    def plain(self, act: Act) -> Act:
        """The same value stored in the ONNX layout."""
        return self.layout(act, tuple(range(len(act.perm))))

    def real(self, act: Act) -> Act:
        """The same value as float32; emits DEQUANTIZE for a view."""
        if not act.view:
            return act
        stored = self.tensors[act.tensor]
        key = (act.tensor, "real")
        if key not in self.cache:
            self.cache[key] = self.emit(
                OpKind.DEQUANTIZE, (act.tensor,), f"{act.tensor}_real", stored.shape, None, {}, "dequantize"
            )
        return Act(self.cache[key], act.perm)

    # Results

    def target(self, node: Node, integer: bool, fuse: bool = True) -> Target:
        """Where the node's only output goes: absorbs a Relu or Clip that follows and, if `integer`, the
        QuantizeLinear after it.

        Without a QuantizeLinear the target is float, also when `integer` was asked for: the caller looks at
        `Target.integer`.
        """
        name = node.outputs[0]
        quantized = self._quantized(node, name) if integer else None
        if quantized is not None:
            return quantized
        follower = self.source.sole_consumer(name) if fuse else None
        if follower is not None and follower.op in ("Relu", "Clip"):
            after = follower.outputs[0]
            quantized = self._quantized(node, after, follower) if integer else None
            if quantized is not None:
                return quantized
            activation = activation_of(self, follower, None)
            if activation is not None:
                return Target(after, None, activation, (after,), (follower.index,))
        return Target(name, None, Activation.NONE, (name,), ())

    def _quantized(self, node: Node, name: str, follower: Node | None = None) -> Target | None:
        readers = self.source.consumers.get(name, [])
        if (
            not readers
            or name in self.source.outputs
            or any(r.op != "QuantizeLinear" or r.inputs[0] != name for r in readers)
        ):
            return None
        quantizations = [self.quantizations.get(r.outputs[0]) for r in readers]
        first = quantizations[0]
        if first is None or first.scales.size != 1 or any(not same_quantization(first, q) for q in quantizations[1:]):
            return None
        # QuantizeLinear to other types, or to 8 and to 16 bits, is left to stand as a QUANTIZE operator of its own.
        dtypes = {self.source.dtypes.get(r.outputs[0], "") for r in readers}
        if not (dtypes <= NARROW or (len(dtypes) == 1 and dtypes <= self.integers)):
            return None
        dtype = DType.INT8 if dtypes <= NARROW else DType(dtypes.pop())
        activation: Activation | None = Activation.NONE
        absorbed = [r.index for r in readers]
        if follower is not None:
            activation = activation_of(self, follower, first, dtype)
            absorbed.insert(0, follower.index)
        if activation is None:
            return None
        values = tuple(r.outputs[0] for r in readers)
        return Target(values[0], first, activation, values, tuple(absorbed), dtype)

    def finish(self, target: Target, tensor: str, perm: Perm) -> None:
        """Bind the ONNX values of a target to the tensor that was emitted for it."""
        for name in target.values:
            self.values[name] = Act(tensor, perm)
        self.done.update(target.absorbed)

    def report(self, node: Node, detail: str) -> None:
        """Note that a node cannot be expressed; translation goes on, so that all such nodes are found."""
        dtype = next((self.source.dtypes[n] for n in node.inputs if n in self.source.dtypes), "unknown")
        self.offending.append(OffendingOperator(node.op, node.name, dtype, detail))


def _quantization_key(q: Quantization | None) -> object:
    return None if q is None else (q.scales.tobytes(), q.zero_points.tobytes(), q.axis)


def clip_bounds(context: Context, node: Node) -> tuple[float, float]:
    """The bounds of a Relu or Clip node as real numbers."""
    if node.op == "Relu":
        return 0.0, float("inf")
    low, high = float("-inf"), float("inf")
    if "min" in node.attributes:
        low = float(node.attributes["min"])
    if "max" in node.attributes:
        high = float(node.attributes["max"])
    if node.has_input(1):
        low = float(context.const(node, 1).real)
    if node.has_input(2):
        high = float(context.const(node, 2).real)
    return low, high


def activation_of(
    context: Context, node: Node, quantization: Quantization | None, dtype: DType = DType.INT8
) -> Activation | None:
    """The fused activation that equals a Relu or Clip before quantizing to `dtype` with `quantization`; None if there is
    none."""
    try:
        low, high = clip_bounds(context, node)
    except (NotExpressible, KeyError):
        return None
    if quantization is not None:
        # A bound outside what the integers can express does nothing.
        limits = np.iinfo(dtype.value)
        smallest = quantization.scale * (int(limits.min) - quantization.zero_point)
        largest = quantization.scale * (int(limits.max) - quantization.zero_point)
        if high >= largest and high != 6.0:
            high = float("inf")
        if low <= smallest and low != 0.0:
            low = float("-inf")
    table = {
        (float("-inf"), float("inf")): Activation.NONE,
        (0.0, float("inf")): Activation.RELU,
        (0.0, 6.0): Activation.RELU6,
        (-1.0, 1.0): Activation.RELU_N1_TO_1,
    }
    return table.get((low, high))


def bind_unknown(context: Context, node: Node) -> None:
    """Stand-ins for the outputs of a node that cannot be expressed, so that what follows can still be looked at."""
    for name in node.outputs:
        if not name or name in context.values:
            continue
        shape = context.source.shapes.get(name)
        if shape is None:
            raise MalformedModel("SHAPE_NOT_STATIC", f"no static shape is known after {node.op}", name)
        tensor = context.unique(name)
        quantization = context.quantizations.get(name)
        dtype = context.source.dtypes.get(name, "float32")
        known = DType(dtype) if dtype in [d.value for d in DType] else DType.FLOAT32
        context.tensors[tensor] = Tensor(tensor, shape, known, quantization)
        context.values[name] = Act(tensor, tuple(range(len(shape))))
