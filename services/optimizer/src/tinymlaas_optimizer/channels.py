"""Structured pruning: whole channels are removed, from the layers that make them to the layers that read them.

Channels that meet (in an addition, through a depthwise convolution) are removed together; channels whose way the analysis
does not follow (concatenation, outputs of the model, operators that mix positions) stay. Source: Li et al. 2017, ranking
by the L1 norm of the filters.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto

from tinymlaas_optimizer.graphs import drop_unused
from tinymlaas_optimizer.layers import Layer, attribute, constant, find_layers, own_constants, set_constant
from tinymlaas_optimizer.simplify import shapes_of, with_shapes

Kept = npt.NDArray[np.int64]
_PASSING: Final = frozenset(
    {
        "Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Selu", "Softplus", "Erf", "Gelu",
        "Identity", "Dropout", "Neg", "Abs", "Sqrt", "Exp",
    }
)  # fmt: skip
_POOLS: Final = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
_ELEMENTWISE: Final = frozenset({"Add", "Sub", "Mul", "Div", "PRelu"})
_RESHAPING: Final = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class _Place:
    """Where a set of channels lies in a tensor: position o * count * inner + c * inner + i of the axis is channel c."""

    channels: int
    axis: int
    outer: int = 1
    inner: int = 1


@dataclass(frozen=True)
class _Edit:
    """A constant that loses what belongs to removed channels, or (`dimension`) a shape in which their number stands."""

    name: str
    place: _Place
    dimension: bool = False


class _Analysis:
    """Sets of channels of a model: who makes them, what has to shrink with them, which must stay."""

    def __init__(self, model: ModelProto) -> None:
        self.shapes = shapes_of(model)
        self.constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        self.places: dict[str, _Place] = {}
        self.parents: list[int] = []
        self.counts: list[int] = []
        self.locked: set[int] = set()
        self.makers: dict[int, list[str]] = {}
        self.edits: list[_Edit] = []
        self.depthwise: list[tuple[NodeProto, int]] = []
        layers = {layer.name: layer for layer in find_layers(model)}
        for node in model.graph.node:
            self._visit(node, layers.get(node.name))
        for value in model.graph.output:
            self._lock(value.name)

    def root(self, channels: int) -> int:
        """The set that a set has been merged into."""
        while self.parents[channels] != channels:
            channels = self.parents[channels]
        return channels

    def _lock(self, *names: str) -> None:
        self.locked.update(self.places[name].channels for name in names if name in self.places)

    def _new(self, layer: Layer, count: int) -> int:
        self.parents.append(len(self.parents))
        self.counts.append(count)
        self.makers[self.parents[-1]] = [layer.name]
        return self.parents[-1]

    def _visit(self, node: NodeProto, layer: Layer | None) -> None:
        if layer is not None:
            self._layer(node, layer)
        elif node.op_type in _PASSING and all(name in self.constants for name in node.input[1:] if name):
            self._pass(node)
        elif node.op_type in _POOLS and len(node.output) == 1:
            if self._on_axis_1(node.input[0]):
                self._pass(node)
            else:
                self._lock(*node.input)
        elif node.op_type in _ELEMENTWISE:
            self._elementwise(node)
        elif node.op_type in _RESHAPING:
            self._reshape(node)
        elif node.op_type == "Transpose":
            self._transpose(node)
        else:
            self._lock(*node.input)

    def _pass(self, node: NodeProto) -> None:
        if node.input[0] in self.places:
            self.places[node.output[0]] = self.places[node.input[0]]

    def _on_axis_1(self, name: str) -> bool:
        place = self.places.get(name)
        return place is None or (place.axis, place.outer, place.inner) == (1, 1, 1)

    def _layer(self, node: NodeProto, layer: Layer) -> None:
        place = self.places.get(node.input[0])
        weights = self.constants[layer.weights]
        if layer.group > 1:
            depthwise = layer.op == "Conv" and layer.group == weights[0] and weights[1] == 1
            if not depthwise or not self._on_axis_1(node.input[0]):
                self._lock(node.input[0])
            elif place is not None:
                self.edits += [_Edit(name, replace(place, axis=0)) for name in (layer.weights, layer.bias) if name]
                self.depthwise.append((node, place.channels))
                self.places[node.output[0]] = place
            return
        rank = len(self.shapes[node.input[0]])
        wanted = 1 if layer.op in ("Conv", "ConvTranspose") else rank - 1
        if place is not None and (
            place.axis != wanted
            or (wanted == 1 and rank > 2 and (place.outer, place.inner) != (1, 1))
            or (layer.op == "Gemm" and attribute(node, "transA", 0))
        ):
            self._lock(node.input[0])
        elif place is not None:
            self.edits.append(_Edit(layer.weights, replace(place, axis=1 - layer.output_axis)))
        count = weights[layer.output_axis]
        made = _Place(self._new(layer, count), wanted)
        self.places[node.output[0]] = made
        self.edits.append(_Edit(layer.weights, replace(made, axis=layer.output_axis)))
        if layer.bias and layer.op == "Gemm":
            self._constant(layer.bias, made, rank)
        elif layer.bias:
            self.edits.append(_Edit(layer.bias, replace(made, axis=0)))

    def _constant(self, name: str, place: _Place, rank: int) -> None:
        """A constant that is broadcast to a tensor of this rank."""
        dims = self.constants[name]
        axis = place.axis - (rank - len(dims))
        if axis >= 0 and dims[axis] != 1:
            self.edits.append(_Edit(name, replace(place, axis=axis)))

    def _elementwise(self, node: NodeProto) -> None:
        first, second = node.input
        if first not in self.places and second not in self.places:
            return
        if second in self.constants or first in self.constants:
            moving, fixed = (first, second) if second in self.constants else (second, first)
            place, rank = self.places[moving], len(self.shapes[moving])
            if len(self.shapes[node.output[0]]) != rank or self.shapes[node.output[0]] != self.shapes[moving]:
                self._lock(moving)
                return
            self._constant(fixed, place, rank)
            self.places[node.output[0]] = place
            return
        one, other = self.places.get(first), self.places.get(second)
        if one is None or other is None or replace(other, channels=one.channels) != one:
            self._lock(first, second)
            return
        if len(self.shapes[first]) != len(self.shapes[second]) or (
            self.shapes[first][one.axis] != self.shapes[second][one.axis]
        ):
            self._lock(first, second)
            return
        low, high = sorted((self.root(one.channels), self.root(other.channels)))
        if low != high:
            self.parents[high] = low
            self.makers[low] += self.makers.pop(high)
        self.places[node.output[0]] = one

    def _reshape(self, node: NodeProto) -> None:
        place = self.places.get(node.input[0])
        if place is None:
            return
        old, new = self.shapes[node.input[0]], self.shapes[node.output[0]]
        inner = place.inner * math.prod(old[place.axis + 1 :])
        block = inner * self.counts[place.channels]
        for axis, dim in enumerate(new):
            after = math.prod(new[axis + 1 :])
            if inner % after == 0 and dim * after >= block and (dim * after) % block == 0:
                moved = _Place(place.channels, axis, dim * after // block, inner // after)
                self.places[node.output[0]] = moved
                if node.op_type == "Reshape":
                    if node.input[1] not in self.constants:
                        break
                    self.edits.append(_Edit(node.input[1], moved, dimension=True))
                return
        self.places.pop(node.output[0], None)
        self._lock(node.input[0])

    def _transpose(self, node: NodeProto) -> None:
        place = self.places.get(node.input[0])
        if place is not None:
            rank = len(self.shapes[node.input[0]])
            order = list(attribute(node, "perm", list(reversed(range(rank)))))
            self.places[node.output[0]] = replace(place, axis=order.index(place.axis))


def prune_channels(
    model: ModelProto, names: Collection[str], share: float, multiple_of: int
) -> tuple[ModelProto, dict[str, Kept]]:
    """The model without the weakest channels, and the channels that stay of each layer that lost some, by its name.

    Only sets of channels are touched whose makers are all in `names`. The result has its shapes inferred.
    """
    copy = ModelProto.FromString(model.SerializeToString())
    own_constants(copy)
    copy = with_shapes(copy)
    analysis = _Analysis(copy)
    locked = {analysis.root(channels) for channels in analysis.locked}
    layers = {layer.name: layer for layer in find_layers(copy)}
    kept: dict[int, Kept] = {}
    by_layer: dict[str, Kept] = {}
    for channels, makers in sorted(analysis.makers.items()):
        if channels in locked or any(name not in names for name in makers):
            continue
        strength = sum(_strength(copy, layers[name]) for name in makers)
        count = analysis.counts[channels]
        # Not a rounding error more than asked for.
        stay = min(count, max(1, math.ceil(count * (1 - share) / multiple_of - 1e-9) * multiple_of))
        if stay < count:
            order = np.argsort(-np.asarray(strength), kind="stable")[:stay]
            kept[channels] = np.sort(order).astype(np.int64)
            by_layer.update(dict.fromkeys(makers, kept[channels]))
    for edit in analysis.edits:
        root = analysis.root(edit.place.channels)
        if root in kept:
            _apply(copy, edit, kept[root], analysis.counts[root])
    for node, channels in analysis.depthwise:
        root = analysis.root(channels)
        if root in kept:
            next(entry for entry in node.attribute if entry.name == "group").i = len(kept[root])
            by_layer[node.name] = kept[root]
    drop_unused(copy)
    return with_shapes(copy), by_layer


def _strength(model: ModelProto, layer: Layer) -> npt.NDArray[np.float64]:
    """L1 norm of each output channel's weights, over the mean of the layer."""
    values = np.abs(constant(model, layer.weights).astype(np.float64))
    norms = values.sum(axis=tuple(axis for axis in range(values.ndim) if axis != layer.output_axis))
    return np.asarray(norms / max(float(norms.mean()), np.finfo(np.float64).tiny))


def _apply(model: ModelProto, edit: _Edit, kept: Kept, count: int) -> None:
    values: npt.NDArray[Any] = constant(model, edit.name)
    place = edit.place
    if edit.dimension:
        if values[place.axis] > 0:  # 0 and -1 follow by themselves
            values[place.axis] = values[place.axis] // count * len(kept)
        set_constant(model, edit.name, values)
        return
    outer = np.arange(place.outer)[:, None, None] * count * place.inner
    positions = outer + kept[None, :, None] * place.inner + np.arange(place.inner)[None, None, :]
    set_constant(model, edit.name, np.take(values, positions.ravel(), axis=place.axis))
