"""What translating TFLite operators shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinymlaas_modelkit.graph import Activation, DType, Op, OpKind, Tensor
from tinymlaas_modelkit.tflite_reader._file import RawModel, RawOp
from tinymlaas_modelkit.tflite_schema import ACTIVATIONS, schema


class NotExpressible(Exception):
    """The operator at hand cannot be expressed; the text says why."""


@dataclass
class Context:
    """The graph under construction; tensors keep the names of the file."""

    raw: RawModel
    tensors: dict[str, Tensor]
    ops: list[Op] = field(default_factory=list)

    def name(self, index: int) -> str | None:
        """The name of a tensor; None for an absent optional one."""
        return None if index < 0 else self.raw.tensors[index].name

    def input(self, op: RawOp, position: int = 0) -> Tensor:
        """An input that must be there."""
        if position >= len(op.inputs) or op.inputs[position] < 0:
            raise NotExpressible(f"input {position} is missing")
        return self.raw.tensors[op.inputs[position]]

    def output(self, op: RawOp, position: int = 0) -> Tensor:
        """An output that must be there."""
        if position >= len(op.outputs):
            raise NotExpressible(f"output {position} is missing")
        return self.raw.tensors[op.outputs[position]]

    def integers(self, op: RawOp, position: int) -> tuple[int, ...]:
        """A constant integer input (shape, axes, paddings, …), flat."""
        tensor = self.input(op, position)
        if tensor.data is None:
            raise NotExpressible(f"input {position} is computed where a constant is needed")
        return tuple(int(v) for v in np.asarray(tensor.data).reshape(-1))

    def add(self, kind: OpKind, op: RawOp, inputs: tuple[str | None, ...], attributes: dict[str, object]) -> None:
        """Add an operator that makes the outputs of `op`."""
        outputs = tuple(self.raw.tensors[o].name for o in op.outputs)
        self.ops.append(Op(kind, inputs, outputs, attributes, f"{op.name}_{op.index}"))

    def reshaped(self, tensor: Tensor, shape: tuple[int, ...], op: RawOp) -> str:
        """The name of `tensor` under another shape (adds RESHAPE)."""
        name = f"{tensor.name}/reshaped_{op.index}"
        self.tensors[name] = Tensor(name, shape, tensor.dtype, tensor.quantization)
        self.ops.append(Op(OpKind.RESHAPE, (tensor.name,), (name,), {"shape": shape}, f"{op.name}_{op.index}"))
        return name


def options(op: RawOp, kind: str) -> Any:
    """The option table of an operator as the schema class `kind`, or None when the file leaves it out."""
    if op.options is None:
        return None
    table = getattr(schema, kind)()
    table.Init(op.options.Bytes, op.options.Pos)
    return table


def required(op: RawOp, kind: str) -> Any:
    """The option table of an operator that cannot do without."""
    table = options(op, kind)
    if table is None:
        raise NotExpressible("the option table is missing")
    return table


def activation(code: int) -> Activation:
    """A fused activation by its code."""
    if code not in ACTIVATIONS:
        raise NotExpressible(f"fused activation {code}")
    return ACTIVATIONS[code]


def same_pads(size: tuple[int, int], reach: tuple[int, int], strides: tuple[int, int]) -> tuple[int, int, int, int]:
    """Pads (top, left, bottom, right) that TFLite's SAME stands for; `reach` is the dilated kernel size."""
    before, after = [], []
    for n, k, s in zip(size, reach, strides, strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return before[0], before[1], after[0], after[1]


def require_one_type(context: Context, op: RawOp) -> None:
    """Refuse operators on other types than float32, int8 and int16, and hybrid ones (integer weights, float activations)."""
    data, out = context.input(op), context.output(op)
    for tensor in (data, out):
        if tensor.dtype not in (DType.FLOAT32, DType.INT8, DType.INT16):
            raise NotExpressible(f"element type {tensor.dtype}")
    if data.dtype != out.dtype:
        raise NotExpressible(f"input {data.dtype} and output {out.dtype}")
    if data.dtype is not DType.FLOAT32 and (data.quantization is None or out.quantization is None):
        raise NotExpressible(f"{data.dtype} without scale and zero point")
