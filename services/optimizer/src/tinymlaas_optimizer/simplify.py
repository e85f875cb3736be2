"""Fold and simplify a float model: constants, BatchNormalization, dead code; biases where integer kernels want them."""

from __future__ import annotations

import tempfile
from math import prod
from pathlib import Path
from typing import Final

import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference, version_converter

from tinymlaas_optimizer.errors import LimitExceeded, NotFloat, NotQuantizable
from tinymlaas_optimizer.graphs import drop_unused, readers
from tinymlaas_optimizer.runtime import session

# Per-channel DequantizeLinear came with this opset.
OPSET: Final = 13
MAX_FOLDED_BYTES: Final = 256 << 20
_QUANTIZED: Final = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    }
)


def simplify(model: ModelProto) -> ModelProto:
    """A model of the same function with constants folded; its opset is at least 13 and every tensor has its shape.

    The model must have passed `tinymlaas_modelkit.check`. Raises NotFloat, NotQuantizable, LimitExceeded.
    """
    quantized = next((node for node in model.graph.node if node.op_type in _QUANTIZED), None)
    if quantized is not None:
        raise NotFloat(
            f"the model has operators of type {quantized.op_type}", op=quantized.op_type, node=quantized.name
        )
    model = at_opset(model, OPSET)
    _bound_folding(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        session(model, optimize=True, save_to=path)
        folded = onnx.load(path, load_external_data=False)
    foreign = next((node for node in folded.graph.node if node.domain not in ("", "ai.onnx")), None)
    if foreign is not None:
        raise NotQuantizable(
            f"operator {foreign.op_type} of domain {foreign.domain} came of folding", op=foreign.op_type
        )
    _keep_standard_opset(folded)
    _add_biases(folded)
    drop_unused(folded)
    return with_shapes(folded)


def at_opset(model: ModelProto, least: int) -> ModelProto:
    """A copy of the model at this opset or the newer one that it has; NotQuantizable if it can't be converted."""
    version = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if version >= least:
        copy = ModelProto()
        copy.CopyFrom(model)
        return copy
    try:
        return version_converter.convert_version(model, least)
    except (RuntimeError, ValueError) as error:
        raise NotQuantizable(f"opset {version} can't be converted to {least}: {error}", op="opset_import") from error


def with_shapes(model: ModelProto) -> ModelProto:
    """The model with the inferred type and shape of every tensor, and no declared ones besides."""
    del model.graph.value_info[:]
    return shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def _bound_folding(model: ModelProto) -> None:
    """LimitExceeded if folding would make constants of more than `MAX_FOLDED_BYTES` together."""
    inferred = with_shapes(model)
    sizes = {
        value.name: prod(dim.dim_value for dim in value.type.tensor_type.shape.dim) * 8
        for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    constant = {tensor.name for tensor in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        # Shapes are static, so what is computed from them alone is constant as well.
        if node.op_type in ("Shape", "Size") or all(name in constant for name in node.input if name):
            constant.update(node.output)
            total += sum(sizes.get(name, 0) for name in node.output)
    if total > MAX_FOLDED_BYTES:
        raise LimitExceeded("bytes of folded constants", total, MAX_FOLDED_BYTES)


def _keep_standard_opset(model: ModelProto) -> None:
    """ONNX Runtime imports its own domains into every file that it saves."""
    version = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", version))


def _add_biases(model: ModelProto) -> None:
    """Turn MatMul + Add of constants on matrices into Gemm, whose bias is kept as int32 when quantized."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = shapes_of(with_shapes(model))
    reading = readers(model.graph)
    outputs = {value.name for value in model.graph.output}
    gone: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in constants or len(shapes.get(node.input[0], ())) != 2:
            continue
        (product,) = node.output
        following = reading.get(product, [])
        if product in outputs or len(following) != 1 or following[0].op_type != "Add":
            continue
        add = following[0]
        bias = add.input[1] if add.input[0] == product else add.input[0]
        width = shapes[product][-1]
        if bias not in constants or prod(constants[bias].dims) != width or constants[bias].dims[-1:] != [width]:
            continue
        flat = numpy_helper.to_array(constants[bias]).reshape(width)
        name = f"{bias}_of_{product}"
        model.graph.initializer.append(numpy_helper.from_array(flat, name))
        node.op_type = "Gemm"
        node.input.append(name)
        node.output[0] = add.output[0]
        gone.append(add)
    for add in gone:
        model.graph.node.remove(add)


def shapes_of(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """The static shape of every tensor that is not constant, of a model whose shapes are inferred."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}
