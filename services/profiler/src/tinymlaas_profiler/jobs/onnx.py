"""Job: run an ONNX model with ONNX Runtime."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from tinymlaas_profiler.errors import ProfilerError

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


def run(request: dict[str, Any], blobs: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """Run model `blobs[0]` on each sample; further blobs are input tensors, sample by sample."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Fused int8 kernels saturate in 16 bits on CPUs without VNNI; a reference must not depend on the machine.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        parsed = onnx.load_model_from_string(blobs[0])
        session = onnxruntime.InferenceSession(blobs[0], options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ProfilerError(
            "MODEL_INVALID",
            f"ONNX Runtime refuses the model: {str(error)[:500]}",
            metadata={"where": "model", "detail": str(error)[:500]},
        ) from error
    inputs = [_spec(value, parsed) for value in session.get_inputs()]
    outputs = [_spec(value, parsed) for value in session.get_outputs()]
    tensors = blobs[1:]
    if not inputs or len(tensors) % len(inputs):
        raise ProfilerError("INPUT_INVALID", f"{len(tensors)} tensors for a model with {len(inputs)} inputs")
    results: list[bytes] = []
    for first in range(0, len(tensors), len(inputs)):
        feed = {spec["name"]: _as_array(tensors[first + index], spec) for index, spec in enumerate(inputs)}
        for value in session.run([spec["name"] for spec in outputs], feed):
            results.append(np.ascontiguousarray(value).tobytes())
    return {"inputs": inputs, "outputs": outputs}, results


def _spec(value: Any, model: onnx.ModelProto) -> dict[str, Any]:
    if value.type not in _DTYPES:
        raise ProfilerError(
            "MODEL_INVALID",
            f"tensor {value.name!r} of {value.type} is not served",
            metadata={"where": value.name, "detail": value.type},
        )
    if any(not isinstance(size, int) or size <= 0 for size in value.shape):
        raise ProfilerError(
            "MODEL_INVALID",
            f"tensor {value.name!r} has no static shape",
            metadata={"where": value.name, "detail": str(value.shape)},
        )
    scale, zero_point = _quantization(value.name, model)
    return {
        "name": value.name,
        "dtype": _DTYPES[value.type],
        "shape": [int(n) for n in value.shape],
        "scale": scale,
        "zero_point": zero_point,
    }


def _quantization(name: str, model: onnx.ModelProto) -> tuple[float, int]:
    """Find scale and zero point of a graph input or output at the Quantize or DequantizeLinear that touches it."""
    constants = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        source = node.op_type == "QuantizeLinear" and name in node.output
        sink = node.op_type == "DequantizeLinear" and node.input and node.input[0] == name
        if (source or sink) and node.input[1] in constants:
            scale = numpy_helper.to_array(constants[node.input[1]])
            zero = constants.get(node.input[2]) if len(node.input) > 2 else None
            if scale.size == 1:
                return float(scale.reshape(-1)[0]), int(numpy_helper.to_array(zero).reshape(-1)[0]) if zero else 0
    return 0.0, 0


def _as_array(data: bytes, spec: dict[str, Any]) -> np.ndarray[Any, Any]:
    dtype, shape = np.dtype(spec["dtype"]), tuple(spec["shape"])
    need = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(data) != need:
        raise ProfilerError(
            "INPUT_INVALID",
            f"input {spec['name']!r} has {len(data)} bytes instead of {need}",
            metadata={"input": spec["name"], "need": str(need), "have": str(len(data))},
        )
    return np.frombuffer(data, dtype=dtype).reshape(shape)
