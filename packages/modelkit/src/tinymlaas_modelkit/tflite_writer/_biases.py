"""Biases of operators on int16: TFLite's 16x8 kernels add in 64 bits, and read the bias so."""

from __future__ import annotations

import dataclasses

import numpy as np

from tinymlaas_modelkit.graph import DType, Graph, Op, OpKind, Quantization, Tensor
from tinymlaas_modelkit.tflite_writer._legalize import WEIGHTED


def with_wide_biases(graph: Graph) -> Graph:
    """The same graph whose convolutions and matrix products on int16 have biases of int64, at the same scales.

    With one of int32 TFLite Micro adds in 32 bits, which 600 products can exceed. Depthwise convolutions get one of zeros
    where they have none, since their kernel reads it all the same.
    """
    tensors = dict(graph.tensors)
    wide: dict[str, str] = {}
    ops = []
    for op in graph.ops:
        source = tensors[op.inputs[0]] if op.inputs[0] is not None else None
        if op.kind not in WEIGHTED or source is None or source.dtype is not DType.INT16:
            ops.append(op)
            continue
        bias = op.inputs[2]
        if bias is None and op.kind is not OpKind.DEPTHWISE_CONV_2D:
            ops.append(op)
            continue
        key = op.outputs[0] if bias is None else bias
        if key not in wide:
            given = _zeros(op, tensors, source) if bias is None else tensors[bias]
            name, number = f"{given.name}/int64", 0
            while name in tensors:
                number += 1
                name = f"{given.name}/int64_{number}"
            data = np.asarray(given.data).astype(np.int64)
            tensors[name] = dataclasses.replace(given, name=name, dtype=DType.INT64, data=data)
            wide[key] = name
        ops.append(dataclasses.replace(op, inputs=(op.inputs[0], op.inputs[1], wide[key])))
    return Graph(tensors, tuple(ops), graph.inputs, graph.outputs)


def _zeros(op: Op, tensors: dict[str, Tensor], source: Tensor) -> Tensor:
    filters = tensors[op.inputs[1] or ""].quantization
    assert filters is not None
    assert source.quantization is not None
    channels = tensors[op.outputs[0]].shape[-1]
    scales = np.asarray(np.float32(source.quantization.scale) * filters.scales, np.float32).reshape(-1)
    own = Quantization(scales, np.zeros(scales.shape, np.int32), 0 if scales.size > 1 else None)
    return Tensor(f"{op.outputs[0]}/bias", (channels,), DType.INT32, own, np.zeros(channels, np.int32))
