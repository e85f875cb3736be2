"""ONNX Runtime sessions: one thread, quiet, on the CPU, so that the same request gives the same bits."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
from onnx import ModelProto


def session(model: bytes | ModelProto, *, optimize: bool = False, save_to: Path | None = None) -> ort.InferenceSession:
    """A session on a model that has been checked; with `save_to` the folded model is written there.

    `optimize` is ONNX Runtime's basic level: rewrites that stay inside ONNX and change no semantics.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_BASIC if optimize else level.ORT_DISABLE_ALL
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
