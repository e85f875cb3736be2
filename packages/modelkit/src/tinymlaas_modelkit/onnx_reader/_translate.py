"""From ONNX nodes to the graph, node by node; operators that cannot be expressed are collected and reported
together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from tinymlaas_modelkit.errors import MalformedModel, OffendingOperator, UnsupportedOperator
from tinymlaas_modelkit.graph import DType, Graph, OpKind, Quantization, Tensor
from tinymlaas_modelkit.onnx_reader import (
    _fold,
    _foreign,
    _ops_conv,
    _ops_elementwise,
    _ops_linear,
    _ops_norm,
    _ops_pool,
    _ops_resize,
    _ops_shape,
    _qdq,
)
from tinymlaas_modelkit.onnx_reader._context import NARROW, Act, Const, Context, NotExpressible, bind_unknown
from tinymlaas_modelkit.onnx_reader._source import Node, Source
from tinymlaas_modelkit.passes import tidy

Handler = Callable[[Context, Node], None]

HANDLERS: Mapping[str, Handler] = {
    "QuantizeLinear": _qdq.quantize_linear,
    "DequantizeLinear": _qdq.dequantize_linear,
    "Conv": _ops_conv.conv,
    "MatMul": _ops_linear.matmul,
    "Gemm": _ops_linear.gemm,
    "AveragePool": _ops_pool.average_pool,
    "MaxPool": _ops_pool.max_pool,
    "GlobalAveragePool": _ops_pool.global_average_pool,
    "GlobalMaxPool": _ops_pool.global_max_pool,
    "ReduceMean": _ops_pool.reduce_mean,
    "ReduceMax": _ops_pool.reduce_extreme,
    "ReduceMin": _ops_pool.reduce_extreme,
    "ConvTranspose": _ops_conv.conv_transpose,
    "Gather": _ops_shape.gather,
    "Add": _ops_elementwise.binary,
    "Sub": _ops_elementwise.binary,
    "Mul": _ops_elementwise.binary,
    "Div": _ops_elementwise.binary,
    "Min": _ops_elementwise.binary,
    "Max": _ops_elementwise.binary,
    "PRelu": _ops_elementwise.binary,
    "Relu": _ops_elementwise.relu,
    "Clip": _ops_elementwise.relu,
    "Sigmoid": _ops_elementwise.unary,
    "Tanh": _ops_elementwise.unary,
    "HardSwish": _ops_elementwise.unary,
    "LeakyRelu": _ops_elementwise.unary,
    "Softmax": _ops_elementwise.softmax,
    "Reshape": _ops_shape.reshape,
    "Flatten": _ops_shape.reshape,
    "Squeeze": _ops_shape.reshape,
    "Unsqueeze": _ops_shape.reshape,
    "Transpose": _ops_shape.transpose,
    "Identity": _ops_shape.identity,
    "Dropout": _ops_shape.identity,
    "Concat": _ops_shape.concat,
    "Pad": _ops_shape.pad,
    "Slice": _ops_shape.slice_,
    "Split": _ops_shape.split,
    "Resize": _ops_resize.resize,
    "BatchNormalization": _ops_norm.batch_normalization,
    "Shape": _fold.shape_of,
}


def _bind_inputs(context: Context) -> None:
    source = context.source
    known = {"float32", *context.integers}
    for name, array in source.constants.items():
        context.values[name] = Const(name, array)
    for name in source.inputs:
        dtype, shape = source.dtypes[name], source.shapes[name]
        identity = tuple(range(len(shape)))
        q = context.quantizations.get(name)
        if context.takes_foreign and dtype in _foreign.ELEMENT_TYPES and (dtype not in known or q is None):
            context.tensors[name] = Tensor(name, shape, DType(dtype))
            context.values[name] = Act(name, identity)
        elif dtype not in known or (dtype != "float32" and q is None):
            reader = next(iter(source.consumers.get(name, [])), None)
            node = reader or Node("input", name, (name,), (), {}, -1)
            detail = f"input of type {dtype}" if dtype not in known else f"{dtype} input without scale and zero point"
            context.report(node, detail)
            context.tensors[name] = Tensor(name, shape, DType.FLOAT32)
            context.values[name] = Act(name, identity)
        elif dtype == "uint8":
            assert q is not None
            in_file = Quantization(q.scales, q.zero_points + 128, q.axis)
            context.tensors[name] = Tensor(name, shape, DType.UINT8, in_file)
            moved = context.emit(OpKind.QUANTIZE, (name,), f"{name}_int8", shape, q, {}, "input")
            context.values[name] = Act(moved, identity)
        else:
            context.tensors[name] = Tensor(name, shape, DType(dtype), None if dtype == "float32" else q)
            context.values[name] = Act(name, identity)


def _bind_outputs(context: Context) -> Graph:
    """Name the results as the file names its outputs, in the layout and type that the file says."""
    rename: dict[str, str] = {}
    for name in context.source.outputs:
        value = context.values.get(name)
        if value is None:
            raise UnsupportedOperator([OffendingOperator("output", name, "unknown", "a result that the graph lacks")])
        if isinstance(value, Const):
            raise UnsupportedOperator(
                [OffendingOperator("output", name, "unknown", "a constant as output of the model")]
            )
        act = context.real(context.plain(value))
        tensor = context.tensors[act.tensor]
        q = tensor.quantization
        if context.source.dtypes.get(name) == "uint8" and q is not None:
            in_file = Quantization(q.scales, q.zero_points + 128, q.axis)
            act = Act(
                context.emit(
                    OpKind.QUANTIZE, (act.tensor,), f"{name}_uint8", tensor.shape, in_file, {}, "output", DType.UINT8
                ),
                act.perm,
            )
        elif act.tensor in context.source.inputs or act.tensor in rename:
            copy = context.emit(
                OpKind.RESHAPE,
                (act.tensor,),
                f"{name}_copy",
                tensor.shape,
                q,
                {"shape": tensor.shape},
                "output",
                tensor.dtype,
            )
            act = Act(copy, act.perm)
        rename[act.tensor] = name
    tensors = {rename.get(n, n): dataclasses.replace(t, name=rename.get(n, n)) for n, t in context.tensors.items()}
    ops = tuple(
        dataclasses.replace(
            op,
            inputs=tuple(None if i is None else rename.get(i, i) for i in op.inputs),
            outputs=tuple(rename.get(o, o) for o in op.outputs),
        )
        for op in context.ops
    )
    return Graph(tensors, ops, context.source.inputs, context.source.outputs)


def translate(source: Source, foreign: bool = False, wide: bool = True) -> Graph:
    """The graph of a parsed ONNX model; raises UnsupportedOperator with all nodes that cannot be expressed."""
    integers = NARROW | {"int16"} if wide else NARROW
    context = Context(source, _qdq.find_quantizations(source), takes_foreign=foreign, integers=integers)
    _bind_inputs(context)
    for node in source.nodes:
        if node.index in context.done:
            continue
        try:
            _node(context, node)
        except NotExpressible as reason:
            context.report(node, str(reason))
            _report_rest_if_lost(context, node)
        except (LookupError, ValueError, TypeError, AssertionError, ArithmeticError) as error:
            # The file check knows names, shapes and types, not the rules of each operator: an attribute may be missing,
            # an axis out of range, a constant of a shape that its operator does not take.
            detail = f"{node.op} breaks the rules of its operator ({type(error).__name__}: {error})"
            raise MalformedModel("MALFORMED", detail, node.name) from error
    if context.offending:
        raise UnsupportedOperator(context.offending)
    return tidy(_bind_outputs(context))


def _node(context: Context, node: Node) -> None:
    """One node, as FOREIGN where nothing else takes it and that is allowed."""
    handler = _fold.fold if _fold.can_fold(context, node) else HANDLERS.get(node.op)
    absorbed = set(context.done)
    try:
        if handler is None or (context.takes_foreign and _foreign.must_be_foreign(context, node)):
            raise NotExpressible("no such operator in the graph")
        handler(context, node)
    except NotExpressible:
        if not context.takes_foreign:
            raise
        # What the handler had emitted goes again with what is unused; what it took along is to be read itself.
        context.done.clear()
        context.done.update(absorbed)
        _foreign.foreign(context, node)


def _report_rest_if_lost(context: Context, node: Node) -> None:
    """Go on behind stand-ins; where shapes are lost, list at least all operators that are unknown by name, then
    raise."""
    try:
        bind_unknown(context, node)
    except MalformedModel as error:
        for later in context.source.nodes[context.source.nodes.index(node) + 1 :]:
            if later.op not in HANDLERS:
                context.report(later, "no such operator in the graph")
        raise UnsupportedOperator(context.offending) from error
