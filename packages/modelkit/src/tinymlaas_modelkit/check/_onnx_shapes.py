"""Shapes and types of an ONNX model by the onnx package's own checker and inference, compared with what the file
declares.

Only to be called in a process that may die: the libraries behind it are C++ and have crashed on files that pass every
check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.shape_inference
from onnx import ModelProto, NodeProto, helper

from tinymlaas_modelkit.shape_folding import infer_shapes

from ._limits import Limits
from ._onnx import CheckedOnnx, _label
from ._onnx_tensors import PACKED, check_dims, check_dtype
from ._rejection import ModelRejected, Problem
from ._report import ModelReport, Precision, TensorReport

# Operators that move values without changing them: the scale of a border tensor may stand beyond them.
_MOVES = frozenset(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"))
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]


def check_onnx_shapes(checked: CheckedOnnx, limits: Limits) -> ModelReport:
    """Run the checker and shape inference, and report; ModelRejected with the first problem."""
    try:
        onnx.checker.check_model(checked.model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelRejected(Problem.MALFORMED, "onnx.checker", str(error)) from error
    shapes = _infer(checked, limits)
    for value in (*checked.model.graph.output, *checked.model.graph.value_info):
        _compare(value, shapes)
    for node in checked.model.graph.node:
        _check_arithmetic(node, shapes)
    return _report(checked, shapes)


def _infer(checked: CheckedOnnx, limits: Limits) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and static shape of every tensor, from the inputs and constants alone."""
    bare = ModelProto()
    bare.CopyFrom(checked.model)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        output.type.Clear()
    try:
        inferred = infer_shapes(bare)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        text = str(error)
        problem = Problem.TYPE_MISMATCH if "TypeInferenceError" in text else Problem.SHAPE_MISMATCH
        raise ModelRejected(problem, "shape inference", text) from error
    shapes = dict(checked.inputs)
    shapes.update({name: (str(values.dtype), values.shape) for name, values in checked.constants.items()})
    known = {value.name: value for value in (*inferred.graph.value_info, *inferred.graph.output)}
    folded = {tensor.name: tensor for tensor in inferred.graph.initializer if tensor.name not in checked.constants}
    for node in checked.model.graph.node:
        for name in node.output:
            where = f"tensor {name} of {_label(node)}"
            if name in folded:
                dtype = check_dtype(folded[name].data_type, where)
                check_dims(folded[name].dims, np.dtype(dtype).itemsize, where, limits, empty=True)
                shapes[name] = dtype, tuple(folded[name].dims)
            elif name:
                shapes[name] = _inferred_shape(known.get(name), where, limits, constant=node.op_type == "Constant")
    return shapes


def _inferred_shape(
    value: onnx.ValueInfoProto | None, where: str, limits: Limits, *, constant: bool
) -> tuple[str, tuple[int, ...]]:
    kind = value.type.WhichOneof("value") if value is not None else None
    if value is None or kind is None:
        raise ModelRejected(Problem.SHAPE_NOT_STATIC, where, "its shape does not follow from the inputs' shapes")
    if kind != "tensor_type":
        raise ModelRejected(Problem.DTYPE_UNSUPPORTED, where, f"it is no tensor but {kind}", dtype=kind)
    tensor = value.type.tensor_type
    dtype = check_dtype(tensor.elem_type, where)
    if not tensor.HasField("shape") or any(dim.WhichOneof("value") != "dim_value" for dim in tensor.shape.dim):
        raise ModelRejected(Problem.SHAPE_NOT_STATIC, where, "its shape does not follow from the inputs' shapes")
    dims = [int(dim.dim_value) for dim in tensor.shape.dim]
    # Constants and shape arithmetic may well be empty lists (an unused `roi` of Resize); activations may not.
    check_dims(dims, np.dtype(dtype).itemsize, where, limits, empty=constant or dtype == "int64")
    return dtype, tuple(dims)


def _compare(value: onnx.ValueInfoProto, shapes: Shapes) -> None:
    """SHAPE_MISMATCH or TYPE_MISMATCH if a declared type is not the computed one; what is left open agrees."""
    if value.name not in shapes or not value.HasField("type"):
        return
    dtype, shape = shapes[value.name]
    where = f"tensor {value.name}"
    if value.type.WhichOneof("value") != "tensor_type":
        raise ModelRejected(Problem.TYPE_MISMATCH, where, "declared as something other than a tensor")
    declared = value.type.tensor_type
    if declared.elem_type and check_dtype(declared.elem_type, where) != dtype:
        raise ModelRejected(Problem.TYPE_MISMATCH, where, f"declared with another type than {dtype}, which is computed")
    if not declared.HasField("shape"):
        return
    dims = [int(dim.dim_value) if dim.HasField("dim_value") else None for dim in declared.shape.dim]
    if len(dims) != len(shape) or any(
        have is not None and have != real for have, real in zip(dims, shape, strict=False)
    ):
        raise ModelRejected(Problem.SHAPE_MISMATCH, where, f"declared as {dims}, computed as {list(shape)}")


def _check_arithmetic(node: NodeProto, shapes: Shapes) -> None:
    """SHAPE_MISMATCH where the inference of onnx does not look: channel counts, biases, scales."""

    def need(condition: bool, detail: str) -> None:
        if not condition:
            raise ModelRejected(Problem.SHAPE_MISMATCH, _label(node), detail, op=node.op_type, node=node.name)

    attributes: dict[str, Any] = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    given = [shapes[name][1] if name else None for name in node.input]
    x = given[0] if given else None
    if node.op_type in ("Conv", "ConvTranspose") and x is not None and given[1] is not None:
        w, group, direct = given[1], int(attributes.get("group", 1)), node.op_type == "Conv"
        need(len(w) == len(x) >= 3, f"input {list(x)}, weights {list(w)}")
        need(
            group > 0 and x[1] % group == 0 and w[0] % group == 0, f"{group} groups of {x[1]} channels, {w[0]} filters"
        )
        need(w[1] * group == x[1] if direct else w[0] == x[1], f"weights {list(w)} do not take {x[1]} channels")
        channels = w[0] if direct else w[1] * group
        need(
            len(given) < 3 or given[2] is None or given[2] == (channels,), f"bias {given[2:3]} for {channels} channels"
        )
        kernel = attributes.get("kernel_shape")
        need(kernel is None or list(kernel) == list(w[2:]), f"kernel_shape {kernel}, weights {list(w)}")
    elif node.op_type == "BatchNormalization" and x is not None:
        need(
            len(x) >= 2 and all(side == (x[1],) for side in given[1:5]), f"statistics {given[1:5]} for input {list(x)}"
        )
    elif node.op_type == "Gemm" and x is not None and given[1] is not None:
        a = x[::-1] if attributes.get("transA") else x
        b = given[1][::-1] if attributes.get("transB") else given[1]
        need(len(a) == len(b) == 2 and a[1] == b[0], f"{list(a)} times {list(b)}")
        bias = given[2] if len(given) > 2 else None
        if bias is not None:
            try:
                fits = np.broadcast_shapes(bias, (a[0], b[1])) == (a[0], b[1])
            except ValueError:
                fits = False
            need(fits, f"bias {list(bias)} for a result of {[a[0], b[1]]}")
    elif node.op_type in ("QuantizeLinear", "DequantizeLinear") and x is not None and given[1] is not None:
        count = int(np.prod(given[1], dtype=np.int64))
        axis = int(attributes.get("axis", 1))
        if given[1] not in ((), (1,)) and len(given[1]) == 1:
            need(-len(x) <= axis < len(x) and x[axis] == count, f"{count} scales for input {list(x)} on axis {axis}")


def _report(checked: CheckedOnnx, shapes: Shapes) -> ModelReport:
    graph = checked.model.graph
    operators = Counter(node.op_type for node in graph.node)
    readers = {name: node for node in reversed(graph.node) for name in node.input}
    writers = {name: node for node in graph.node for name in node.output}

    def tensor(name: str, step: Mapping[str, NodeProto], side: str, op: str) -> TensorReport:
        dtype, shape = shapes[name]
        neighbour = step.get(name)
        for _ in graph.node:
            if neighbour is None or neighbour.op_type not in _MOVES:
                break
            neighbour = step.get(getattr(neighbour, side)[0])
        if neighbour is None or neighbour.op_type != op or dtype not in ("int8", "uint8", "int16"):
            return TensorReport(name, dtype, shape)
        scale = checked.constants.get(neighbour.input[1])
        zero = checked.constants.get(neighbour.input[2]) if len(neighbour.input) > 2 else np.zeros(1, np.int8)
        if scale is None or zero is None or scale.size != 1:
            return TensorReport(name, dtype, shape)
        return TensorReport(name, dtype, shape, float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]))

    scales = {
        name for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear") for name in node.input[1:]
    }
    used = {name for node in graph.node for name in node.input} - scales
    precision = Precision.FLOAT
    if operators["QuantizeLinear"]:
        precision = Precision.QUANTIZED
    elif operators["DequantizeLinear"] or any(shapes[name][0] in ("int8", "uint8") for name in used if name):
        precision = Precision.HYBRID
    return ModelReport(
        format="onnx",
        version=checked.opset,
        ir_version=int(checked.model.ir_version),
        inputs=tuple(tensor(name, readers, "output", "DequantizeLinear") for name in checked.inputs),
        outputs=tuple(tensor(value.name, writers, "input", "QuantizeLinear") for value in graph.output),
        operators=dict(sorted(operators.items())),
        nodes=len(graph.node),
        parameter_bytes=sum(_stored_bytes(values) for name, values in checked.constants.items() if name in used),
        precision=precision,
    )


def _stored_bytes(values: np.ndarray[Any, Any]) -> int:
    """Bytes that a constant takes in the file: 4-bit integers lie two to a byte."""
    return (values.size + 1) // 2 if values.dtype.name in PACKED.values() else values.nbytes
