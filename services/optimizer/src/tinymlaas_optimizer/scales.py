"""Scale and zero point of each activation, under the constraints of TFLite's integer kernels.

Source: TFLite 8-bit quantization specification, and its 16x8 mode (int16 activations, always symmetric): some operators
fix the quantization of their output, others demand that input and output share one. A model that keeps them runs the
same on every back end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto

from tinymlaas_optimizer.calibrate import Range
from tinymlaas_optimizer.errors import NotQuantizable
from tinymlaas_optimizer.recipe import Activations

# A range smaller than this is taken as this, so that no scale gets denormal (a tensor that is always 0).
_SMALLEST_RANGE: Final = 1e-6
_SHARING: Final = frozenset(
    {
        "AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool", "Reshape", "Transpose", "Flatten", "Squeeze",
        "Unsqueeze", "Identity", "Slice", "Split", "Gather", "Pad", "Resize", "Concat", "DepthToSpace", "Expand",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """Affine quantization of one tensor to int8 or int16: real = scale * (q - zero_point); `scale` is a float32 value."""

    scale: float
    zero_point: int
    dtype: Activations = Activations.INT8


_FIXED: Final[Mapping[Activations, Mapping[str, Scale]]] = {
    Activations.INT8: {
        "Softmax": Scale(1 / 256, -128),
        "Sigmoid": Scale(1 / 256, -128),
        "Tanh": Scale(1 / 128, 0),
    },
    Activations.INT16: {op: Scale(1 / 32768, 0, Activations.INT16) for op in ("Softmax", "Sigmoid", "Tanh")},
}


def scale_of(found: Range, *, symmetric: bool, dtype: Activations = Activations.INT8) -> Scale:
    """The quantization that holds a range: asymmetric over all steps, or symmetric without the lowest, zero point 0.

    int16 is always symmetric.
    """
    lowest, highest = int(np.iinfo(dtype.value).min), int(np.iinfo(dtype.value).max)
    if symmetric or dtype is Activations.INT16:
        most = max(-found.low, found.high, _SMALLEST_RANGE)
        return Scale(float(np.float32(most / highest)), 0, dtype)
    width = max(found.high - found.low, _SMALLEST_RANGE)
    scale = float(np.float32(width / (highest - lowest)))
    zero = round(lowest - found.low / scale)
    return Scale(scale, min(max(zero, lowest), highest), dtype)


def find_scales(
    model: ModelProto, ranges: Mapping[str, Range], *, symmetric: bool, wide: Collection[str] = ()
) -> dict[str, Scale]:
    """The quantization of each tensor in `ranges`, shared and fixed where the kernels demand it; int16 for those in `wide`.

    NotQuantizable if an operator would have to share scales between tensors whose scales are fixed differently.
    """
    groups = _groups(model.graph.node, ranges)
    widened = {groups[name] for name in wide if name in groups}
    dtypes = {root: Activations.INT16 if root in widened else Activations.INT8 for root in groups.values()}
    fixed: dict[str, tuple[Scale, NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type not in _FIXED[Activations.INT8] or node.output[0] not in groups:
            continue
        root = groups[node.output[0]]
        scale = _FIXED[dtypes[root]][node.op_type]
        if root in fixed and fixed[root][0] != scale:
            raise NotQuantizable(
                f"{node.op_type} and {fixed[root][1].op_type} need different scales, and an operator after them needs one",
                op=node.op_type,
                node=node.name,
            )
        fixed[root] = (scale, node)
    shared: dict[str, Range] = {}
    for name, root in groups.items():
        shared[root] = shared[root].union(ranges[name]) if root in shared else ranges[name]
    return {
        name: fixed[root][0] if root in fixed else scale_of(shared[root], symmetric=symmetric, dtype=dtypes[root])
        for name, root in groups.items()
    }


def _groups(nodes: Iterable[NodeProto], names: Mapping[str, Range]) -> dict[str, str]:
    """The representative of each tensor's group; tensors in a group share one quantization (union-find)."""
    parent = {name: name for name in names}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for node in nodes:
        if node.op_type not in _SHARING:
            continue
        given = node.input if node.op_type == "Concat" else node.input[:1]
        members = [name for name in (*given, *node.output) if name in parent]
        for other in members[1:]:
            # The smaller name leads, so that the result does not depend on the order of the nodes.
            first, second = sorted((find(members[0]), find(other)))
            parent[second] = first
    return {name: find(name) for name in parent}
