"""`check_model`: what would compile and what would not, a node at a time, with figures that are labelled as estimates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tinymlaas_compiler_tvm.compile import check_file, check_shapes, graph_for, has_integer_kernels
from tinymlaas_compiler_tvm.errors import OpUnsupported
from tinymlaas_compiler_tvm.int8.dead_channels import thinned
from tinymlaas_compiler_tvm.int8.lowering import try_lower
from tinymlaas_compiler_tvm.int8.operators import INT8_OPERATORS
from tinymlaas_compiler_tvm.islands import is_wide, on_reals, operator_name
from tinymlaas_compiler_tvm.native.planner import ALIGNMENT, Request, plan_arena
from tinymlaas_compiler_tvm.native.program import Program
from tinymlaas_compiler_tvm.options import Options
from tinymlaas_compiler_tvm.parts import Estimates, ModelCheck, NodeCheck
from tinymlaas_compiler_tvm.prepare import prepare
from tinymlaas_compiler_tvm.target import Machine, TargetSpec, machine_for
from tinymlaas_compiler_tvm.way import settings_for
from tinymlaas_modelkit.graph import Graph, Op, OpKind

# Instructions a multiply-accumulate, seen on the zoo's models; rough, and said to be so.
_PER_MAC = {"dsp": 1.0, "long_multiply": 5.0, "small": 11.5}
_PER_MAC_FLOAT = {True: 3.0, False: 120.0}
_CODE_BYTES = {"dsp": 1400, "long_multiply": 500, "small": 500}
_STACK_BYTES = 256


def check_model(onnx_bytes: bytes, target: TargetSpec, options: Mapping[str, object] | None = None) -> ModelCheck:
    """Supported or not for each operator, with estimates of memory and instructions.

    Raises ModelInvalid, TargetUnsupported, OptionUnknown, OptionInvalid; unsupported operators are part of the answer.
    """
    checked = Options.of(options or {})
    machine = machine_for(target)
    graph, _ = graph_for(onnx_bytes, machine, checked)
    if graph is None:
        return _check_float(onnx_bytes, machine, 0)
    if has_integer_kernels(graph):
        return _check_int8(graph, machine, checked)
    return _check_float(onnx_bytes, machine, _macs(graph))


def _macs(graph: Graph) -> int:
    """Multiply-accumulates of the operators with weights: output elements times weights a channel."""
    total = 0
    for op in graph.ops:
        if op.kind in (OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.FULLY_CONNECTED) and op.inputs[1] is not None:
            channels = graph.tensor(op.outputs[0]).shape[-1]
            total += graph.tensor(op.outputs[0]).elements * graph.tensor(op.inputs[1]).elements // channels
    return total


def _check_int8(graph: Graph, machine: Machine, options: Options) -> ModelCheck:
    prepared, rounding = prepare(graph, options.rounding)
    settings = settings_for(dataclasses.replace(options, rounding=rounding), machine)
    program, refusals = try_lower(thinned(prepared, machine, settings), machine, settings, INT8_OPERATORS)
    if refusals and rounding == "tflite":
        return _check_int8(graph, machine, dataclasses.replace(options, rounding="onnx"))
    graph = prepared
    refused = {refusal.op.outputs[0]: refusal.error for refusal in refusals}
    nodes = tuple(
        NodeCheck(
            op.origin,
            operator_name(op),
            _dtype(graph, op),
            op.outputs[0] not in refused,
            refused[op.outputs[0]].reason if op.outputs[0] in refused else "",
            str(refused[op.outputs[0]]) if op.outputs[0] in refused else "",
        )
        for op in graph.ops
    )
    tier = "dsp" if machine.dsp else "long_multiply" if machine.long_multiply else "small"
    return ModelCheck(not refusals, nodes, _estimates(program, _PER_MAC[tier], _CODE_BYTES[tier], _macs(graph)))


def _dtype(graph: Graph, op: Op) -> str:
    """What an operator computes on."""
    if on_reals(graph, op):
        return "float32"
    names = [name for name in (*op.inputs, *op.outputs) if name is not None]
    return "int16" if any(is_wide(graph.tensor(name)) for name in names) else "int8"


def _estimates(program: Program, per_mac: float, code_bytes: int, macs: int) -> Estimates:
    program.lifetimes()
    used = [buffer for buffer in program.buffers if buffer.first >= 0]
    arena = plan_arena([Request(buffer.size, buffer.first, buffer.last) for buffer in used]).size
    touched = sum(access.size for step in program.steps for access in step.writes)
    kinds = len(program.asm_kernels) + len(program.c_kernels) + 1
    flash = len(program.constants.data) + kinds * code_bytes // 2 + 64 * len(program.steps)
    instructions = int(macs * per_mac + 4 * touched)
    return Estimates(flash, -(-arena // ALIGNMENT) * ALIGNMENT, _STACK_BYTES, instructions, macs)


def _check_float(onnx_bytes: bytes, machine: Machine, macs: int) -> ModelCheck:
    import onnx

    from tinymlaas_compiler_tvm.relax.lowering import lower_model

    check_file(onnx_bytes, check_shapes)
    model = onnx.load_from_string(onnx_bytes)
    try:
        program, _, _ = lower_model(onnx_bytes)
    except OpUnsupported as error:
        operator = error.metadata.get("op", "")
        nodes = tuple(
            NodeCheck(
                node.name or (node.output[0] if node.output else ""),
                node.op_type,
                "float32",
                node.op_type != operator and operator != "graph",
                error.reason if node.op_type == operator or operator == "graph" else "",
                str(error) if node.op_type == operator or operator == "graph" else "",
            )
            for node in model.graph.node
        )
        return ModelCheck(False, nodes, None)
    nodes = tuple(
        NodeCheck(node.name or (node.output[0] if node.output else ""), node.op_type, "float32", True)
        for node in model.graph.node
    )
    return ModelCheck(True, nodes, _estimates(program, _PER_MAC_FLOAT[machine.hard_float], 900, macs))
