"""Layouts for cores with MVE: channels last, except for what only depthwise kernels read."""

from __future__ import annotations

from tinymlaas_modelkit.graph import Graph, OpKind


def planar_tensors(graph: Graph) -> set[str]:
    """Names of the tensors that lie plane by plane: read by depthwise convolutions only, written by a kernel that scatters."""
    read_by: dict[str, set[OpKind]] = {}
    for op in graph.ops:
        for name in op.inputs:
            if name is not None:
                read_by.setdefault(name, set()).add(op.kind)
    scattering = (OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D)
    written = {name for op in graph.ops if op.kind in scattering for name in op.outputs}
    return {
        name
        for name in written - set(graph.outputs)
        if read_by.get(name) == {OpKind.DEPTHWISE_CONV_2D} and len(graph.tensor(name).shape) == 4
    }
