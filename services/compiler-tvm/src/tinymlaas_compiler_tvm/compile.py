"""`compile_model` and `check_model`: the two calls of the compiler role, as functions of values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from tinymlaas_compiler_tvm.errors import CompilerFault, ModelInvalid, ModelRefused
from tinymlaas_compiler_tvm.int8.dead_channels import thinned
from tinymlaas_compiler_tvm.int8.lowering import Settings, lower_graph
from tinymlaas_compiler_tvm.int8.operators import INT8_OPERATORS
from tinymlaas_compiler_tvm.islands import on_reals
from tinymlaas_compiler_tvm.native.assemble import Interface, assemble
from tinymlaas_compiler_tvm.native.program import Buffer
from tinymlaas_compiler_tvm.options import Options
from tinymlaas_compiler_tvm.parts import CompiledParts, Numerics, NumericsClass
from tinymlaas_compiler_tvm.prepare import numerics_of, prepare
from tinymlaas_compiler_tvm.target import Machine, TargetSpec, machine_for
from tinymlaas_modelkit.check import CheckerUnavailable, Limits, ModelRejected, check_structure
from tinymlaas_modelkit.check import check_model as check_onnx
from tinymlaas_modelkit.errors import MalformedModel, UnsupportedOperator
from tinymlaas_modelkit.graph import Graph
from tinymlaas_modelkit.onnx_reader import read_onnx

_UNROLL = {"balanced": 8, "latency": 16, "flash": 2, "ram": 8}


def check_shapes(onnx_bytes: bytes) -> None:
    """Infer and compare shapes in a process of its own that may die; ModelRejected, CheckerUnavailable."""
    check_onnx(onnx_bytes, "onnx")


def compile_model(
    onnx_bytes: bytes,
    target: TargetSpec,
    options: Mapping[str, object] | None = None,
    check: Callable[[bytes], None] = check_shapes,
) -> CompiledParts:
    """A native module for the model on the target.

    `check` infers shapes before TVM sees a file; callers whose own process may die can do that at home.
    Raises a `CompileError`: ModelInvalid, OpUnsupported, DoesNotFit, TargetUnsupported, OptionUnknown, OptionInvalid.
    Deterministic: equal arguments give equal parts.
    """
    checked = Options.of(options or {})
    machine = machine_for(target)
    graph = read_graph(onnx_bytes)
    if graph is not None and has_integer_kernels(graph):
        return compile_graph(graph, machine, target, checked)
    return compile_float(onnx_bytes, machine, target, checked, check)


def has_integer_kernels(graph: Graph) -> bool:
    """Whether some operator of a graph computes on int8, so that not all of it is one island of reals."""
    return any(not on_reals(graph, op) for op in graph.ops)


def compile_float(
    onnx_bytes: bytes,
    machine: Machine,
    target: TargetSpec,
    options: Options,
    check: Callable[[bytes], None] = check_shapes,
) -> CompiledParts:
    """A native module for a float model, by way of TVM."""
    check_file(onnx_bytes, check)
    from tinymlaas_compiler_tvm.relax.lowering import lower_model

    program, inputs, outputs = lower_model(onnx_bytes)
    numerics = NumericsClass(Numerics.WITHIN_TOLERANCE, "onnx", relative=1e-4, absolute=1e-5)
    return assemble(program, machine, target, inputs, outputs, numerics, "-O2")


def read_graph(onnx_bytes: bytes) -> Graph | None:
    """The model as a graph; None where TVM takes the file itself: what the graph can't express, float models foremost."""
    check_file(onnx_bytes)
    try:
        return read_onnx(onnx_bytes, foreign=True)
    except UnsupportedOperator:
        return None
    except MalformedModel as error:
        if not _is_quantized(onnx_bytes):
            return None
        raise ModelInvalid(str(error), **error.metadata) from error


def _is_quantized(onnx_bytes: bytes) -> bool:
    import onnx

    return any(node.op_type == "QuantizeLinear" for node in onnx.load_from_string(onnx_bytes).graph.node)


def check_file(onnx_bytes: bytes, check: Callable[[bytes], None] | None = None) -> None:
    """Refuse a file that is no well-formed ONNX model with static shapes, before any library reads it; `check` looks deeper."""
    try:
        if check is None:
            check_structure(onnx_bytes, "onnx", Limits())
        else:
            check(onnx_bytes)
    except ModelRejected as error:
        raise ModelRefused(error) from error
    except CheckerUnavailable as error:
        raise CompilerFault(str(error), detail="model check") from error


def settings_for(options: Options) -> Settings:
    """What checked options mean for lowering."""
    return Settings(
        unroll=_UNROLL[options.objective],
        scratch_free_dense=options.objective == "ram",
        rounding=options.rounding,
    )


def compile_graph(graph: Graph, machine: Machine, target: TargetSpec, options: Options) -> CompiledParts:
    """A native module for a graph with int8 operators; what computes on reals in it goes through TVM."""
    prepared, rounding = prepare(graph, options.rounding)
    options = dataclasses.replace(options, rounding=rounding)
    settings = settings_for(options)
    program = lower_graph(thinned(prepared, machine, settings), machine, settings, INT8_OPERATORS)
    optimize = "-O2" if options.objective == "latency" else "-Os"
    inputs = [_interface(graph, name, buffer) for name, buffer in zip(graph.inputs, program.inputs, strict=True)]
    outputs = [_interface(graph, name, buffer) for name, buffer in zip(graph.outputs, program.outputs, strict=True)]
    return assemble(program, machine, target, inputs, outputs, numerics_of(graph, rounding), optimize)


def _interface(graph: Graph, name: str, buffer: Buffer) -> Interface:
    tensor = graph.tensor(name)
    quantization = tensor.quantization
    scale = quantization.scale if quantization is not None else 0.0
    zero_point = quantization.zero_point if quantization is not None else 0
    return Interface(name, str(tensor.dtype), tensor.shape, scale, zero_point, tensor.nbytes, buffer)
