"""Least-squares refit: after pruning, each layer gets weights that give back its old outputs from its new inputs.

Layer by layer from the input on: w minimizes |Y - X w|^2 + k |w - w0|^2, where Y is what the layer gave in the model
before, X what it reads now, w0 its pruned weights; pruned weights stay zero. Source: He et al. 2017 (reconstruction after
channel pruning), with ridge regression towards w0, since samples are few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper

from tinymlaas_optimizer.calibrate import Progress
from tinymlaas_optimizer.channels import Kept
from tinymlaas_optimizer.graphs import drop_unused
from tinymlaas_optimizer.layers import Layer, attribute, constant, find_layers, set_constant
from tinymlaas_optimizer.prune import Mask
from tinymlaas_optimizer.runtime import session
from tinymlaas_optimizer.samples import Samples

Array = npt.NDArray[Any]
_RIDGE: Final = 0.01
# Rows of X that one sample gives at most (positions of the output, evenly spaced), and columns of X.
_MAX_ROWS: Final = 1024
MAX_COLUMNS: Final = 2048
# Bits of the fitted weights' mantissas: libraries sum in different orders on different machines, and this is coarser.
_BITS: Final = 14


def refit(
    model: ModelProto,
    before: ModelProto,
    samples: Samples,
    masks: Mapping[str, Mask],
    kept: Mapping[str, Kept],
    progress: Progress,
) -> list[str]:
    """Refit the layers of `model` in place to what the layers of the same name in `before` give; returns their names.

    `masks` are true where a weight may be other than zero, `kept` the outputs that a layer still has. Left as they are:
    transposed, grouped (but for depthwise) and other than two-dimensional convolutions, and layers of more than
    `MAX_COLUMNS` inputs an output.
    """
    old = {layer.name: layer for layer in find_layers(before)}
    layers = find_layers(model)
    done = []
    for index, layer in enumerate(layers):
        weights = constant(model, layer.weights)
        if _fits(layer, weights) and layer.name in old:
            _refit_layer(model, before, layer, samples, masks.get(layer.name), kept.get(layer.name))
            done.append(layer.name)
        progress("refit", (index + 1) / len(layers))
    return done


def _fits(layer: Layer, weights: Array) -> bool:
    if layer.op in ("Gemm", "MatMul"):
        return bool(weights.shape[1 - layer.output_axis] <= MAX_COLUMNS)
    depthwise = layer.group == weights.shape[0] and weights.shape[1] == 1
    plain = layer.op == "Conv" and weights.ndim == 4 and (layer.group == 1 or depthwise)
    return bool(plain and np.prod(weights.shape[1:]) <= MAX_COLUMNS)


def _refit_layer(
    model: ModelProto, before: ModelProto, layer: Layer, samples: Samples, mask: Mask | None, kept: Kept | None
) -> None:
    node = next(node for node in model.graph.node if node.name == layer.name)
    old = next(node for node in before.graph.node if node.name == layer.name)
    weights = constant(model, layer.weights)
    conv = layer.op == "Conv"
    flat = weights.reshape(len(weights), -1) if conv or layer.output_axis == 0 else weights.T
    allowed = np.ones(flat.shape, np.bool_)
    if mask is not None:
        allowed = mask.reshape(flat.shape) if conv or layer.output_axis == 0 else mask.T
    groups = layer.group if conv else 1
    columns = flat.shape[1] + (1 if layer.bias else 0)
    gram, cross = np.zeros((groups, columns, columns)), np.zeros((groups, columns, len(flat) // groups))
    inputs, outputs = _values(model, node.input[0], samples), _values(before, old.output[0], samples)
    for given, wanted in zip(inputs, outputs, strict=True):
        rows, targets = _rows(node, given, wanted, weights.shape, kept if kept is not None else None)
        if layer.bias:
            rows = np.concatenate([rows, np.ones((*rows.shape[:2], 1))], axis=2)
        gram += rows.transpose(0, 2, 1) @ rows
        cross += rows.transpose(0, 2, 1) @ targets
    bias = constant(model, layer.bias).astype(np.float64) if layer.bias else None
    start = flat.astype(np.float64)
    if bias is not None:
        start = np.concatenate([start, np.broadcast_to(bias.reshape(-1), (len(flat),))[:, None]], axis=1)
        allowed = np.concatenate([allowed, np.ones((len(flat), 1), np.bool_)], axis=1)
    fitted = _solve(gram, cross, start, allowed)
    new = _coarse(fitted[:, : flat.shape[1]])
    set_constant(model, layer.weights, new.reshape(weights.shape) if conv or layer.output_axis == 0 else new.T)
    if bias is not None:
        set_constant(model, layer.bias, _coarse(fitted[:, -1]))


def _solve(gram: Array, cross: Array, start: Array, allowed: Mask) -> Array:
    """Rows of weights [outputs, columns]; outputs with the same pattern of allowed weights are solved together."""
    fitted = np.zeros_like(start)
    each = len(start) // len(gram)
    patterns: dict[tuple[int, bytes], list[int]] = {}
    for output in range(len(start)):
        patterns.setdefault((output // each, allowed[output].tobytes()), []).append(output)
    for (group, _), members in patterns.items():
        outputs = np.array(members)
        places = np.flatnonzero(allowed[outputs[0]])
        if not len(places):
            continue
        local = gram[group][np.ix_(places, places)]
        ridge = _RIDGE * max(float(np.trace(local)) / len(places), 1e-12)
        wanted = cross[group][np.ix_(places, outputs % each)]
        solved = np.linalg.solve(local + ridge * np.eye(len(places)), wanted + ridge * start[np.ix_(outputs, places)].T)
        fitted[np.ix_(outputs, places)] = solved.T
    return fitted


def _coarse(values: Array) -> Array:
    """float32 values rounded to `_BITS` bits of mantissa."""
    mantissa, exponent = np.frexp(values)
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, _BITS)), exponent - _BITS), np.float32)


def _values(model: ModelProto, name: str, samples: Samples) -> list[Array]:
    """A tensor of the model on each sample."""
    if name in samples.inputs:
        return [feed[name] for feed in samples.feeds()]
    part = ModelProto.FromString(model.SerializeToString())
    del part.graph.output[:]
    part.graph.output.append(helper.make_empty_tensor_value_info(name))
    drop_unused(part)
    runner = session(part)
    wanted = {value.name for value in runner.get_inputs()}
    return [
        runner.run([name], {key: value for key, value in feed.items() if key in wanted})[0] for feed in samples.feeds()
    ]


def _rows(node: NodeProto, given: Array, wanted: Array, shape: Sequence[int], kept: Kept | None) -> tuple[Array, Array]:
    """X [groups, rows, columns] and Y [groups, rows, outputs of a group] of one sample, in float64."""
    if node.op_type != "Conv":
        targets = wanted.reshape(-1, wanted.shape[-1])
        rows = given.reshape(-1, given.shape[-1])
        if node.op_type == "Gemm" and attribute(node, "transA", 0):
            rows = given.T
        targets = targets if kept is None else targets[:, kept]
        chosen = _spaced(len(rows))
        return rows[chosen][None].astype(np.float64), targets[chosen][None].astype(np.float64)
    strides = attribute(node, "strides", [1, 1])
    dilations = attribute(node, "dilations", [1, 1])
    top, left, bottom, right = _pads(node, given.shape[2:], shape[2:], strides, dilations)
    padded = np.pad(given[0], ((0, 0), (top, bottom), (left, right)))
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(shape[2:], dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(1, 2))
    windows = windows[:, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    channels, height, width = windows.shape[:3]
    chosen = _spaced(height * width)
    tall, wide = np.divmod(chosen, width)
    picked = windows[:, tall, wide].reshape(channels, len(chosen), -1).astype(np.float64)
    targets = wanted[0] if kept is None else wanted[0][kept]
    targets = targets.reshape(len(targets), -1)[:, chosen].astype(np.float64)
    if shape[0] > 1 and attribute(node, "group", 1) > 1:  # depthwise: a group a channel
        return picked, targets[:, :, None]
    return picked.transpose(1, 0, 2).reshape(1, len(chosen), -1), targets.T[None]


def _pads(
    node: NodeProto, size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[int, int, int, int]:
    mode = attribute(node, "auto_pad", b"NOTSET").decode()
    if mode in ("NOTSET", "VALID"):
        top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0]) if mode == "NOTSET" else [0, 0, 0, 0]
        return top, left, bottom, right
    first, last = [], []
    for length, width, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        whole = max((-(-length // stride) - 1) * stride + (width - 1) * dilation + 1 - length, 0)
        less, more = whole // 2, whole - whole // 2
        first.append(less if mode == "SAME_UPPER" else more)
        last.append(more if mode == "SAME_UPPER" else less)
    return first[0], first[1], last[0], last[1]


def _spaced(count: int) -> Array:
    """At most `_MAX_ROWS` of so many positions, evenly spaced."""
    return np.arange(count) if count <= _MAX_ROWS else np.linspace(0, count - 1, _MAX_ROWS).astype(np.int64)
