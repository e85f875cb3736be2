"""Islands of reals in an integer graph: groups of operators that go through TVM, merged into the integer program.

An operator belongs to an island if it reads or writes anything but quantized integers, or has no integer kernel. Each island is
written as an ONNX model of its own, whose boundary tensors keep their element types, so that conversions to and from int8 are
fused in it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from tinymlaas_compiler_tvm.errors import OpUnsupported
from tinymlaas_compiler_tvm.int8.lowering import Lowering, Place, row_major_name
from tinymlaas_compiler_tvm.native.program import Access, Buffer, BufferKind, Program, Step
from tinymlaas_modelkit.errors import UnsupportedOperator
from tinymlaas_modelkit.graph import DType, Graph, Op, OpKind, Tensor

_NAME = re.compile(r"\b(?:B(\d+)|W\((\d+)\)|tim_tir_(\d+))")


def on_reals(graph: Graph, op: Op) -> bool:
    """Whether an operator can't be an integer kernel: FOREIGN, or one that touches values that are no quantized integers."""
    names = [name for name in (op.inputs[0] if op.inputs else None, *op.inputs[1:], *op.outputs) if name is not None]
    return op.kind is OpKind.FOREIGN or any(
        graph.tensor(name).dtype is not DType.INT8 and not is_wide(graph.tensor(name))
        for name in names
        if not graph.tensor(name).is_constant
    )


def is_wide(tensor: Tensor) -> bool:
    """Whether a tensor holds int16 activations; plain int16 numbers have no scale."""
    return tensor.dtype is DType.INT16 and tensor.quantization is not None and not tensor.is_constant


def in_runs(graph: Graph) -> Graph:
    """The same graph with its operators in an order that keeps those on reals together as far as possible."""
    ready = {name for name, tensor in graph.tensors.items() if tensor.is_constant} | set(graph.inputs)
    waiting, ordered, kind = list(graph.ops), [], False
    while waiting:
        able = [op for op in waiting if all(name is None or name in ready for name in op.inputs)]
        same = [op for op in able if on_reals(graph, op) is kind]
        if not same:
            kind = not kind
            continue
        for op in same:
            ready.update(op.outputs)
        ordered += same
        taken = {id(op) for op in same}
        waiting = [op for op in waiting if id(op) not in taken]
    return dataclasses.replace(graph, ops=tuple(ordered))


def subgraph(graph: Graph, ops: Sequence[Op]) -> Graph:
    """A graph of these operators: what they read from outside is its input, what is read outside its output."""
    made = {name for op in ops for name in op.outputs}
    chosen = {id(op) for op in ops}
    read = [name for op in ops for name in op.inputs if name is not None]
    inputs = [n for n in dict.fromkeys(read) if n not in made and not graph.tensor(n).is_constant]
    wanted = set(graph.outputs) | {n for op in graph.ops if id(op) not in chosen for n in op.inputs if n is not None}
    outputs = [name for op in ops for name in op.outputs if name in wanted]
    tensors = {name: graph.tensor(name) for name in (*read, *made)}
    return Graph(tensors, tuple(ops), tuple(inputs), tuple(outputs))


def lower_island(state: Lowering, ops: Sequence[Op]) -> None:
    """Steps for operators on reals; OpUnsupported for what TVM's path does not take either."""
    from tinymlaas_compiler_tvm.relax.lowering import lower_model
    from tinymlaas_modelkit.onnx_writer import write_onnx

    part = subgraph(state.graph, ops)
    if not part.outputs:
        return
    inputs = [row_major_name(state, ops[0], name) for name in part.inputs]
    try:
        program, _, _ = lower_model(write_onnx(part))
    except OpUnsupported as error:
        raise _named(error, ops) from error
    except UnsupportedOperator as error:
        raise _named(OpUnsupported(error.message, **error.metadata), ops) from error
    origins = tuple(dict.fromkeys(op.origin for op in ops if op.origin))
    _merge(state, program, inputs, part, origins)


def _named(error: OpUnsupported, ops: Sequence[Op]) -> OpUnsupported:
    """The refusal with a node of the model in place of one of the island's file."""
    found = error.metadata.get("op", "")
    culprit = next((op for op in ops if operator_name(op) == found or str(op.kind) == found), ops[0])
    return OpUnsupported(
        str(error),
        op=operator_name(culprit),
        node=culprit.origin,
        dtype="float32",
        count=1,
        detail=error.metadata.get("detail", ""),
    )


def operator_name(op: Op) -> str:
    """What people call an operator: ONNX's name of a node that the graph keeps as it is, else TFLite's."""
    import onnx

    node = op.attributes.get("node")
    return onnx.NodeProto.FromString(node).op_type if isinstance(node, bytes) else str(op.kind)


def _merge(state: Lowering, island: Program, inputs: list[str], part: Graph, origins: tuple[str, ...]) -> None:
    program = state.program
    program.uses_float = True
    buffers: dict[int, Buffer] = {}
    for inner, name in zip(island.inputs, inputs, strict=True):
        # The island takes its inputs as its own: one that lives on is copied before.
        mine = state.place(name).buffer
        if not state.can_overwrite(name, 0):
            mine = program.buffer(inner.size, BufferKind.TENSOR, f"{name}#copy")
            body = f"memcpy((void *){mine.macro}, (const void *){state.place(name).buffer.macro}, {inner.size});"
            reads = [Access(state.place(name).buffer, 0, inner.size)]
            program.steps.append(
                Step(len(program.steps), "copy", origins[:1], body, reads, [Access(mine, 0, inner.size)])
            )
        buffers[inner.index] = mine
    for inner in island.buffers:
        if inner.index not in buffers:
            buffers[inner.index] = program.buffer(inner.size, inner.kind, *inner.tensors)
    base = program.constants.add(island.constants.data, 16) if island.constants.data else 0
    first = sum(name.startswith("tim_tir_") for name in program.c_kernels)

    def renamed(match: re.Match[str]) -> str:
        buffer, constant, kernel = match.groups()
        if buffer is not None:
            return buffers[int(buffer)].macro
        return f"W({int(constant) + base})" if constant is not None else f"tim_tir_{int(kernel) + first}"

    for kernel in island.c_kernels.values():
        name = _NAME.sub(renamed, kernel.name) if kernel.name.startswith("tim_tir_") else kernel.name
        if name not in program.c_kernels:
            text = _NAME.sub(renamed, kernel.text) if kernel.name.startswith("tim_tir_") else kernel.text
            program.c_kernels[name] = dataclasses.replace(kernel, name=name, text=text)
    for step in island.steps:
        program.steps.append(
            dataclasses.replace(
                step,
                index=len(program.steps),
                origins=origins,
                body=_NAME.sub(renamed, step.body),
                reads=[Access(buffers[a.buffer.index], a.offset, a.size) for a in step.reads],
                writes=[Access(buffers[a.buffer.index], a.offset, a.size) for a in step.writes],
            )
        )
    for inner, name in zip(island.outputs, part.outputs, strict=True):
        buffer = buffers[inner.index]
        buffer.tensors.append(name)
        state.places[name] = Place(buffer, planar=False)
