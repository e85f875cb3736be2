"""What recipes do to models: pruning, weight-only and mixed quantization, sensitivity, the choice among several."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper
from optimizer_models import N, files, model, size, values

from tinymlaas_modelkit.check import Precision, check_model_here
from tinymlaas_modelkit.onnx_reader import read_onnx
from tinymlaas_optimizer import BoundMissed, Optimized, Options, RecipeInvalid, Result, optimize
from tinymlaas_optimizer.canonical import canonical
from tinymlaas_optimizer.channels import prune_channels
from tinymlaas_optimizer.evaluate import compare
from tinymlaas_optimizer.layers import find_layers
from tinymlaas_optimizer.report import front, smallest
from tinymlaas_optimizer.runtime import session
from tinymlaas_optimizer.simplify import simplify, with_shapes
from tinymlaas_optimizer.weights import rounded
from tinymlaas_pluginkit._checks import svg_fault

QUANTIZE = {"step": "quantize"}


def recipe(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"version": 1, "steps": list(steps)}


def prune(kind: str, share: float, **fields: Any) -> dict[str, Any]:
    return {"step": "prune", "kind": kind, "share": share, **fields}


def with_recipes(name: str, *recipes: dict[str, Any], **options: Any) -> Optimized:
    given = {"recipes": list(recipes), "sensitivity": False, **options}
    return optimize(*files(name), Options.parse(given), check=check_model_here)


@cache
def folded(name: str) -> ModelProto:
    return with_shapes(canonical(simplify(ModelProto.FromString(files(name)[0]))))


def snr(result: Result) -> float:
    assert result.snr_db is not None
    return result.snr_db


def weights(data: bytes) -> dict[str, npt.NDArray[Any]]:
    made = ModelProto.FromString(data)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}


def test_half_of_each_layers_weights_become_zero_and_the_smallest_go() -> None:
    result = with_recipes("kws", recipe(prune("weights", 0.5, refit=False)))
    before, after = folded("kws"), ModelProto.FromString(result.model)
    old, new = weights(before.SerializeToString()), weights(result.model)
    for first, second in zip(find_layers(before), find_layers(after), strict=True):
        was, now = np.abs(old[first.weights]), np.abs(new[second.weights])
        assert int((now == 0).sum()) == was.size // 2
        assert was[now == 0].max() <= was[now != 0].min()
        assert np.array_equal(old[first.weights][now != 0], new[second.weights][now != 0])


def test_pruning_by_model_takes_more_from_layers_that_miss_less() -> None:
    result = with_recipes("kws", recipe(prune("weights", 0.5, scope="model", refit=False)))
    note = result.report.taken.notes[1]["layers"]
    zeros, every = sum(e["zero"] for e in note.values()), sum(e["weights"] for e in note.values())
    assert zeros == every // 2
    assert len({round(e["zero"] / e["weights"], 2) for e in note.values()}) > 3


def test_zeros_survive_the_refit_and_quantization() -> None:
    result = with_recipes("sww", recipe(prune("weights", 0.5), QUANTIZE))
    taken = result.report.taken
    assert taken.size is not None
    assert taken.size.nonzero_parameters < 0.55 * taken.size.parameters
    assert result.description.precision is Precision.QUANTIZED
    read_onnx(result.model)


def test_a_refit_gives_back_most_of_what_pruning_took_also_on_samples_that_it_has_not_seen() -> None:
    without, refitted = (
        with_recipes("kws", recipe(prune("weights", 0.5, refit=refit), QUANTIZE)).report.taken
        for refit in (False, True)
    )
    assert refitted.held_out
    assert not without.held_out
    assert snr(refitted) > snr(without) + 3


@pytest.mark.parametrize(("name", "share"), [("kws", 0.25), ("ic", 0.25), ("ad", 0.5), ("sww", 0.25)])
def test_channels_that_give_nothing_can_be_removed_without_any_change(name: str, share: float) -> None:
    """Where the weakest channels are made to give zero, the smaller model computes the same: the analysis is right."""
    before = ModelProto.FromString(folded(name).SerializeToString())
    small, kept = prune_channels(before, {layer.name for layer in find_layers(before)}, share, 1)
    assert kept
    silenced = ModelProto.FromString(before.SerializeToString())
    arrays = {tensor.name: tensor for tensor in silenced.graph.initializer}
    for layer in find_layers(silenced):
        if layer.name in kept:
            for constant, axis in ((layer.weights, layer.output_axis), (layer.bias, -1)):
                if constant:
                    array = np.array(numpy_helper.to_array(arrays[constant]))
                    gone = np.ones(array.shape[axis], np.bool_)
                    gone[kept[layer.name]] = False
                    np.moveaxis(array, axis, 0)[gone] = 0
                    arrays[constant].CopyFrom(numpy_helper.from_array(array, constant))
    sample = files(name)[1]["input_float"][:1]
    expected = session(silenced).run(None, {silenced.graph.input[0].name: sample})[0]
    found = session(small).run(None, {small.graph.input[0].name: sample})[0]
    assert small.ByteSize() < before.ByteSize()
    assert np.abs(found - expected).max() <= 1e-4 * max(np.abs(expected).max(), 1)


def residual() -> bytes:
    """Two convolutions that meet in an addition, a depthwise one, a flattening into a matrix product, a concatenation."""
    nodes = [
        N("Conv", ["x", "w1", "b"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        N("Relu", ["c1"], ["r1"]),
        N("Conv", ["r1", "w2", "b"], ["c2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        N("Add", ["c2", "r1"], ["a"]),
        N("Conv", ["a", "w3", "b"], ["c3"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=6),
        N("Mul", ["c3", "k"], ["m"]),
        N("Reshape", ["m", "shape"], ["f"]),
        N("MatMul", ["f", "w4"], ["h"]),
        N("Conv", ["x", "w5", "b"], ["c5"], kernel_shape=[3, 3]),
        N("GlobalAveragePool", ["c5"], ["g"]),
        N("Flatten", ["g"], ["fg"]),
        N("Concat", ["h", "fg"], ["y"], axis=1),
    ]
    constants = {
        "w1": values(6, 4, 3, 3),
        "w2": values(6, 6, 3, 3),
        "w3": values(6, 1, 3, 3),
        "w4": values(6 * 64, 5),
        "w5": values(6, 4, 3, 3) + 1,
        "b": values(6),
        "k": values(6, 1, 1),
        "shape": np.array([1, 6 * 64], np.int64),
    }
    return model(nodes, constants)


def test_channels_that_meet_in_an_addition_go_together_and_concatenated_ones_stay() -> None:
    before = with_shapes(canonical(simplify(ModelProto.FromString(residual()))))
    small, kept = prune_channels(before, {layer.name for layer in find_layers(before)}, 0.5, 1)
    by_shape = {layer.name: layer for layer in find_layers(small)}
    assert len({tuple(channels) for channels in kept.values()}) == 1
    assert sorted(len(channels) for channels in kept.values()) == [3, 3, 3]
    arrays = {tensor.name: tuple(tensor.dims) for tensor in small.graph.initializer}
    shapes = sorted(arrays[layer.weights] for layer in by_shape.values())
    assert shapes == sorted([(3, 4, 3, 3), (3, 3, 3, 3), (3, 1, 3, 3), (3 * 64, 5), (6, 4, 3, 3)])
    sample = values(1, 4, 8, 8)
    assert session(small).run(None, {"x": sample})[0].shape == (1, 11)


def test_a_model_none_of_whose_channels_can_go_is_refused() -> None:
    data = model([N("Conv", ["x", "w", "b"], ["y"], kernel_shape=[1, 1])], {"w": values(6, 4, 1, 1), "b": values(6)})
    options = Options.parse({"recipes": [recipe(prune("channels", 0.5, refit=False))]})
    with pytest.raises(RecipeInvalid) as caught:
        optimize(data, None, options, check=check_model_here)
    assert caught.value.metadata["pointer"] == "/recipes/0/steps/1"


def test_so_many_channels_stay_that_vector_instructions_like_them() -> None:
    result = with_recipes("kws", recipe(prune("channels", 0.3, multiple_of=8), QUANTIZE))
    kept = {entry["kept"] for entry in result.report.taken.notes[1]["layers"].values()}
    assert kept == {48}


@pytest.mark.parametrize(("bits", "shrinks_to", "decibels"), [(8, 0.28, 40), (4, 0.16, 12)])
def test_weight_only_quantization_shrinks_the_file_and_keeps_float_arithmetic(
    bits: int, shrinks_to: float, decibels: float
) -> None:
    result = with_recipes("kws", recipe({"step": "quantize_weights", "bits": bits}))
    assert snr(result.report.taken) > decibels
    assert size(result).parameter_bytes < shrinks_to * result.report.before.parameter_bytes
    assert [tensor.dtype for tensor in result.description.inputs] == ["float32"]
    types = {tensor.data_type for tensor in ModelProto.FromString(result.model).graph.initializer}
    assert (TensorProto.INT4 in types) == (bits == 4)
    read_onnx(result.model)


def test_rounding_to_integers_is_symmetric_and_at_most_half_a_step_off() -> None:
    array = values(5, 7)
    array[2] = 0
    for bits, axis in ((4, 0), (8, 1), (4, None)):
        integers, scales = rounded(array, bits, axis)
        assert np.abs(integers).max() == 2 ** (bits - 1) - 1
        steps = scales if axis is None else scales.reshape([-1 if place == axis else 1 for place in range(2)])
        assert np.all(np.abs(integers * steps - array) <= steps / 2 * 1.0001)


def test_int16_activations_are_symmetric_and_make_less_noise() -> None:
    result = with_recipes("kws", recipe({**QUANTIZE, "activations": "int16"}), recipe(QUANTIZE), bound={})
    wide, narrow = result.report.results
    assert snr(wide) > snr(narrow) + 3
    alone = with_recipes("kws", recipe({**QUANTIZE, "activations": "int16"}))
    assert [(t.dtype, t.zero_point) for t in alone.description.inputs] == [("int16", 0)]
    assert alone.description.outputs[0].scale == 1 / 32768


def test_the_layers_that_quantization_hurts_most_stay_float_within_the_budget() -> None:
    options = Options.parse({"recipes": [recipe({**QUANTIZE, "mixed": {"max_layers": 2}})]})
    result = optimize(*files("ic"), options, check=check_model_here)
    note = result.report.taken.notes[-1]
    ranking = sorted(result.report.layers, key=lambda layer: (layer.snr_db or 0.0, layer.layer))
    assert note["kept"] == [layer.layer for layer in ranking[:2]]
    kept = next(node for node in ModelProto.FromString(result.model).graph.node if node.name == note["kept"][0])
    floats = weights(result.model)
    assert floats[kept.input[1]].dtype == np.float32

    tight = {**QUANTIZE, "mixed": {"max_layers": 9, "max_extra_bytes": 3 * min(layer.parameters for layer in ranking)}}
    frugal = with_recipes("ic", recipe(tight))
    plain = with_recipes("ic", recipe(QUANTIZE))
    extra = size(frugal).parameter_bytes - size(plain).parameter_bytes
    assert extra <= tight["mixed"]["max_extra_bytes"]

    enough = with_recipes("ic", recipe({**QUANTIZE, "mixed": {"max_layers": 9, "min_snr_db": 1.0}}))
    assert enough.report.taken.notes[-1]["kept"] == []
    assert enough.model == plain.model


def test_layers_that_a_step_skips_stay_float_and_unknown_ones_are_refused_with_the_nearest() -> None:
    result = with_recipes("kws", recipe({**QUANTIZE, "layers": {"skip": ["conv_0"]}}))
    assert result.report.taken.notes[-1]["float"] == ["conv_0"]
    with pytest.raises(RecipeInvalid) as caught:
        with_recipes("kws", recipe({**QUANTIZE, "layers": {"only": ["conv_1", "conv0"]}}))
    assert caught.value.metadata["pointer"] == "/recipes/0/steps/1/layers/only/1"
    assert caught.value.metadata["nearest"] == "conv_0"


def test_each_layers_sensitivity_is_that_of_the_model_with_only_it_quantized() -> None:
    result = optimize(*files("kws"), Options.parse({}), check=check_model_here)
    names = [layer.name for layer in find_layers(folded("kws"))]
    assert [layer.layer for layer in result.report.layers] == names
    others = [name for name in names if name != "conv_0"]
    alone = with_recipes("kws", recipe({**QUANTIZE, "layers": {"skip": others}, "io": "float32"}))
    # A quantize step also quantizes what has no weights, so it makes at least as much noise.
    assert snr(alone.report.taken) <= (result.report.layers[0].snr_db or 0.0) + 0.1


def test_of_several_recipes_the_smallest_within_the_bound_is_taken_and_the_rest_is_told() -> None:
    recipes = [
        recipe(),
        recipe(QUANTIZE),
        recipe(prune("channels", 0.5, refit=False), QUANTIZE),
        recipe({"step": "quantize_weights"}),
    ]
    result = with_recipes("kws", *recipes, bound={"max_drop": 0.0, "min_snr_db": 30})
    report = result.report
    assert [entry.within_bound for entry in report.results] == [True, True, False, True]
    assert report.chosen == 3
    assert result.model == with_recipes("kws", recipes[3]).model
    # int8 and weights of int8 have the same bytes, and nobody changed a class.
    assert [entry.pareto for entry in report.results] == [False, True, True, True]


def test_a_drop_counts_right_answers_where_labels_are_and_changed_classes_elsewhere() -> None:
    before = {"y": np.eye(4)[[0, 1, 2, 3, 0, 1]]}
    after = {"y": np.eye(4)[[0, 2, 1, 3, 1, 1]]}
    labels = np.array([0, 1, 1, -1, -1, -1])
    found = compare(before, after, labels, classes=True)
    # Of the labelled one is lost and one is won; of the others one changes its class.
    assert (found.accuracy_before, found.accuracy_after, found.agreement) == (2 / 3, 2 / 3, 0.5)
    assert found.drop == pytest.approx(1 / 6)
    assert compare(before, after, None, classes=False).drop is None


def test_a_bound_that_nothing_keeps_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(BoundMissed) as caught:
        with_recipes("kws", recipe(QUANTIZE), bound={"min_snr_db": 200})
    assert caught.value.metadata["bound"] == "at least 200 dB"
    assert "int8" in caught.value.metadata["best"]


def test_a_recipe_that_cannot_be_followed_does_not_spoil_a_search() -> None:
    nodes = [N("Sigmoid", ["x"], ["s"]), N("Tanh", ["x"], ["t"]), N("Concat", ["s", "t"], ["y"], axis=1)]
    options = Options.parse({"recipes": [recipe(QUANTIZE), recipe()], "bound": {}})
    result = optimize(model(nodes, {}, (1, 8)), {"x": values(16, 8)}, options, check=check_model_here)
    failed, fine = result.report.results
    assert failed.error is not None
    assert failed.error["reason"] == "NOT_QUANTIZABLE"
    assert (fine.within_bound, result.report.chosen) == (True, 1)


@pytest.mark.parametrize("choose", [lambda results: smallest(results, None), lambda results: sum(front(results))])
def test_choosing_among_nothing_gives_nothing(choose: Callable[[list[Result]], int | None]) -> None:
    assert not choose([])


def test_the_picture_shows_every_recipe_and_refers_to_nothing() -> None:
    recipes = [{**recipe(QUANTIZE), "name": "<b>\"'& \u202e}"}, recipe(), recipe({"step": "quantize_weights"})]
    result = with_recipes("kws", *recipes, sensitivity=True, bound={})
    assert svg_fault(result.picture) == ""
    root = ElementTree.fromstring(result.picture.decode())
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for wanted in ("folded", "int8 weights", "conv_0", "<b>\"'& }"):
        assert wanted in texts
    assert json.loads(result.report.to_json())["chosen"] == result.report.chosen


def test_equal_weights_of_two_layers_are_pruned_apart() -> None:
    """`canonical` stores equal constants once; pruning one reader's must not change the other's."""
    nodes = [
        N("Conv", ["x", "w", "b"], ["c"], kernel_shape=[1, 1]),
        N("Relu", ["c"], ["r"]),
        N("Conv", ["r", "w", "b"], ["y"], kernel_shape=[1, 1]),
    ]
    data = model(nodes, {"w": values(4, 4, 1, 1), "b": values(4)})
    step = prune("weights", 0.5, refit=False, layers={"only": ["conv_0"]})
    made = optimize(data, None, Options.parse({"recipes": [recipe(step)]}), check=check_model_here)
    zeros = [int((array == 0).sum()) for array in weights(made.model).values() if array.ndim == 4]
    assert sorted(zeros) == [0, 8]
    onnx.checker.check_model(ModelProto.FromString(made.model))
