"""`compile_model` and `check_model`: the two calls of the compiler role, as functions of values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from tinymlaas_compiler_tvm import tune, winograd_choice
from tinymlaas_compiler_tvm.errors import CompilerFault, ModelInvalid, OpUnsupported, refusal
from tinymlaas_compiler_tvm.float_bound import float_numerics
from tinymlaas_compiler_tvm.int8.dead_channels import thinned
from tinymlaas_compiler_tvm.int8.lowering import lower_graph, try_lower
from tinymlaas_compiler_tvm.int8.operators import INT8_OPERATORS
from tinymlaas_compiler_tvm.int8.sparse import SPARSE
from tinymlaas_compiler_tvm.int8.variants import LAYERS, shipped, signature
from tinymlaas_compiler_tvm.islands import is_wide, on_reals
from tinymlaas_compiler_tvm.native.assemble import Interface, assemble
from tinymlaas_compiler_tvm.native.program import Buffer, Program
from tinymlaas_compiler_tvm.options import Options
from tinymlaas_compiler_tvm.parts import CompiledParts
from tinymlaas_compiler_tvm.prepare import numerics_of, prepare
from tinymlaas_compiler_tvm.target import Machine, TargetSpec, machine_for
from tinymlaas_compiler_tvm.way import Way, settings_for
from tinymlaas_modelkit.check import CheckerUnavailable, Limits, ModelRejected, check_structure
from tinymlaas_modelkit.check import check_model as check_onnx
from tinymlaas_modelkit.errors import MalformedModel, UnsupportedOperator
from tinymlaas_modelkit.graph import Graph, OpKind
from tinymlaas_modelkit.onnx_reader import read_onnx

# About half a minute on the simulator.
_MOST_MACS_TO_RUN = 100_000_000


def check_shapes(onnx_bytes: bytes) -> None:
    """Infer and compare shapes in a process of its own that may die; ModelRejected, CheckerUnavailable."""
    check_onnx(onnx_bytes, "onnx")


def compile_model(
    onnx_bytes: bytes,
    target: TargetSpec,
    options: Mapping[str, object] | None = None,
    check: Callable[[bytes], None] = check_shapes,
    progress: tune.Progress | None = None,
) -> CompiledParts:
    """A native module for the model on the target.

    `check` infers shapes before TVM sees a file; callers whose own process may die can do that at home.
    `progress` hears what a search for kernel variants (option `tune`) is at.
    Raises a `CompileError`: ModelInvalid, OpUnsupported, DoesNotFit, TargetUnsupported, OptionUnknown, OptionInvalid.
    Deterministic: equal arguments give equal parts.
    """
    checked = Options.of(options or {})
    machine = machine_for(target)
    graph, note = graph_for(onnx_bytes, machine, checked)
    if graph is None or not has_integer_kernels(graph):
        parts = compile_float(onnx_bytes, target, check)
    elif checked.tune:
        parts = tuned(Way(graph, target, checked), progress)[1]
    else:
        parts = compile_graph(Way(graph, target, checked))
    return dataclasses.replace(parts, log=(note, *parts.log)) if note else parts


def graph_for(onnx_bytes: bytes, machine: Machine, options: Options) -> tuple[Graph | None, str]:
    """(the model as a graph, why int16 is computed on reals in it, or nothing).

    Activations of int16 are integers in it where every operator on them has a kernel with TFLite's rounding; else they are
    left to the islands of reals, or to TVM. None as `read_graph` has it.
    """
    if options.rounding != "tflite":
        return read_graph(onnx_bytes), ""
    wide = read_graph(onnx_bytes, wide=True)
    if wide is None or not _has_wide(wide):
        # Without int16 there is nothing that can be read in two ways.
        return read_graph(onnx_bytes) if wide is None else wide, ""
    prepared, rounding = prepare(wide, options.rounding)
    if rounding != options.rounding:
        return read_graph(onnx_bytes), "int16 is computed on reals: TFLite has no form for some operator of this graph"
    settings = settings_for(options, machine)
    _, refusals = try_lower(thinned(prepared, machine, settings), machine, settings, INT8_OPERATORS)
    if not refusals:
        return wide, ""
    first = refusals[0].error
    return read_graph(onnx_bytes), f"int16 is computed on reals: {first} ({first.metadata.get('op', '')})"


def has_integer_kernels(graph: Graph) -> bool:
    """Whether some operator of a graph computes on integers, so that not all of it is one island of reals."""
    return any(not on_reals(graph, op) for op in graph.ops)


def compile_float(onnx_bytes: bytes, target: TargetSpec, check: Callable[[bytes], None]) -> CompiledParts:
    """A native module for a float model, by way of TVM."""
    check_file(onnx_bytes, check)
    from tinymlaas_compiler_tvm.relax.lowering import lower_model

    program, inputs, outputs = lower_model(onnx_bytes)
    numerics, line = float_numerics(onnx_bytes)
    program.log.append(line)
    return assemble(program, machine_for(target), target, inputs, outputs, numerics, "-O2")


def _has_wide(graph: Graph) -> bool:
    """Whether a graph has int16 activations as integers."""
    return any(is_wide(tensor) for tensor in graph.tensors.values())


def read_graph(onnx_bytes: bytes, wide: bool = False) -> Graph | None:
    """The model as a graph; None where TVM takes the file itself: what the graph can't express, float models foremost.

    `wide`: int16 activations are quantized integers in it, too.
    """
    check_file(onnx_bytes)
    try:
        return read_onnx(onnx_bytes, foreign=True, wide=wide)
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
        raise refusal(error) from error
    except CheckerUnavailable as error:
        raise CompilerFault(str(error), detail="model check") from error


def tuned(way: Way, progress: tune.Progress | None) -> tuple[dict[str, int], CompiledParts]:
    """Variants of the layers' kernels found by search from those of `way` (None: the shipped ones), and their module."""
    small = way.thinned()
    layers = [op for op in small.ops if op.kind in LAYERS and small.tensor(str(op.inputs[1])).is_constant]
    names = list(dict.fromkeys(signature(small, op) for op in layers))
    chosen, parts, log = tune.search(
        way.options.tune,
        way.options.objective,
        names,
        shipped(way.machine, way.options.objective) if way.variants is None else way.variants,
        lambda variants: compile_graph(dataclasses.replace(way, variants=variants)),
        lambda made: tune.count(made, way.machine.cpu),
        progress or (lambda *_: None),
    )
    return chosen, dataclasses.replace(parts, log=(*log, *parts.log))


def compile_graph(way: Way) -> CompiledParts:
    """A native module for a graph with int8 operators; what computes on reals in it goes through TVM.

    Zeros may come out multiplied where that is better; the objective `latency` chooses clang's aim and Winograd, too.
    """
    if way.options.objective == "latency":
        return _fastest(way)
    return _better(_candidates(way), way)


def rankings(way: Way) -> list[str]:
    """Outputs of the operators that have a faster and a smaller kernel, those first that save most instructions a byte.

    Estimates: a faster kernel saves four instructions a product, and takes 14 bytes more a channel for parameters and what is
    over; a table saves 30 instructions an addition.
    """
    small = way.thinned()
    found = []
    for number, op in enumerate(small.ops):
        out = small.tensor(op.outputs[0])
        if op.kind is OpKind.CONV_2D and small.tensor(str(op.inputs[1])).is_constant:
            weights = small.tensor(str(op.inputs[1]))
            products = out.elements * weights.elements // weights.shape[0]
            found.append((-4 * products / (14 * weights.shape[0]), number))
        elif op.kind in (OpKind.ADD, OpKind.SUB):
            found.append((-30 * out.elements / 1024, number))
    return [small.ops[number].outputs[0] for _, number in sorted(found)]


def _fastest(way: Way) -> CompiledParts:
    """The module that takes the fewest instructions on the simulator, which has the last word on what clang makes of loops.

    Candidates are both of clang's aims and, without `variants`, what the objective `balanced` makes, each of them also with its
    zeros multiplied where it leaves some out; then the best of these with its 3 x 3 convolutions by Winograd, as far as flash
    allows. For a core that the simulator lacks, and for models that would keep it busy too long, the first candidate is taken
    as it is, with Winograd.
    """
    ways = [dataclasses.replace(way, aim=aim) for aim in ("-O2", "-Os")]
    if way.variants is None:
        balanced = dataclasses.replace(way.options, objective="balanced")
        ways.append(dataclasses.replace(way, options=balanced, aim="-Os"))
    made = [(parts, ways[0]) for parts in _candidates(ways[0])]
    counted = _runs(made[0][0], way.machine)

    def instructions(parts: CompiledParts) -> int:
        return tune.count(parts, way.machine.cpu).instructions

    if counted:
        made += [(parts, each) for each in ways[1:] for parts in _candidates(each)]
        best, chosen = min(made, key=lambda each: instructions(each[0]))
    else:
        best, chosen = made[0]
    tiled = winograd_choice.with_layers(
        winograd_choice.candidates(way.thinned(), way.machine),
        best,
        way.target.flash_bytes,
        lambda layers: _built(dataclasses.replace(chosen, zeros=_leaves_out(best), winograd=layers)),
    )
    if tiled is None or not counted:
        return tiled or best
    return min(best, tiled, key=instructions)


def _runs(parts: CompiledParts, machine: Machine) -> bool:
    """Whether the simulator has the core and the time for a module."""
    return not machine.mve and sum(step.macs for step in parts.certificate.steps) <= _MOST_MACS_TO_RUN


def _candidates(way: Way) -> list[CompiledParts]:
    """The module; if layers of it leave out their single zeros, the one where none does, too."""
    first = _built(way)
    if not _leaves_out(first):
        return [first]
    return [first, _built(dataclasses.replace(way, zeros=False))]


def _leaves_out(parts: CompiledParts) -> bool:
    """Whether some layer of a module leaves out its single zeros."""
    return any(report.operator.endswith(SPARSE) for report in parts.operators)


def _better(made: list[CompiledParts], way: Way) -> CompiledParts:
    """The module whose exact figures are best by the objective; the smaller one where the simulator can't tell."""
    if len(made) == 1:
        return made[0]
    if not _runs(made[0], way.machine):
        return min(made, key=lambda parts: len(parts.payload))
    return min(made, key=lambda parts: tune.count(parts, way.machine.cpu).cost(way.options.objective))


def _built(way: Way) -> CompiledParts:
    program, rounding = _lowered(way)
    graph = way.graph
    inputs = [_interface(graph, name, buffer) for name, buffer in zip(graph.inputs, program.inputs, strict=True)]
    outputs = [_interface(graph, name, buffer) for name, buffer in zip(graph.outputs, program.outputs, strict=True)]
    return assemble(program, way.machine, way.target, inputs, outputs, numerics_of(graph, rounding), way.aim)


def _lowered(way: Way) -> tuple[Program, str]:
    """The program, and whose rounding it follows: ONNX's where an operator has no kernel with TFLite's."""
    prepared, rounding = prepare(way.graph, way.options.rounding)
    settings = way.settings(rounding)
    try:
        program = lower_graph(thinned(prepared, way.machine, settings), way.machine, settings, INT8_OPERATORS)
    except OpUnsupported as error:
        if rounding == "onnx" or _has_wide(way.graph):
            raise
        following = dataclasses.replace(way.options, rounding="onnx")
        program, rounding = _lowered(dataclasses.replace(way, options=following))
        program.log.insert(0, f"rounding follows onnx: {error} ({error.metadata.get('op', '')})")
        return program, rounding
    if rounding != way.options.rounding:
        program.log.append(f"rounding follows {rounding}: TFLite has no form for some operator of this graph")
    return program, rounding


def _interface(graph: Graph, name: str, buffer: Buffer) -> Interface:
    tensor = graph.tensor(name)
    quantization = tensor.quantization
    scale = quantization.scale if quantization is not None else 0.0
    zero_point = quantization.zero_point if quantization is not None else 0
    return Interface(name, str(tensor.dtype), tensor.shape, scale, zero_point, tensor.nbytes, buffer)
