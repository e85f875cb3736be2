"""Scale and zero point of each activation, under the constraints of TFLite's 8-bit kernels.

Source: TFLite 8-bit quantization specification: some operators fix the quantization of their output, others demand that
input and output share one. A model that keeps them runs the same on every back end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto

from tinymlaas_optimizer.calibrate import Range
from tinymlaas_optimizer.errors import NotQuantizable

_LOWEST, _HIGHEST = -128, 127
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
    """Affine int8 quantization of one tensor: real = scale * (q - zero_point); `scale` is a float32 value."""

    scale: float
    zero_point: int


_FIXED: Final[Mapping[str, Scale]] = {
    "Softmax": Scale(1 / 256, -128),
    "Sigmoid": Scale(1 / 256, -128),
    "Tanh": Scale(1 / 128, 0),
}


def scale_of(found: Range, *, symmetric: bool) -> Scale:
    """The quantization that holds a range: asymmetric over -128..127, or symmetric over -127..127 with zero point 0."""
    if symmetric:
        most = max(-found.low, found.high, _SMALLEST_RANGE)
        return Scale(float(np.float32(most / _HIGHEST)), 0)
    width = max(found.high - found.low, _SMALLEST_RANGE)
    scale = float(np.float32(width / (_HIGHEST - _LOWEST)))
    zero = round(_LOWEST - found.low / scale)
    return Scale(scale, min(max(zero, _LOWEST), _HIGHEST))


def find_scales(model: ModelProto, ranges: Mapping[str, Range], *, symmetric: bool) -> dict[str, Scale]:
    """The quantization of each tensor in `ranges`, shared and fixed where the kernels demand it.

    NotQuantizable if an operator would have to share scales between tensors whose scales are fixed differently.
    """
    groups = _groups(model.graph.node, ranges)
    fixed: dict[str, tuple[Scale, NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type not in _FIXED or node.output[0] not in groups:
            continue
        root = groups[node.output[0]]
        scale = _FIXED[node.op_type]
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
        name: fixed[root][0] if root in fixed else scale_of(shared[root], symmetric=symmetric)
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
