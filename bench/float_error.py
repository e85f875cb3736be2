"""`python -m bench.float_error`: float modules on the simulator against ONNX Runtime and a float64 evaluation of the same file.

Runs in the environment of compiler-tvm. Errors are the largest of an output tensor, relative to its largest magnitude.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from bench.simulated import TARGET, infer
from tinymlaas_compiler_tvm import compile_model

ZOO = Path(__file__).resolve().parent.parent / "zoo"
# Samples a model: larger ones take the simulator long.
SAMPLES = {"ad": 16, "kws": 10, "ic": 4, "vww": 3}
Doubles = npt.NDArray[np.float64]


def in_float64(model: bytes) -> ReferenceEvaluator:
    """The model with all its floats as doubles, for ONNX's reference evaluator."""
    wide = onnx.load_from_string(model)
    constants = [*wide.graph.initializer, *(a.t for node in wide.graph.node for a in node.attribute)]
    for tensor in constants:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*wide.graph.input, *wide.graph.output, *wide.graph.value_info):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return ReferenceEvaluator(wide)


def error(have: Doubles, want: Doubles) -> float:
    """The largest difference, relative to the largest magnitude that is wanted."""
    return float(np.abs(have - want).max() / np.abs(want).max())


def measure(name: str, samples: int) -> tuple[float, float, float]:
    """Largest errors over samples: module against ONNX Runtime, module against float64, ONNX Runtime against float64."""
    model = (ZOO / name / f"{name}_float.onnx").read_bytes()
    parts = compile_model(model, TARGET)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session, exact = onnxruntime.InferenceSession(model, options), in_float64(model)
    given = session.get_inputs()[0]
    worst = (0.0, 0.0, 0.0)
    with np.load(ZOO / name / "samples.npz") as data:
        chosen = data["input_float"][:samples]
    for sample in chosen:
        x = np.ascontiguousarray(sample, np.float32).reshape(parts.inputs[0].shape)
        (output,), _ = infer(parts, [x])
        ours = output.astype(np.float64).reshape(-1)
        theirs = np.asarray(session.run(None, {given.name: x})[0]).astype(np.float64).reshape(-1)
        truth = np.asarray(exact.run(None, {given.name: x.astype(np.float64)})[0]).reshape(-1)
        found = error(ours, theirs), error(ours, truth), error(theirs, truth)
        worst = max(worst[0], found[0]), max(worst[1], found[1]), max(worst[2], found[2])
    return worst


def main() -> int:
    """Print a line a model."""
    print(f"{'model':8}{'samples':>8}{'to ONNX Runtime':>18}{'to float64':>14}{'ONNX Runtime to float64':>26}")
    for name, samples in SAMPLES.items():
        found = measure(name, samples)
        print(f"{name:8}{samples:8}{found[0]:18.1e}{found[1]:14.1e}{found[2]:26.1e}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
