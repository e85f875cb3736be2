"""Models and samples for the optimizer's tests: those of the zoo, and small ones made here."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tinymlaas_optimizer import Optimized, Size, read_npz

ZOO = Path(__file__).resolve().parents[3] / "zoo"
N = helper.make_node
SEED = 3


@cache
def files(name: str) -> tuple[bytes, dict[str, npt.NDArray[Any]]]:
    """A float model of the zoo and its samples."""
    folder = ZOO / name
    return (folder / f"{name}_float.onnx").read_bytes(), read_npz((folder / "samples.npz").read_bytes())


def values(*shape: int) -> npt.NDArray[np.float32]:
    """Noise that depends on the shape alone."""
    return np.random.default_rng(SEED + sum(shape)).standard_normal(shape).astype(np.float32)


def model(
    nodes: list[NodeProto],
    constants: dict[str, npt.NDArray[Any]],
    shape: tuple[int, ...] = (1, 4, 8, 8),
    outputs: tuple[str, ...] = ("y",),
    opset: int = 17,
) -> bytes:
    """An ONNX file with input `x`."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    return onnx.shape_inference.infer_shapes(made).SerializeToString()


def size(of: Optimized) -> Size:
    """The size of what was made."""
    assert of.report.taken.size is not None
    return of.report.taken.size
