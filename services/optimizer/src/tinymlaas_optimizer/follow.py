"""Follow one recipe: from the simplified float model to the model that it makes, with notes on what each step did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from tinymlaas_optimizer.calibrate import Progress, Range, calibrate
from tinymlaas_optimizer.canonical import canonical
from tinymlaas_optimizer.channels import Kept, prune_channels
from tinymlaas_optimizer.errors import NotQuantizable, RecipeInvalid, SamplesInvalid
from tinymlaas_optimizer.layers import Layer, chosen, find_layers, own_constants
from tinymlaas_optimizer.prune import Mask, prune_weights
from tinymlaas_optimizer.recipe import Fallback, Fold, Kind, Prune, Quantize, QuantizeWeights, Recipe
from tinymlaas_optimizer.refit import refit
from tinymlaas_optimizer.sensitivity import Measured, Sensitivity, choose_layers, quantized, sensitivities
from tinymlaas_optimizer.weights import quantize_weights


@dataclass
class Made:
    """What a recipe made: the model in canonical form, and `notes`, one for each step.

    `real` is the float model as it was before any quantization. `ranges` and `layers` are there if they were found out
    on the way: the ranges of its tensors, and what quantizing each layer costs.
    """

    model: ModelProto
    real: ModelProto
    notes: list[dict[str, Any]] = field(default_factory=list)
    ranges: Mapping[str, Range] | None = None
    layers: Sequence[Sensitivity] = ()


def follow(simple: ModelProto, recipe: Recipe, measured: Measured | None, pointer: str, progress: Progress) -> Made:
    """The model that the recipe makes of a simplified one, which is left as it is.

    `pointer` is where the recipe stands in the request. Raises RecipeInvalid, SamplesInvalid, NotQuantizable.
    """
    if recipe.needs_samples and measured is None:
        raise SamplesInvalid("this recipe needs calibration samples")
    made = Made(simple, simple)
    for index, step in enumerate(recipe.steps):
        where = f"{pointer}/steps/{index}"
        if isinstance(step, Fold):
            made.notes.append({"step": "fold"})
        elif isinstance(step, Prune):
            made.real = _pruned(made, step, measured, where, progress)
            made.model = made.real
        elif isinstance(step, QuantizeWeights):
            layers = _some(chosen(find_layers(made.real), step.layers, where), where)
            made.model = quantize_weights(made.real, layers, bits=step.bits, per_channel=step.per_channel)
            made.notes.append({"step": "quantize_weights", "layers": [layer.name for layer in layers]})
        else:
            assert measured is not None
            made.model = _quantized(made, step, measured, where, progress)
    made.model = canonical(made.model)
    return made


def _pruned(made: Made, step: Prune, measured: Measured | None, where: str, progress: Progress) -> ModelProto:
    before = made.real
    model: ModelProto = ModelProto.FromString(before.SerializeToString())
    own_constants(model)
    layers = _some(chosen(find_layers(model), step.layers, where), where)
    masks: dict[str, Mask] = {}
    kept: dict[str, Kept] = {}
    note: dict[str, Any] = {"step": "prune", "kind": step.kind.value}
    if step.kind is Kind.WEIGHTS:
        masks = prune_weights(model, layers, step.share, step.scope)
        note["layers"] = {name: {"weights": mask.size, "zero": int((~mask).sum())} for name, mask in masks.items()}
    else:
        sizes = {layer.name: _outputs(model, layer) for layer in layers}
        model, kept = prune_channels(model, {layer.name for layer in layers}, step.share, step.multiple_of)
        if not kept:
            raise RecipeInvalid(
                where, "no channel of these layers can be removed: their way through the model is not known"
            )
        note["layers"] = {
            name: {"channels": sizes[name], "kept": len(stay)} for name, stay in sorted(kept.items()) if name in sizes
        }
    _keep_zeros(model, masks)
    if step.refit:
        assert measured is not None
        note["refitted"] = refit(model, before, measured.samples, masks, kept, progress)
    made.notes.append(note)
    return model


def _keep_zeros(model: ModelProto, masks: dict[str, Mask]) -> None:
    """What an earlier step made zero stays zero in a refit."""
    for layer in find_layers(model):
        values = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == layer.weights))
        if not np.all(values):
            masks[layer.name] = np.asarray(values != 0)


def _quantized(made: Made, step: Quantize, measured: Measured, where: str, progress: Progress) -> ModelProto:
    model = made.real
    every = find_layers(model)
    layers = chosen(every, step.layers, where)
    apart = [layer.name for layer in every if layer not in layers]
    made.ranges = calibrate(model, measured.samples, step, progress)
    if not made.ranges:
        raise NotQuantizable("the model has no float tensor to quantize")
    kept: list[str] = []
    if step.mixed is not None and layers:
        made.layers = sensitivities(model, layers, made.ranges, step, measured, progress)
        kept = choose_layers(model, layers, made.ranges, step, step.mixed, measured, made.layers)
    result = quantized(
        model,
        made.ranges,
        step,
        exclude=apart,
        keep=kept,
        to=step.mixed.to if step.mixed is not None else Fallback.FLOAT32,
        border=step.io,
    )
    if not any(node.op_type == "QuantizeLinear" for node in result.graph.node):
        raise NotQuantizable("no operator of the model can be quantized")
    onnx.checker.check_model(result)
    made.notes.append(
        {"step": "quantize", "kept": kept, "kept_as": step.mixed.to.value if step.mixed else "", "float": apart}
    )
    return result


def _some(layers: list[Layer], where: str) -> list[Layer]:
    if not layers:
        raise RecipeInvalid(f"{where}/layers", "no layer of the model is meant")
    return layers


def _outputs(model: ModelProto, layer: Layer) -> int:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == layer.weights)
    return int(tensor.dims[layer.output_axis])
