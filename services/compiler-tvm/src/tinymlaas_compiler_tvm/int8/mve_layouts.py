"""Layouts for cores with MVE: channels last, except for what only the 3 by 3 depthwise kernel reads."""

from __future__ import annotations

from typing import cast

from tinymlaas_compiler_tvm.int8.mve_depthwise_asm import Plane
from tinymlaas_modelkit.graph import DType, Graph, Op, OpKind


def plane_of(graph: Graph, op: Op, planar_output: bool) -> Plane | None:
    """The geometry of a depthwise convolution that the 3 by 3 kernel takes, None for any other."""
    read, written, weights = (graph.tensor(str(name)).shape for name in (op.inputs[0], op.outputs[0], op.inputs[1]))
    strides = cast("tuple[int, int]", tuple(op.attributes["strides"]))  # type: ignore[arg-type]
    dilations = cast("tuple[int, int]", tuple(op.attributes.get("dilations", (1, 1))))  # type: ignore[arg-type]
    top, left, _, _ = cast("tuple[int, int, int, int]", tuple(op.attributes["pads"]))  # type: ignore[arg-type]
    form = (weights[1:3], dilations, strides) in (((3, 3), (1, 1), (1, 1)), ((3, 3), (1, 1), (2, 2)))
    if not form or len(read) != 4 or read[0] != 1 or read[3] != written[3]:
        return None
    pixel, channel = (1, written[1] * written[2]) if planar_output else (written[3], 1)
    plane = Plane(read[1], read[2], written[1], written[2], strides[0], top, left, pixel, channel)
    return plane if plane.usable else None


def planar_tensors(graph: Graph) -> set[str]:
    """Names of the tensors that lie plane by plane: written by a kernel that scatters, read by 3 by 3 depthwise ones only."""
    scattering = (OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D)
    written = {name for op in graph.ops if op.kind in scattering for name in op.outputs} - set(graph.outputs)
    planar = {n for n in written if len(graph.tensor(n).shape) == 4 and graph.tensor(n).dtype is DType.INT8}
    for op in graph.ops:
        if op.kind is not OpKind.DEPTHWISE_CONV_2D or plane_of(graph, op, False) is None:
            planar -= {name for name in op.inputs if name is not None}
    return planar & {str(op.inputs[0]) for op in graph.ops if op.kind is OpKind.DEPTHWISE_CONV_2D}
