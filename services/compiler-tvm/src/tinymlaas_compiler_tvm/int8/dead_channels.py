"""Channels that never say anything are taken out of a graph before it is lowered; the outputs stay the same bit by bit.

Training with decay leaves layers whose channels are constant whatever the input (weights of zero, or an output scale so large
that no sum leaves one step). Ranges of every channel's values are carried forward, exactly: a layer's output is a monotone
function of its accumulator. What is constant goes into the biases of its readers; what nobody reads is not computed.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import numpy.typing as npt

from tinymlaas_compiler_tvm.errors import OpUnsupported
from tinymlaas_compiler_tvm.int8.channels import reference
from tinymlaas_compiler_tvm.int8.lowering import Lowering, Settings, activation_of, quantized
from tinymlaas_compiler_tvm.target import Machine
from tinymlaas_modelkit.graph import DType, Graph, Op, OpKind, Tensor

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_LAYERS = frozenset({OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.FULLY_CONNECTED})
_POOLS = frozenset({OpKind.AVERAGE_POOL_2D, OpKind.MAX_POOL_2D})
# Kernels take channels in groups of so many; a layer keeps that property.
_GROUP = 4


@dataclasses.dataclass(frozen=True)
class _Range:
    """Least and greatest value of each channel."""

    low: Int64s
    high: Int64s

    @property
    def constant(self) -> Bools:
        return np.equal(self.low, self.high)


def thinned(graph: Graph, machine: Machine, settings: Settings) -> Graph:
    """The graph without channels that no output depends on; the same graph where there are none.

    Operators and names stay; shapes, weights and biases change. Layers in forms that have no kernel are left alone.
    """
    state = Lowering(graph, machine, settings)
    try:
        ranges = _ranges(state)
        live = _live(graph, ranges)
    except OpUnsupported:
        return graph
    if all(mask.all() for mask in live.values()):
        return graph
    tensors = dict(graph.tensors)
    for name, mask in live.items():
        tensor = graph.tensor(name)
        tensors[name] = dataclasses.replace(tensor, shape=(*tensor.shape[:-1], int(mask.sum())))
    for op in graph.ops:
        if op.kind in _LAYERS and not _thin_layer(graph, op, ranges, live, tensors):
            return graph
    return dataclasses.replace(graph, tensors=tensors)


def _channels(tensor: Tensor) -> int:
    return tensor.shape[-1]


def _is_layer(graph: Graph, op: Op) -> bool:
    """Whether the operator is a layer whose weights can be thinned: constants that no other operator reads."""
    if op.kind not in _LAYERS or any(
        graph.tensor(str(name)).data is None for name in op.inputs[1:] if name is not None
    ):
        return False
    if graph.tensor(str(op.inputs[1])).dtype is not DType.INT8:
        return False
    if op.kind is OpKind.FULLY_CONNECTED:
        return _channels(graph.tensor(str(op.inputs[0]))) == graph.tensor(str(op.inputs[1])).shape[1]
    if op.kind is OpKind.DEPTHWISE_CONV_2D:
        return _channels(graph.tensor(str(op.inputs[0]))) == _channels(graph.tensor(op.outputs[0]))
    # Groups read only some of the channels.
    return _channels(graph.tensor(str(op.inputs[0]))) == graph.tensor(str(op.inputs[1])).shape[-1]


def _passes(graph: Graph, op: Op) -> bool:
    """Whether channel c of the output depends on channel c of the input alone, and is within its range."""
    if op.kind in _POOLS:
        return True
    first, second = graph.tensor(str(op.inputs[0])).shape, graph.tensor(op.outputs[0]).shape
    return op.kind is OpKind.RESHAPE and first[-1] == second[-1] and np.prod(first) == first[-1]


def _padded(op: Op) -> bool:
    return any(cast("tuple[int, ...]", op.attributes.get("pads", (0, 0, 0, 0))))


def _weights(graph: Graph, op: Op) -> Int64s:
    """[out channels, taps, in channels]; [channels, taps] of a depthwise layer."""
    data = graph.tensor(str(op.inputs[1])).data
    assert data is not None
    weights = data.astype(np.int64)
    if op.kind is OpKind.DEPTHWISE_CONV_2D:
        return weights.reshape(-1, weights.shape[-1]).T
    return weights.reshape(weights.shape[0], -1, weights.shape[-1])


def _ranges(state: Lowering) -> dict[str, _Range]:
    graph = state.graph
    found: dict[str, _Range] = {}
    for op in graph.ops:
        if not op.inputs or op.inputs[0] is None:
            continue
        name, out = op.inputs[0], op.outputs[0]
        full = np.full(_channels(graph.tensor(name)) if graph.tensor(name).shape else 1, 127, np.int64)
        given = found.get(name, _Range(-full - 1, full))
        if _is_layer(graph, op):
            found[out] = _layer_range(state, op, given)
        elif _passes(graph, op):
            found[out] = given
    return found


def _layer_range(state: Lowering, op: Op, given: _Range) -> _Range:
    graph = state.graph
    weights = _weights(graph, op)
    _, _, in_zero = quantized(state, op, op.inputs[0])
    _, out_scale, out_zero = quantized(state, op, op.outputs[0])
    low, high = given.low - in_zero, given.high - in_zero
    if _padded(op):
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    if op.kind is OpKind.DEPTHWISE_CONV_2D:
        low, high = low[:, None], high[:, None]
    least, greatest = np.minimum(weights * low, weights * high), np.maximum(weights * low, weights * high)
    axes = tuple(range(1, weights.ndim))
    acc = np.stack([least.sum(axis=axes), greatest.sum(axis=axes)], axis=1) + _biases(graph, op)[:, None]
    clamp = state.activation_range(activation_of(op), out_scale, out_zero)
    function, _ = reference(state, op, weights.shape[0], *clamp)
    values = function(acc)
    return _Range(values[:, 0], values[:, 1])


def _biases(graph: Graph, op: Op) -> Int64s:
    channels = _channels(graph.tensor(op.outputs[0]))
    data = graph.tensor(op.inputs[2]).data if len(op.inputs) > 2 and op.inputs[2] is not None else None
    return np.zeros(channels, np.int64) if data is None else data.astype(np.int64).reshape(-1)


def _absorbable(graph: Graph, op: Op, ranges: dict[str, _Range]) -> Bools:
    """Input channels whose constant value adds the same to every output pixel's accumulator."""
    name = str(op.inputs[0])
    given = ranges.get(name)
    if given is None:
        return np.zeros(_channels(graph.tensor(name)), np.bool_)
    if not _padded(op):
        return given.constant
    quantization = graph.tensor(name).quantization
    if quantization is None:
        return np.zeros_like(given.constant)
    at_zero: Bools = given.low == quantization.zero_point
    return given.constant & at_zero


def _live(graph: Graph, ranges: dict[str, _Range]) -> dict[str, Bools]:
    """Channels that are computed, for every tensor that may lose some."""
    live: dict[str, Bools] = {}
    weights_of = [str(name) for op in graph.ops for name in op.inputs[1:] if name is not None]
    shared = {name for name in weights_of if weights_of.count(name) > 1}
    thin = {op.outputs[0] for op in graph.ops if _is_layer(graph, op) and not shared & set(op.inputs[1:])}
    for op in graph.ops:
        if _passes(graph, op) and op.inputs[0] in thin:
            thin.add(op.outputs[0])
    thin -= set(graph.outputs) | set(graph.inputs)
    for name in thin:
        live[name] = np.zeros(_channels(graph.tensor(name)), np.bool_)
    # Channels needed only grow; ties between tensors of one channel count make a second look necessary.
    while True:
        before = {name: mask.copy() for name, mask in live.items()}
        for op in reversed(graph.ops):
            _look_at(graph, op, ranges, live)
        if all(np.array_equal(before[name], live[name]) for name in live):
            break
    return live


def _look_at(graph: Graph, op: Op, ranges: dict[str, _Range], live: dict[str, Bools]) -> None:
    out = op.outputs[0]
    name = str(op.inputs[0]) if op.inputs else ""
    kept = live.get(out)
    if out in live:
        _round_up(live[out])
    tied = op.kind is OpKind.DEPTHWISE_CONV_2D or _passes(graph, op)
    if name in live and tied and (_passes(graph, op) or _is_layer(graph, op)):
        if kept is None:
            live[name][:] = True
        else:
            live[name] |= kept
            kept |= live[name]
    elif name in live and _is_layer(graph, op):
        weights = _weights(graph, op) if kept is None else _weights(graph, op)[kept]
        live[name] |= weights.any(axis=(0, 1)) & ~_absorbable(graph, op, ranges)
    elif name in live:
        live[name][:] = True
    elif tied and kept is not None:
        kept[:] = True
    for other in op.inputs[1:]:
        if other in live:
            live[other][:] = True


def _round_up(mask: Bools) -> None:
    wanted = min(max(-(-int(mask.sum()) // _GROUP) * _GROUP, _GROUP), mask.size)
    for index in np.flatnonzero(~mask)[: wanted - int(mask.sum())]:
        mask[index] = True


def _thin_layer(
    graph: Graph, op: Op, ranges: dict[str, _Range], live: dict[str, Bools], tensors: dict[str, Tensor]
) -> bool:
    """Put the layer's smaller weights and biases into `tensors`; False where a bias would leave 32 bits."""
    kept_in, kept_out = live.get(str(op.inputs[0])), live.get(op.outputs[0])
    if kept_in is None and kept_out is None:
        return True
    filter_name = str(op.inputs[1])
    tensor = graph.tensor(filter_name)
    assert tensor.data is not None
    data, quantization = tensor.data, tensor.quantization
    biases = _biases(graph, op)
    depthwise = op.kind is OpKind.DEPTHWISE_CONV_2D
    if kept_in is not None and not depthwise:
        given, zero = ranges.get(str(op.inputs[0])), graph.tensor(str(op.inputs[0])).quantization
        if given is not None and zero is not None:
            gone = ~kept_in & _absorbable(graph, op, ranges)
            sums = _weights(graph, op).sum(axis=1)
            biases = biases + (sums * np.where(gone, given.low - zero.zero_point, 0)).sum(axis=1)
        data = data[..., kept_in]
    if kept_out is not None:
        data = data[..., kept_out] if depthwise else data[kept_out]
        biases = biases[kept_out]
        if quantization is not None and quantization.scales.size > 1:
            quantization = dataclasses.replace(
                quantization, scales=quantization.scales[kept_out], zero_points=quantization.zero_points[kept_out]
            )
    tensors[filter_name] = dataclasses.replace(tensor, shape=data.shape, data=data, quantization=quantization)
    if len(op.inputs) < 3 or op.inputs[2] is None:
        return not np.any(biases)
    if np.abs(biases).max(initial=0) >= 1 << 31:
        return False
    bias = graph.tensor(op.inputs[2])
    scales = bias.quantization
    if scales is not None and scales.scales.size > 1 and kept_out is not None:
        zeros = scales.zero_points if scales.zero_points.size == 1 else scales.zero_points[kept_out]
        scales = dataclasses.replace(scales, scales=scales.scales[kept_out], zero_points=zeros)
    tensors[op.inputs[2]] = dataclasses.replace(
        bias, shape=biases.shape, data=biases.astype(np.int32), quantization=scales
    )
    return True
