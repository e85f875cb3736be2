"""Graph to graph: tidying that changes no value."""

from __future__ import annotations

import dataclasses

import numpy as np

from tinymlaas_modelkit.graph import Graph, Op, OpKind, Tensor


def tidy(graph: Graph) -> Graph:
    """The same function with moves in a row merged, flattening folded into weights, and what is unused removed."""
    return _without_unused(_fold_flatten(_without_unused(_merge_moves(graph))))


def _merge_moves(graph: Graph) -> Graph:
    """Merge RESHAPE after RESHAPE and TRANSPOSE after TRANSPOSE; drop those that do nothing."""
    tensors = dict(graph.tensors)
    alias: dict[str, str] = {}
    makers: dict[str, Op] = {}
    ops: list[Op] = []
    for original in graph.ops:
        op = dataclasses.replace(
            original, inputs=tuple(None if i is None else alias.get(i, i) for i in original.inputs)
        )
        op = _merged(op, makers)
        if _does_nothing(op, tensors) and op.outputs[0] not in graph.outputs:
            source = op.inputs[0]
            assert source is not None
            alias[op.outputs[0]] = source
            continue
        ops.append(op)
        makers.update(dict.fromkeys(op.outputs, op))
    return Graph(tensors, tuple(ops), graph.inputs, graph.outputs)


def _merged(op: Op, makers: dict[str, Op]) -> Op:
    if op.kind not in (OpKind.RESHAPE, OpKind.TRANSPOSE) or op.inputs[0] is None:
        return op
    before = makers.get(op.inputs[0])
    if before is None or before.kind is not op.kind:
        return op
    if op.kind is OpKind.RESHAPE:
        return dataclasses.replace(op, inputs=(before.inputs[0],))
    inner, outer = _permutation(before), _permutation(op)
    return dataclasses.replace(
        op, inputs=(before.inputs[0],), attributes={"permutation": tuple(inner[o] for o in outer)}
    )


def _permutation(op: Op) -> tuple[int, ...]:
    permutation = op.attributes["permutation"]
    assert isinstance(permutation, tuple)
    return permutation


def _does_nothing(op: Op, tensors: dict[str, Tensor]) -> bool:
    if op.kind is OpKind.RESHAPE and op.inputs[0] is not None:
        return tensors[op.inputs[0]].shape == tensors[op.outputs[0]].shape
    if op.kind is OpKind.TRANSPOSE:
        permutation = _permutation(op)
        return permutation == tuple(range(len(permutation)))
    return False


def _fold_flatten(graph: Graph) -> Graph:
    """Drop a TRANSPOSE that only prepares a flattening before FULLY_CONNECTED: the weights take its order instead."""
    makers = {o: op for op in graph.ops for o in op.outputs}
    readers: dict[str, int] = {}
    for op in graph.ops:
        for name in op.inputs:
            if name is not None:
                readers[name] = readers.get(name, 0) + 1
    tensors, replaced = dict(graph.tensors), {}
    for op in graph.ops:
        reshape = makers.get(op.inputs[0] or "") if op.kind is OpKind.FULLY_CONNECTED else None
        transpose = (
            makers.get(reshape.inputs[0] or "") if reshape is not None and reshape.kind is OpKind.RESHAPE else None
        )
        if reshape is None or transpose is None or transpose.kind is not OpKind.TRANSPOSE:
            continue
        source, weights_name = transpose.inputs[0], op.inputs[1]
        assert source is not None
        assert weights_name is not None
        permutation, weights = _permutation(transpose), graph.tensors[weights_name]
        moved = tensors[transpose.outputs[0]].shape
        flat = tensors[reshape.outputs[0]].shape
        alone = readers[transpose.outputs[0]] == readers[reshape.outputs[0]] == 1
        if not alone or permutation[0] != 0 or flat != (moved[0], weights.shape[1]) or weights.data is None:
            continue
        inverse = [0] + [permutation.index(axis) for axis in range(1, len(permutation))]
        columns = np.asarray(weights.data).reshape(weights.shape[0], *moved[1:]).transpose(inverse)
        name = f"{weights.name}/flattened"
        tensors[name] = dataclasses.replace(
            weights, name=name, data=np.ascontiguousarray(columns).reshape(weights.shape)
        )
        replaced[reshape.outputs[0]] = dataclasses.replace(reshape, inputs=(source,))
        replaced[op.outputs[0]] = dataclasses.replace(op, inputs=(op.inputs[0], name, *op.inputs[2:]))
    ops = tuple(replaced.get(op.outputs[0], op) for op in graph.ops)
    return Graph(tensors, ops, graph.inputs, graph.outputs)


def _without_unused(graph: Graph) -> Graph:
    needed = set(graph.outputs)
    kept: list[Op] = []
    for op in reversed(graph.ops):
        if needed.intersection(op.outputs):
            kept.append(op)
            needed.update(i for i in op.inputs if i is not None)
    used = needed | set(graph.inputs) | {o for op in kept for o in op.outputs}
    tensors = {name: t for name, t in graph.tensors.items() if name in used}
    return Graph(tensors, tuple(reversed(kept)), graph.inputs, graph.outputs)
