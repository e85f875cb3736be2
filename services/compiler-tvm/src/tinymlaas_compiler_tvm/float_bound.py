"""What is claimed of a float module's outputs: how near they are to ONNX Runtime's, and why (`tinymlaas_modelkit.float_bound`).

The outputs' scale is 1 where they end in a function of that range, and elsewhere what ONNX Runtime gives on pseudo-random inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tinymlaas_compiler_tvm.parts import Numerics, NumericsClass
from tinymlaas_modelkit.float_bound import FLOAT_TOLERANCE, largest_magnitude, output_scale

_SAMPLES = 4
# Operators whose results reach at most 1, or 1 in magnitude.
_UNIT_RANGE = frozenset({"Softmax", "Sigmoid", "Tanh", "HardSigmoid", "Softsign", "Sin", "Cos"})
_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


def float_numerics(onnx_bytes: bytes) -> tuple[NumericsClass, str]:
    """What is claimed of a float model's outputs, and a line that explains it; the file was checked before."""
    scale, source = _output_scale(onnx_bytes)
    line = f"outputs within {FLOAT_TOLERANCE:g} of themselves and of their scale {scale:g} ({source})"
    absolute = FLOAT_TOLERANCE * scale
    return NumericsClass(Numerics.WITHIN_TOLERANCE, "onnx", relative=FLOAT_TOLERANCE, absolute=absolute), line


def _output_scale(onnx_bytes: bytes) -> tuple[float, str]:
    import onnx

    graph = onnx.load_from_string(onnx_bytes).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    last = {makers.get(output.name, "") for output in graph.output}
    if last <= _UNIT_RANGE:
        return 1.0, "range of " + ", ".join(sorted(last))
    try:
        largest = _largest_output(onnx_bytes)
    except (
        Exception
    ) as error:  # ONNX Runtime has a type for each of its refusals, such as an index that random inputs give
        return 1.0, f"ONNX Runtime gives none: {type(error).__name__}"
    return output_scale(largest), "largest on pseudo-random inputs" if largest else "zeros"


def _largest_output(onnx_bytes: bytes) -> float:
    """The largest finite magnitude among float outputs over pseudo-random inputs; 0 where there is none."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
    random = np.random.Generator(np.random.PCG64(0))
    largest = 0.0
    for _ in range(_SAMPLES):
        given = {value.name: _values(random, value) for value in session.get_inputs()}
        largest = max(largest, largest_magnitude(np.asarray(output) for output in session.run(None, given)))
    return largest


def _values(random: np.random.Generator, value: Any) -> npt.NDArray[np.generic]:
    """Reals in -1..1; integers of 0 and 1, which are valid indices of nearly everything."""
    dtype = np.dtype(_NUMPY[value.type])
    shape = tuple(int(extent) for extent in value.shape)
    drawn = random.uniform(-1.0, 1.0, shape) if dtype.kind == "f" else random.integers(0, 2, shape)
    return drawn.astype(dtype)
