"""Float ONNX to QDQ ONNX by ONNX Runtime's quantizer, with every scale given, and tidied for integer kernels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np
from onnx import ModelProto
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from tinymlaas_optimizer.calibrate import Range
from tinymlaas_optimizer.graphs import drop_unused, readers
from tinymlaas_optimizer.recipe import Activations, Border
from tinymlaas_optimizer.scales import Scale
from tinymlaas_optimizer.simplify import at_opset

_ACTIVATIONS: Final = frozenset({"Relu", "Clip"})
# Operators into whose kernels an activation function is fused.
_FUSING: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "AveragePool", "MaxPool"})


# The first opset whose QuantizeLinear takes int16 and int4.
WIDE_OPSET: Final = 21
_TYPES: Final = {
    Activations.INT8: (QuantType.QInt8, np.int8),
    Activations.INT16: (QuantType.QInt16, np.int16),
}


def quantize(
    model: ModelProto,
    ranges: Mapping[str, Range],
    scales: Mapping[str, Scale],
    *,
    per_channel: bool,
    border: Border,
    only: Collection[str] = (),
    exclude: Collection[str] = (),
) -> ModelProto:
    """The QDQ form: activations with the given scales, int8 symmetric weights, int32 biases.

    Operators and their activation function are not separated by Q/DQ; with integer borders no Q or DQ stands at them.
    Nodes in `exclude`, or not in `only` (empty: all), stay float.
    """
    wide = any(scale.dtype is Activations.INT16 for scale in scales.values())
    copy = at_opset(model, WIDE_OPSET) if wide else ModelProto.FromString(model.SerializeToString())
    overrides = {
        name: [
            {
                "scale": np.array(scale.scale, np.float32),
                "zero_point": np.array(scale.zero_point, _TYPES[scale.dtype][1]),
                "quant_type": _TYPES[scale.dtype][0],
            }
        ]
        for name, scale in scales.items()
    }
    seen = {
        name: TensorData(lowest=np.array(found.low, np.float32), highest=np.array(found.high, np.float32))
        for name, found in ranges.items()
    }
    quantizer = QDQQuantizer(
        copy,
        per_channel,
        False,
        QuantType.QInt8,
        QuantType.QInt8,
        TensorsData(CalibrationMethod.MinMax, seen),
        sorted(only),
        sorted(exclude),
        sorted({node.op_type for node in copy.graph.node}),
        {
            "ActivationSymmetric": False,
            "WeightSymmetric": True,
            "QDQKeepRemovableActivations": True,
            # Also where a Reshape or Transpose stands between the input and the first operator.
            "ForceQuantizeNoInputCheck": True,
            "TensorQuantOverrides": overrides,
        },
    )
    quantized: ModelProto = quantizer.quantize_model()
    _fuse_activations(quantized)
    if border is Border.INTEGER:
        _integer_inputs(quantized)
        _integer_outputs(quantized)
    drop_unused(quantized)
    return quantized


def _fuse_activations(model: ModelProto) -> None:
    """Remove the Q/DQ between an operator and its Relu or Clip, which integer kernels compute in one go."""
    reading = readers(model.graph)
    writers = {name: node for node in model.graph.node for name in node.output}
    outputs = {value.name for value in model.graph.output}
    gone = []
    for node in model.graph.node:
        if node.op_type not in _ACTIVATIONS:
            continue
        dq = writers.get(node.input[0])
        q = writers.get(dq.input[0]) if dq is not None and dq.op_type == "DequantizeLinear" else None
        maker = writers.get(q.input[0]) if q is not None and q.op_type == "QuantizeLinear" else None
        if dq is None or q is None or maker is None or maker.op_type not in _FUSING:
            continue
        chain = (q.input[0], q.output[0], dq.output[0])
        if any(len(reading.get(name, [])) != 1 or name in outputs for name in chain):
            continue
        node.input[0] = q.input[0]
        gone += [q, dq]
    for node in gone:
        model.graph.node.remove(node)


def _integer_inputs(model: ModelProto) -> None:
    """Let inputs that are only quantized be int8 themselves."""
    for value in model.graph.input:
        following = readers(model.graph).get(value.name, [])
        if not following or any(node.op_type != "QuantizeLinear" for node in following):
            continue
        if len({(node.input[1], node.input[2]) for node in following}) != 1:
            continue
        replaced = {node.output[0] for node in following}
        for node in model.graph.node:
            for position, name in enumerate(node.input):
                if name in replaced:
                    node.input[position] = value.name
        for node in following:
            model.graph.node.remove(node)
        value.type.tensor_type.elem_type = _element_type(model, following[0].input[2])


def _integer_outputs(model: ModelProto) -> None:
    """Let outputs that come from a DequantizeLinear be its int8 input."""
    for value in model.graph.output:
        dq = next((node for node in model.graph.node if value.name in node.output), None)
        if dq is None or dq.op_type != "DequantizeLinear":
            continue
        q = next((node for node in model.graph.node if dq.input[0] in node.output), None)
        if q is None:
            continue
        integers = q.output[list(q.output).index(dq.input[0])]
        real = f"{value.name}_real"
        for node in model.graph.node:
            for position, name in enumerate(node.input):
                if name == value.name:
                    node.input[position] = real
                elif name == integers:
                    node.input[position] = value.name
        q.output[list(q.output).index(integers)] = value.name
        dq.output[0] = real
        value.type.tensor_type.elem_type = _element_type(model, q.input[2])


def _element_type(model: ModelProto, zero_point: str) -> int:
    return int(next(tensor.data_type for tensor in model.graph.initializer if tensor.name == zero_point))
