"""`python -m bench.rounding`: int8 modules with `rounding: onnx` against ONNX Runtime, and ONNX Runtime against itself.

Runs in the environment of compiler-tvm. Counts samples whose outputs are all equal, and gives the largest difference in steps:
of the module on a simulated Cortex-M4, and of ONNX Runtime with its optimizations, both against ONNX Runtime without them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime import GraphOptimizationLevel

from bench.simulated import TARGET, infer
from tinymlaas_compiler_tvm import compile_model

ZOO = Path(__file__).resolve().parent.parent / "zoo"
MODELS = ("kws", "ic", "vww", "ad", "sww")
Steps = npt.NDArray[np.int64]


def session_of(model: bytes, level: GraphOptimizationLevel) -> onnxruntime.InferenceSession:
    """ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def largest(have: npt.ArrayLike, want: Steps) -> int:
    """The largest difference in steps."""
    return int(np.abs(np.asarray(have, np.int64).reshape(-1) - want).max())


def measure(name: str) -> tuple[list[int], list[int]]:
    """Largest difference of each sample: the module's, and that of ONNX Runtime with all optimizations."""
    model = (ZOO / name / f"{name}_int8_qdq.onnx").read_bytes()
    parts = compile_model(model, TARGET, {"rounding": "onnx"})
    plain = session_of(model, GraphOptimizationLevel.ORT_DISABLE_ALL)
    optimized = session_of(model, GraphOptimizationLevel.ORT_ENABLE_ALL)
    given = plain.get_inputs()[0]
    with np.load(ZOO / name / "samples.npz") as data:
        samples = data["input_int8"]
    ours, theirs = [], []
    for sample in samples:
        x = sample.reshape(given.shape)
        want = np.asarray(plain.run(None, {given.name: x})[0], np.int64).reshape(-1)
        (have,), _ = infer(parts, [sample.reshape(parts.inputs[0].shape)])
        ours.append(largest(have, want))
        theirs.append(largest(optimized.run(None, {given.name: x})[0], want))
    return ours, theirs


def main() -> int:
    """Print a line a model."""
    print(f"onnxruntime {onnxruntime.__version__}; equal samples and largest difference in steps of int8 outputs")
    print(f"{'model':8}{'samples':>8}{'module equal':>14}{'largest':>9}{'optimized equal':>17}{'largest':>9}")
    for name in MODELS:
        ours, theirs = measure(name)
        print(
            f"{name:8}{len(ours):8}{ours.count(0):14}{max(ours):9}{theirs.count(0):17}{max(theirs):9}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
