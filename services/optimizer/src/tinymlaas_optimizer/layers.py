"""The weighted operators of a simplified float model, by the names that recipes and reports use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper, numpy_helper

from tinymlaas_optimizer.errors import RecipeInvalid
from tinymlaas_optimizer.recipe import Layers

Array = npt.NDArray[Any]
_WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Activation functions that belong to the layer before them.
FOLLOWERS: Final = frozenset({"Relu", "Clip", "LeakyRelu"})


@dataclass(frozen=True)
class Layer:
    """One operator with constant weights; `output_axis` is the axis of the weights that counts its outputs.

    `group` is that of a convolution, 1 for others.
    """

    name: str
    op: str
    weights: str
    bias: str
    output_axis: int
    group: int


def find_layers(model: ModelProto) -> list[Layer]:
    """The layers in the order of the file, which `canonical` has made that of the graph."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in _WEIGHTED or node.input[1] not in constants:
            continue
        weights = constants[node.input[1]]
        bias = node.input[2] if len(node.input) > 2 and node.input[2] in constants else ""
        rank = len(weights.dims)
        if node.op_type in ("Gemm", "MatMul") and rank != 2:
            continue
        axis = 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)) else 1
        found.append(Layer(node.name, node.op_type, node.input[1], bias, axis, int(attribute(node, "group", 1))))
    return found


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    found = next((entry for entry in node.attribute if entry.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def chosen(layers: Iterable[Layer], wanted: Layers, pointer: str) -> list[Layer]:
    """The layers that a step is about; RecipeInvalid with the nearest name where it names one that there is not."""
    by_name = {layer.name: layer for layer in layers}
    for field, names in (("only", wanted.only), ("skip", wanted.skip)):
        for index, name in enumerate(names):
            if name not in by_name:
                nearest = (get_close_matches(name, list(by_name), 1, 0.0) or [""])[0]
                detail = f"there is no layer {name}" + (f"; did you mean {nearest}?" if nearest else "")
                raise RecipeInvalid(f"{pointer}/layers/{field}/{index}", detail, nearest=nearest)
    return [by_name[name] for name in wanted.chosen(by_name)]


def with_followers(model: ModelProto, names: Iterable[str]) -> list[str]:
    """The names of the layers and of the activation functions right behind them."""
    wanted = set(names)
    outputs = {name for node in model.graph.node if node.name in wanted for name in node.output}
    followers = {
        node.name for node in model.graph.node if node.op_type in FOLLOWERS and outputs.intersection(node.input[:1])
    }
    return sorted(wanted | followers)


def constant(model: ModelProto, name: str) -> Array:
    """The values of a constant, a copy."""
    return np.array(numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name)))


def set_constant(model: ModelProto, name: str, values: Array) -> None:
    """Replace the values of a constant."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))


def own_constants(model: ModelProto) -> None:
    """Give every reader a copy of its own of each constant, so that changing one changes nothing else."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    seen: set[str] = set()
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name not in constants:
                continue
            if name in seen:
                node.input[place] = f"{name}_of_{node.name}_{place}"
                model.graph.initializer.append(
                    numpy_helper.from_array(numpy_helper.to_array(constants[name]), node.input[place])
                )
            seen.add(name)
