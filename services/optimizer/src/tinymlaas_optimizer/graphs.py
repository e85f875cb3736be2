"""Walks over ONNX graphs that several steps share."""

from __future__ import annotations

from onnx import GraphProto, ModelProto, NodeProto


def readers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """The nodes that read each tensor."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def ordered(graph: GraphProto) -> list[NodeProto]:
    """The nodes that the outputs depend on, each right after those that it reads from.

    Depth first from the outputs along the inputs in their order (iterative), so the result depends on the graph alone
    and not on the order of the file. The graph must have no cycle.
    """
    writer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    order: list[NodeProto] = []
    done: set[int] = set()
    stack = [(writer[value.name], False) for value in reversed(graph.output) if value.name in writer]
    while stack:
        index, visited = stack.pop()
        if index in done:
            continue
        if visited:
            done.add(index)
            order.append(graph.node[index])
            continue
        stack.append((index, True))
        stack.extend((writer[name], False) for name in reversed(graph.node[index].input) if name in writer)
    return order


def drop_unused(model: ModelProto) -> None:
    """Remove nodes and constants that no output depends on, and constants from the inputs.

    The nodes end up `ordered`.
    """
    graph = model.graph
    kept = []
    for node in ordered(graph):
        copy = NodeProto()
        copy.CopyFrom(node)
        kept.append(copy)
    needed = {value.name for value in graph.output}.union(*(node.input for node in kept))
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    every = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in every]
    for field, values in (("node", kept), ("initializer", constants), ("input", inputs)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)
