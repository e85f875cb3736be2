"""Each operator of the graph as a TFLite operator: builtin code, version, option table, constant inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinymlaas_modelkit.graph import DType, Graph, Op, OpKind, Tensor
from tinymlaas_modelkit.quantization import quantize
from tinymlaas_modelkit.tflite_schema import ACTIVATION_CODES, CODES, operator_version, schema
from tinymlaas_modelkit.tflite_writer._builder import Encoded, FileBuilder, int32s
from tinymlaas_modelkit.tflite_writer._legalize import same_pads_of


def _table(name: str, **fields: object) -> tuple[int, Callable[[Any], int]]:
    """An option table by its schema name, with its fields (CamelCase) set."""

    def write(b: Any) -> int:
        getattr(schema, f"{name}Start")(b)
        for field, value in fields.items():
            getattr(schema, f"{name}Add{field}")(b, value)
        return int(getattr(schema, f"{name}End")(b))

    return getattr(schema.BuiltinOptions, name), write


def _padding(op: Op, graph: Graph) -> int:
    source = op.inputs[0]
    assert source is not None
    pads = op.attributes["pads"]
    if pads == same_pads_of(op, graph.tensors[source].shape, graph) and any(pads):
        return int(schema.Padding.SAME)
    return int(schema.Padding.VALID)


def _pair(op: Op, name: str) -> tuple[int, int]:
    values = op.attributes[name]
    assert isinstance(values, tuple)
    return values[0], values[1]


def _activation(op: Op) -> int:
    return ACTIVATION_CODES[op.attributes["activation"]]  # type: ignore[index]


def _options(op: Op, graph: Graph) -> tuple[int, Callable[[Any], int]] | None:
    """The option table of an operator, None for operators that have none to fill."""
    a: Any = op.attributes
    match op.kind:
        case OpKind.CONV_2D | OpKind.DEPTHWISE_CONV_2D:
            (sh, sw), (dh, dw) = _pair(op, "strides"), _pair(op, "dilations")
            common = {
                "Padding": _padding(op, graph), "StrideW": sw, "StrideH": sh,
                "DilationWFactor": dw, "DilationHFactor": dh, "FusedActivationFunction": _activation(op),
            }  # fmt: skip
            if op.kind is OpKind.CONV_2D:
                return _table("Conv2DOptions", **common)
            return _table("DepthwiseConv2DOptions", **common, DepthMultiplier=a["depth_multiplier"])
        case OpKind.AVERAGE_POOL_2D | OpKind.MAX_POOL_2D:
            (sh, sw), (kh, kw) = _pair(op, "strides"), _pair(op, "kernel")
            return _table(
                "Pool2DOptions", Padding=_padding(op, graph), StrideW=sw, StrideH=sh, FilterWidth=kw, FilterHeight=kh,
                FusedActivationFunction=_activation(op),
            )  # fmt: skip
        case OpKind.FULLY_CONNECTED:
            return _table(
                "FullyConnectedOptions", FusedActivationFunction=_activation(op), KeepNumDims=a["keep_num_dims"]
            )
        case OpKind.ADD:
            return _table("AddOptions", FusedActivationFunction=_activation(op))
        case OpKind.SUB:
            return _table("SubOptions", FusedActivationFunction=_activation(op))
        case OpKind.MUL:
            return _table("MulOptions", FusedActivationFunction=_activation(op))
        case OpKind.CONCATENATION:
            return _table("ConcatenationOptions", Axis=a["axis"], FusedActivationFunction=_activation(op))
        case OpKind.SOFTMAX:
            return _table("SoftmaxOptions", Beta=a["beta"])
        case OpKind.LEAKY_RELU:
            return _table("LeakyReluOptions", Alpha=a["alpha"])
        case OpKind.MEAN:
            return _table("ReducerOptions", KeepDims=a["keep_dims"])
        case OpKind.SPLIT:
            name = "SplitOptions" if equal_parts(op) else "SplitVOptions"
            return _table(name, NumSplits=len(op.outputs))
        case OpKind.RESIZE_BILINEAR | OpKind.RESIZE_NEAREST_NEIGHBOR:
            name = "ResizeBilinearOptions" if op.kind is OpKind.RESIZE_BILINEAR else "ResizeNearestNeighborOptions"
            return _table(name, AlignCorners=a["align_corners"], HalfPixelCenters=a["half_pixel_centers"])
        case OpKind.STRIDED_SLICE:
            return _table("StridedSliceOptions")
        case OpKind.PAD:
            return _table("PadV2Options" if "value" in a else "PadOptions")
        case OpKind.RESHAPE:
            return _reshape_options(a["shape"])
        case OpKind.TRANSPOSE | OpKind.SLICE | OpKind.QUANTIZE | OpKind.DEQUANTIZE | OpKind.HARD_SWISH:
            names = {
                OpKind.TRANSPOSE: "TransposeOptions", OpKind.SLICE: "SliceOptions", OpKind.QUANTIZE: "QuantizeOptions",
                OpKind.DEQUANTIZE: "DequantizeOptions", OpKind.HARD_SWISH: "HardSwishOptions",
            }  # fmt: skip
            return _table(names[op.kind])
        case _:
            return None


def _reshape_options(shape: tuple[int, ...]) -> tuple[int, Callable[[Any], int]]:
    def write(b: Any) -> int:
        new_shape = int32s(b, shape)
        schema.ReshapeOptionsStart(b)
        schema.ReshapeOptionsAddNewShape(b, new_shape)
        return int(schema.ReshapeOptionsEnd(b))

    return int(schema.BuiltinOptions.ReshapeOptions), write


def equal_parts(op: Op) -> bool:
    """Whether a split makes parts of one size."""
    sizes = op.attributes["sizes"]
    assert isinstance(sizes, tuple)
    return len(set(sizes)) == 1


def _constants(op: Op, graph: Graph) -> list[tuple[str, Any]]:
    """Constant inputs that TFLite wants as tensors: (suffix of the name, int32 array), in the order of the inputs."""
    a: Any = op.attributes
    match op.kind:
        case OpKind.TRANSPOSE:
            return [("permutation", a["permutation"])]
        case OpKind.MEAN:
            return [("axes", a["axes"])]
        case OpKind.PAD:
            return [("paddings", a["paddings"])]
        case OpKind.SLICE:
            return [("begin", a["begin"]), ("size", a["size"])]
        case OpKind.STRIDED_SLICE:
            return [("begin", a["begin"]), ("end", a["end"]), ("strides", a["strides"])]
        case OpKind.RESIZE_BILINEAR | OpKind.RESIZE_NEAREST_NEIGHBOR:
            return [("size", a["size"])]
        case _:
            return []


def builtin_of(op: Op) -> str:
    """The builtin operator that an operator of the graph becomes."""
    if op.kind is OpKind.PAD and "value" in op.attributes:
        return "PADV2"
    if op.kind is OpKind.SPLIT and not equal_parts(op):
        return "SPLIT_V"
    return op.kind.value


def add_operator(builder: FileBuilder, op: Op, graph: Graph) -> None:
    """Add an operator with its constant inputs."""

    def constant(suffix: str, array: Any, like: Tensor | None = None) -> str:
        name = f"{op.outputs[0]}/{suffix}"
        while name in builder.tensors:
            name += "_"
        array = np.asarray(array, np.int32) if like is None else array
        dtype = DType.INT32 if like is None else like.dtype
        builder.tensors[name] = Tensor(name, array.shape, dtype, None if like is None else like.quantization, array)
        return name

    source = graph.tensors[op.inputs[0]]  # type: ignore[index]
    extra = [constant(suffix, array) for suffix, array in _constants(op, graph)]
    name, inputs = builtin_of(op), [*op.inputs, *extra]
    if name == "PADV2":
        q, value = source.quantization, np.asarray([op.attributes["value"]], np.float32)
        inputs.append(constant("value", value if q is None else quantize(value, q, source.dtype.value), source))
    if name == "SPLIT":
        inputs = [constant("axis", np.asarray(op.attributes["axis"])), *op.inputs]
    if name == "SPLIT_V":
        inputs += [constant("sizes", op.attributes["sizes"]), constant("axis", np.asarray(op.attributes["axis"]))]
    result = graph.tensors[op.outputs[0]].dtype
    version = operator_version(
        name,
        dtypes={result} if name == "QUANTIZE" else {source.dtype, result},
        keep_num_dims=bool(op.attributes.get("keep_num_dims", False)),
        dilated=op.attributes.get("dilations", (1, 1)) != (1, 1),
        half_pixel=bool(op.attributes.get("half_pixel_centers", False) or op.attributes.get("align_corners", False)),
    )
    options = _options(op, graph)
    options_type, write = (0, None) if options is None else options
    builder.ops.append(Encoded(CODES[name], version, tuple(inputs), op.outputs, options_type, write))
