"""Shared by the converters' tests: the zoo, the two reference executors, and small ONNX models made on the spot."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tflite_micro.python.tflite_micro import runtime

sys.path.insert(0, str(Path(__file__).parent))

Array = npt.NDArray[Any]
ZOO = Path(__file__).parents[3] / "zoo"
MODELS = ("kws", "ad", "ic", "vww", "sww")


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The folder of the models that ship with the product."""
    return ZOO


def _run_tflm(data: bytes, inputs: Array) -> Array:
    interpreter = runtime.Interpreter.from_bytes(data, arena_size=2_000_000)
    outputs = []
    for sample in inputs:
        interpreter.set_input(np.ascontiguousarray(sample[None]), 0)
        interpreter.invoke()
        outputs.append(np.array(interpreter.get_output(0))[0])
    return np.stack(outputs)


def _run_onnx(data: bytes, inputs: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # Its integer kernels add pairs of products in 16 bits with saturation on processors without VNNI: other sums than
    # the file means. Without fusion it computes what the file says, in float.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.stack([session.run(None, {name: sample[None]})[0][0] for sample in inputs])


@pytest.fixture(scope="session")
def run_tflm() -> Callable[[bytes, Array], Array]:
    """Run a TFLite file in the TFLite Micro interpreter, one sample after the other."""
    return _run_tflm


@pytest.fixture(scope="session")
def run_onnx() -> Callable[[bytes, Array], Array]:
    """Run an ONNX file in ONNX Runtime, one sample after the other."""
    return _run_onnx


def _make_onnx(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    constants: dict[str, Array],
    outputs: Sequence[str] = ("y",),
    opset: int = 14,
    dtype: int = TensorProto.FLOAT,
) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", dtype, list(shape))],
        [helper.make_tensor_value_info(o, dtype, None) for o in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    model = onnx.shape_inference.infer_shapes(model)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="session")
def make_onnx() -> Callable[..., bytes]:
    """Make an ONNX file with input `x` from nodes and constants."""
    return _make_onnx
