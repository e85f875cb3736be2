"""Write small ONNX files, right or wrong in one place."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from ._rejection import Problem
from ._testing_tflite import TinyFile

_HOSTILE_NAME: Final = 'a"; int main() { return *(int *)0; } //\n../../../etc/cron.d/evil\x1b[2J'
_WEIGHTS: Final = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def value(name: str, shape: Sequence[int | str | None] | None, dtype: int = TensorProto.FLOAT) -> ValueInfoProto:
    """A declared tensor."""
    return helper.make_tensor_value_info(name, dtype, shape)


def constant(name: str, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> TensorProto:
    """A constant with its values in the file."""
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def onnx_model(
    nodes: Sequence[NodeProto],
    constants: Sequence[TensorProto] = (),
    inputs: Sequence[ValueInfoProto] | None = None,
    outputs: Sequence[ValueInfoProto] | None = None,
    opset: int = 17,
    ir_version: int = 8,
) -> ModelProto:
    """A model from `x` [2, 3] to `y` [2, 4] unless said otherwise."""
    graph: GraphProto = helper.make_graph(
        nodes,
        "graph",
        [value("x", [2, 3])] if inputs is None else inputs,
        [value("y", [2, 4])] if outputs is None else outputs,
        constants,
    )
    return helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)])


def _matmul(x: str = "x", w: str = "w", y: str = "y") -> NodeProto:
    return helper.make_node("MatMul", [x, w], [y], name="product")


def _simple(**changes: Any) -> ModelProto:
    return onnx_model([_matmul()], [constant("w", _WEIGHTS)], **changes)


def _through(*nodes: NodeProto, constants: Sequence[TensorProto] = (), opset: int = 17) -> ModelProto:
    """The simple model with more nodes before its product, which reads their tensor `a`."""
    return onnx_model([*nodes, _matmul("a")], [constant("w", _WEIGHTS), *constants], opset=opset)


def good_onnx() -> bytes:
    """A small valid float ONNX file."""
    return _simple().SerializeToString()


def good_qdq_onnx() -> bytes:
    """A small valid QDQ int8 ONNX file with int8 input and output."""
    scales = [constant(f"s{name}", s) for name, s in (("x", 0.5), ("w", 0.25), ("y", 2.0))]
    zero = constant("z", 0, np.int8)
    weights = constant("wq", np.arange(12).reshape(3, 4), np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["xq", "sx", "z"], ["x"]),
        helper.make_node("DequantizeLinear", ["wq", "sw", "z"], ["w"]),
        _matmul(y="yf"),
        helper.make_node("QuantizeLinear", ["yf", "sy", "z"], ["y"]),
    ]
    borders = [value("xq", [2, 3], TensorProto.INT8)], [value("y", [2, 4], TensorProto.INT8)]
    return onnx_model(nodes, [*scales, zero, weights], *borders).SerializeToString()


def hostile_names_onnx() -> bytes:
    """A valid file whose names hold C code, a path, a line break and a terminal's escape codes."""
    model = onnx_model([_matmul(w=_HOSTILE_NAME)], [constant(_HOSTILE_NAME, _WEIGHTS)])
    model.graph.node[0].name = model.graph.name = model.producer_name = _HOSTILE_NAME
    return model.SerializeToString()


def _edited(edit: Callable[[ModelProto], None], model: Callable[[], ModelProto] = _simple) -> Callable[[], bytes]:
    def make() -> bytes:
        edited = model()
        edit(edited)
        return edited.SerializeToString()

    return make


def _saved(model: Callable[[], ModelProto]) -> Callable[[], bytes]:
    return lambda: model().SerializeToString()


def _with_weights(**fields: Any) -> Callable[[], bytes]:
    return _saved(lambda: onnx_model([_matmul()], [TensorProto(name="w", data_type=TensorProto.FLOAT, **fields)]))


def _outside(location: str) -> Callable[[], bytes]:
    def make() -> bytes:
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 4], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=location)
        return onnx_model([_matmul()], [tensor]).SerializeToString()

    return make


def _outside_attribute() -> bytes:
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[3, 4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/proc/self/environ")
    return onnx_model([helper.make_node("Constant", [], ["w"], value=tensor), _matmul()]).SerializeToString()


def _lengths(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field, written by hand since libraries refuse what they would not read."""
    size, out = len(data), bytearray([number << 3 | 2])
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes(out) + bytes([size]) + data


def nested_if(depth: int) -> bytes:
    """`If` inside `If`, `depth` deep, both branches of each filled."""
    leaf = helper.make_graph([helper.make_node("Identity", ["x"], ["r"])], "leaf", [], [value("r", [2, 3])])
    inner = leaf.SerializeToString()
    graph_type = b"\xa0\x01\x05"
    other = _lengths(5, _lengths(1, b"else_branch") + _lengths(6, inner) + graph_type)
    for _ in range(depth):
        branch = _lengths(5, _lengths(1, b"then_branch") + _lengths(6, inner) + graph_type)
        node = _lengths(1, b"c") + _lengths(2, b"r") + _lengths(4, b"If") + branch + other
        inner = _lengths(1, node) + _lengths(2, b"level") + _lengths(12, value("r", [2, 3]).SerializeToString())
    inner += _lengths(5, constant("c", True, np.bool_).SerializeToString())
    inner += _lengths(11, value("x", [2, 3]).SerializeToString())
    return b"\x08\x08" + _lengths(7, inner) + _lengths(8, b"\x10\x11")


def _functions(bodies: dict[str, Sequence[str]], call: str) -> Callable[[], bytes]:
    """A model with local functions, each a chain of calls."""

    def make() -> bytes:
        model = _through(helper.make_node(call, ["x"], ["a"], domain="own"))
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        model.opset_import.append(imports[1])
        for name, calls in bodies.items():
            names = ["i", *(f"t{index}" for index in range(len(calls)))]
            steps = [
                helper.make_node(op, [names[k]], [names[k + 1]], domain="own" if op in bodies else "")
                for k, op in enumerate(calls)
            ]
            model.functions.append(helper.make_function("own", name, ["i"], [names[-1]], steps, imports))
        return model.SerializeToString()

    return make


def _endless_loop() -> ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Neg", ["v"], ["v_next"])],
        "body",
        [value("turn", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("v", [1])],
        [value("go_on", [], TensorProto.BOOL), value("v_next", [1])],
    )
    loop = helper.make_node("Loop", ["turns", "yes", "start"], ["end"], body=body)
    given = [constant("turns", 2**62, np.int64), constant("yes", True, np.bool_), constant("start", [0.0])]
    return _through(loop, helper.make_node("Add", ["x", "end"], ["a"]), constants=given)


def _fill(op: str, inputs: Sequence[str], constants: Sequence[TensorProto]) -> Callable[[], bytes]:
    """A model that adds the sum of a huge constant, made of a few bytes, to its input."""
    nodes = [
        helper.make_node(op, inputs, ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["one"], keepdims=0),
        helper.make_node("Add", ["x", "one"], ["a"]),
    ]
    return _saved(lambda: _through(*nodes, constants=constants))


def _cycle() -> ModelProto:
    return _through(helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"]))


def _convolution(weights: Sequence[int], bias: int = 4) -> Callable[[], bytes]:
    given = [constant("w", np.ones(weights)), constant("b", np.ones(bias))]
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"])
    return _saved(lambda: onnx_model([node], given, [value("x", [1, 3, 8, 8])], [value("y", [1, 4, 6, 6])]))


def _dequantized(scale: float, zeros: Sequence[int] | int = 0) -> Callable[[], bytes]:
    node = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"])
    given = [constant("q", np.ones((3, 4)), np.int8), constant("s", scale), constant("z", zeros, np.int8)]
    return _saved(lambda: onnx_model([node, _matmul()], given))


def _set_opset(version: int) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        model.opset_import[0].version = version

    return edit


def _set_ir(version: int) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        model.ir_version = version

    return edit


def _input_shape(shape: Sequence[int | str | None] | None, dtype: int = TensorProto.FLOAT) -> Callable[[], bytes]:
    return _saved(lambda: onnx_model([helper.make_node("Identity", ["x"], ["y"])], (), [value("x", shape, dtype)]))


def _chain(length: int) -> bytes:
    names = ["x", *(f"t{index}" for index in range(length - 1)), "y"]
    nodes = [NodeProto(op_type="Neg", input=[a], output=[b]) for a, b in pairwise(names)]
    return onnx_model(nodes, (), None, [value("y", [2, 3])]).SerializeToString()


def _doubles() -> ModelProto:
    weights = constant("w", _WEIGHTS, np.float64)
    return onnx_model(
        [_matmul()], [weights], [value("x", [2, 3], TensorProto.DOUBLE)], [value("y", [2, 4], TensorProto.DOUBLE)]
    )


_N: Final = helper.make_node

BAD_ONNX: Final[tuple[tuple[str, Problem, Callable[[], bytes]], ...]] = (
    ("empty.onnx", Problem.EMPTY_FILE, lambda: b""),
    ("text.onnx", Problem.NOT_A_MODEL, lambda: b"Dear service,\nthis is a letter.\n" * 20),
    ("zip.onnx", Problem.NOT_A_MODEL, lambda: b"PK\x03\x04" + bytes(200)),
    ("no_graph.onnx", Problem.NOT_A_MODEL, lambda: b"\x08\x08"),
    ("truncated.onnx", Problem.MALFORMED, lambda: good_onnx()[:-20]),
    ("noise.onnx", Problem.MALFORMED, lambda: random.Random(5).randbytes(3000)),  # noqa: S311
    ("tflite_inside.onnx", Problem.FORMAT_MISMATCH, TinyFile().write),
    ("cycle.onnx", Problem.CYCLE, _saved(_cycle)),
    ("self_loop.onnx", Problem.CYCLE, _saved(lambda: _through(_N("Add", ["x", "a"], ["a"])))),
    (
        "unsorted.onnx",
        Problem.MALFORMED,
        _saved(lambda: onnx_model([_matmul("a"), _N("Neg", ["x"], ["a"])], [constant("w", _WEIGHTS)])),
    ),
    (
        "vendor_domain.onnx",
        Problem.OP_UNSUPPORTED,
        _edited(
            lambda m: m.opset_import.append(helper.make_opsetid("vendor.example", 1)),
            lambda: _through(_N("Magic", ["x"], ["a"], domain="vendor.example")),
        ),
    ),
    (
        "domain_not_imported.onnx",
        Problem.MALFORMED,
        _saved(lambda: _through(_N("Magic", ["x"], ["a"], domain="vendor.example"))),
    ),
    ("no_such_op.onnx", Problem.NO_SUCH_OP, _saved(lambda: _through(_N("Relu99", ["x"], ["a"])))),
    ("op_of_later_opset.onnx", Problem.NO_SUCH_OP, _saved(lambda: _through(_N("Gelu", ["x"], ["a"])))),
    ("open_batch.onnx", Problem.SHAPE_NOT_STATIC, _input_shape(["batch", 3])),
    ("open_dims.onnx", Problem.SHAPE_NOT_STATIC, _input_shape([1, "height", None, 3])),
    ("no_shape.onnx", Problem.SHAPE_NOT_STATIC, _input_shape(None)),
    (
        "data_dependent.onnx",
        Problem.SHAPE_NOT_STATIC,
        _saved(lambda: onnx_model([_N("NonZero", ["x"], ["y"])], (), None, [value("y", [2, 4], TensorProto.INT64)])),
    ),
    ("doubles.onnx", Problem.DTYPE_UNSUPPORTED, _saved(_doubles)),
    ("string_input.onnx", Problem.DTYPE_UNSUPPORTED, _input_shape([1], TensorProto.STRING)),
    (
        "hidden_double.onnx",
        Problem.DTYPE_UNSUPPORTED,
        _saved(
            lambda: _through(
                _N("Cast", ["x"], ["d"], to=TensorProto.DOUBLE), _N("Cast", ["d"], ["a"], to=TensorProto.FLOAT)
            )
        ),
    ),
    ("negative_dim.onnx", Problem.BAD_SHAPE, _input_shape([1, -3])),
    ("zero_dim.onnx", Problem.BAD_SHAPE, _input_shape([0, 3])),
    ("many_dims.onnx", Problem.BAD_SHAPE, _input_shape([1] * 100)),
    ("overflowing_dims.onnx", Problem.TENSOR_TOO_LARGE, _input_shape([1 << 32, 1 << 32])),
    ("external_relative.onnx", Problem.EXTERNAL_DATA, _outside("../../../../etc/shadow")),
    ("external_absolute.onnx", Problem.EXTERNAL_DATA, _outside("/dev/zero")),
    ("external_attribute.onnx", Problem.EXTERNAL_DATA, _outside_attribute),
    ("claims_terabytes.onnx", Problem.DATA_SIZE_MISMATCH, _with_weights(dims=[1 << 20, 1 << 20])),
    ("short_data.onnx", Problem.DATA_SIZE_MISMATCH, _with_weights(dims=[3, 4], raw_data=bytes(47))),
    ("short_typed_data.onnx", Problem.DATA_SIZE_MISMATCH, _with_weights(dims=[3, 4], float_data=[1.0] * 11)),
    ("two_stores.onnx", Problem.MALFORMED, _with_weights(dims=[3, 4], raw_data=bytes(48), float_data=[1.0] * 12)),
    (
        "constant_of_shape_bomb.onnx",
        Problem.TENSOR_TOO_LARGE,
        _fill("ConstantOfShape", ["n"], [constant("n", [1 << 18, 1 << 18], np.int64)]),
    ),
    (
        "expand_bomb.onnx",
        Problem.TENSOR_TOO_LARGE,
        _fill("Expand", ["v", "n"], [constant("v", [1.0]), constant("n", [1 << 30], np.int64)]),
    ),
    (
        "tile_bomb.onnx",
        Problem.TENSOR_TOO_LARGE,
        _fill("Tile", ["v", "n"], [constant("v", [1.0] * 8), constant("n", [1 << 30], np.int64)]),
    ),
    (
        "range_bomb.onnx",
        Problem.TENSOR_TOO_LARGE,
        _fill("Range", ["f", "t", "d"], [constant("f", 0.0), constant("t", 1e9), constant("d", 1.0)]),
    ),
    ("endless_loop.onnx", Problem.OP_UNSUPPORTED, _saved(_endless_loop)),
    ("long_chain.onnx", Problem.TOO_MANY_NODES, lambda: _chain(9000)),
    ("field_bomb.onnx", Problem.MODEL_TOO_LARGE, lambda: b"\x08\x08" + _lengths(7, b"\x2a\x00" * 600_000)),
    ("nested_if.onnx", Problem.OP_UNSUPPORTED, lambda: nested_if(15)),
    ("nested_too_deep.onnx", Problem.MALFORMED, lambda: nested_if(250)),
    ("function_calls_itself.onnx", Problem.CYCLE, _functions({"f": ["Neg", "f"]}, "f")),
    ("functions_in_a_circle.onnx", Problem.CYCLE, _functions({"f": ["g"], "g": ["h"], "h": ["f"]}, "f")),
    (
        "function_bomb.onnx",
        Problem.TOO_MANY_NODES,
        _functions({f"f{k}": [f"f{k + 1}"] * 9 if k < 20 else ["Neg"] for k in range(21)}, "f0"),
    ),
    ("function.onnx", Problem.OP_UNSUPPORTED, _functions({"f": ["Neg", "Abs"]}, "f")),
    ("opset_of_the_future.onnx", Problem.OPSET_UNSUPPORTED, _edited(_set_opset(120))),
    ("opset_of_the_past.onnx", Problem.OPSET_UNSUPPORTED, _edited(_set_opset(3))),
    ("ir_of_the_future.onnx", Problem.OPSET_UNSUPPORTED, _edited(_set_ir(77))),
    ("no_ir_version.onnx", Problem.MALFORMED, _edited(lambda m: m.ClearField("ir_version"))),
    ("no_opset.onnx", Problem.MALFORMED, _edited(lambda m: m.ClearField("opset_import"))),
    ("conv_channels.onnx", Problem.SHAPE_MISMATCH, _convolution([4, 5, 3, 3])),
    ("conv_bias.onnx", Problem.SHAPE_MISMATCH, _convolution([4, 3, 3, 3], bias=7)),
    ("wrong_output_shape.onnx", Problem.SHAPE_MISMATCH, _saved(lambda: _simple(outputs=[value("y", [2, 5])]))),
    ("wrong_output_rank.onnx", Problem.SHAPE_MISMATCH, _saved(lambda: _simple(outputs=[value("y", [8])]))),
    (
        "wrong_output_type.onnx",
        Problem.TYPE_MISMATCH,
        _saved(lambda: _simple(outputs=[value("y", [2, 4], TensorProto.INT8)])),
    ),
    ("product_mismatch.onnx", Problem.SHAPE_MISMATCH, _saved(lambda: _simple(inputs=[value("x", [2, 5])]))),
    (
        "duplicate_constant.onnx",
        Problem.DUPLICATE_NAME,
        _edited(lambda m: m.graph.initializer.append(constant("w", 2 * _WEIGHTS))),
    ),
    (
        "duplicate_output.onnx",
        Problem.DUPLICATE_NAME,
        _saved(lambda: _through(_N("Neg", ["x"], ["a"]), _N("Abs", ["x"], ["a"]))),
    ),
    ("duplicate_input.onnx", Problem.DUPLICATE_NAME, _saved(lambda: _simple(inputs=[value("x", [2, 3])] * 2))),
    ("undefined_tensor.onnx", Problem.UNDEFINED_TENSOR, _saved(lambda: _through(_N("Neg", ["nobody"], ["a"])))),
    ("undefined_output.onnx", Problem.UNDEFINED_TENSOR, _saved(lambda: _simple(outputs=[value("nobody", [2, 4])]))),
    ("no_output.onnx", Problem.NO_OUTPUT, _edited(lambda m: m.graph.ClearField("output"))),
    (
        "no_input.onnx",
        Problem.NO_INPUT,
        _saved(lambda: onnx_model([_N("Neg", ["w"], ["y"])], [constant("w", _WEIGHTS)], [])),
    ),
    (
        "nan_weights.onnx",
        Problem.BAD_VALUE,
        _saved(lambda: onnx_model([_matmul()], [constant("w", _WEIGHTS * np.float32("nan"))])),
    ),
    (
        "infinite_weights.onnx",
        Problem.BAD_VALUE,
        _saved(lambda: onnx_model([_matmul()], [constant("w", _WEIGHTS * np.float32("-inf"))])),
    ),
    (
        "infinite_fill.onnx",
        Problem.BAD_VALUE,
        _saved(
            lambda: onnx_model(
                [_N("ConstantOfShape", ["s"], ["w"], value=constant("v", [np.float32("inf")])), _matmul()],
                [constant("s", [3, 4], np.int64)],
            )
        ),
    ),
    (
        "fill_without_tensor.onnx",
        Problem.MALFORMED,
        _saved(
            lambda: onnx_model(
                [_N("ConstantOfShape", ["s"], ["w"], value=1), _matmul()], [constant("s", [3, 4], np.int64)]
            )
        ),
    ),
    (
        "infinite_attribute.onnx",
        Problem.BAD_VALUE,
        _saved(lambda: _through(_N("LeakyRelu", ["x"], ["a"], alpha=float("inf")))),
    ),
    ("zero_scale.onnx", Problem.BAD_VALUE, _dequantized(0.0)),
    ("negative_scale.onnx", Problem.BAD_VALUE, _dequantized(-0.5)),
    ("zero_points_without_scales.onnx", Problem.SHAPE_MISMATCH, _dequantized(0.5, [0, 0, 0])),
    (
        "int8_out_of_range.onnx",
        Problem.BAD_VALUE,
        _saved(
            lambda: onnx_model(
                [_N("Cast", ["q"], ["w"], to=1), _matmul()],
                [TensorProto(name="q", data_type=TensorProto.INT8, dims=[3, 4], int32_data=[300] * 12)],
            )
        ),
    ),
)
