"""Options and samples of a request: what is taken, and what is refused with a reason."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymlaas_modelkit.check import ModelReport, Precision, TensorReport
from tinymlaas_optimizer import (
    SCHEMA,
    Bound,
    LimitExceeded,
    OptimizerError,
    OptionInvalid,
    Options,
    OptionUnknown,
    Recipe,
    RecipeInvalid,
    SamplesInvalid,
    Task,
    match_samples,
    read_npz,
)
from tinymlaas_optimizer import samples as samples_module
from tinymlaas_optimizer.calibrate import Range
from tinymlaas_optimizer.recipe import Border, Calibration, Quantize
from tinymlaas_optimizer.scales import scale_of
from tinymlaas_pluginkit import OptionInvalid as KitOptionInvalid
from tinymlaas_pluginkit import check_options, parse_schema

QUICK = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def report(*inputs: TensorReport) -> ModelReport:
    return ModelReport("onnx", 13, 8, inputs, (), {}, 1, 0, Precision.FLOAT)


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


ONE = report(TensorReport("image", "float32", (1, 2, 3)))


def recipe(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"version": 1, "steps": list(steps)}


def test_the_schema_is_a_schema_and_its_defaults_are_those_of_the_options() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    defaults = {name: entry["default"] for name, entry in SCHEMA["properties"].items()}
    assert Options.parse(defaults) == Options.parse({})
    assert Options.parse({}) == Options((Recipe.parse(recipe({"step": "quantize"})),))
    # Through the plugin contract the schema travels as text, at most 256 KiB and without references.
    assert parse_schema(json.dumps(SCHEMA)) is not None


def test_options_become_values() -> None:
    step = {"step": "quantize", "calibration": "percentile", "percentile": 99, "io": "float32", "per_channel": False}
    options = Options.parse({"recipes": [recipe(step)], "bound": {"max_drop": 0.5}, "task": "classify"})
    assert options.task is Task.CLASSIFY
    assert options.bound == Bound(max_drop=0.5)
    assert options.recipes[0].quantize == Quantize(Calibration.PERCENTILE, 99, per_channel=False, io=Border.FLOAT32)


STEPS = st.one_of(
    st.fixed_dictionaries(
        {"step": st.just("prune"), "kind": st.just("weights"), "share": st.floats(0.01, 0.99)},
        optional={"scope": st.sampled_from(["layer", "model"]), "refit": st.booleans()},
    ),
    st.fixed_dictionaries(
        {"step": st.just("prune"), "kind": st.just("channels"), "share": st.floats(0.01, 0.99)},
        optional={"multiple_of": st.integers(1, 64), "layers": st.just({"skip": ["conv_0"]})},
    ),
)
LAST = st.one_of(
    st.fixed_dictionaries({"step": st.just("quantize_weights")}, optional={"bits": st.sampled_from([4, 8])}),
    st.fixed_dictionaries(
        {"step": st.just("quantize")},
        optional={
            "activations": st.sampled_from(["int8", "int16"]),
            "mixed": st.one_of(st.none(), st.just({"to": "float32", "max_layers": 3, "min_snr_db": 30.5})),
        },
    ),
)


@QUICK
@given(st.lists(STEPS, max_size=3), st.lists(LAST, max_size=1))
def test_the_canonical_form_of_a_recipe_is_a_recipe_and_means_the_same(first: list[Any], last: list[Any]) -> None:
    parsed = Recipe.parse(recipe(*first, *last))
    again = Recipe.parse(json.loads(parsed.to_json()))
    assert again == parsed
    assert again.to_json() == parsed.to_json()


@pytest.mark.parametrize(
    ("given_recipe", "pointer"),
    [
        ({"version": 2, "steps": []}, "/recipes/0/version"),
        ({"version": 1}, "/recipes/0"),
        ({"version": 1, "steps": [], "colour": 1}, "/recipes/0"),
        (recipe({"kind": "weights"}), "/recipes/0/steps/0"),
        (recipe({"step": "distill"}), "/recipes/0/steps/0/step"),
        (recipe({"step": "prune", "kind": "weights", "share": 1}), "/recipes/0/steps/0/share"),
        (recipe({"step": "prune", "kind": "weights"}), "/recipes/0/steps/0"),
        (recipe({"step": "prune", "kind": "channels", "share": 0.5, "scope": "model"}), "/recipes/0/steps/0/scope"),
        (
            recipe({"step": "prune", "kind": "weights", "share": 0.5, "multiple_of": 4}),
            "/recipes/0/steps/0/multiple_of",
        ),
        (recipe({"step": "quantize", "percentile": "99"}), "/recipes/0/steps/0/percentile"),
        (recipe({"step": "quantize", "per_channel": 1}), "/recipes/0/steps/0/per_channel"),
        (recipe({"step": "quantize", "mixed": {"to": "int4"}}), "/recipes/0/steps/0/mixed/to"),
        (recipe({"step": "quantize", "activations": "int16", "mixed": {"to": "int16"}}), "/recipes/0/steps/0/mixed/to"),
        (recipe({"step": "quantize"}, {"step": "prune", "kind": "weights", "share": 0.5}), "/recipes/0/steps/0/step"),
        (recipe({"step": "quantize_weights", "bits": 3}), "/recipes/0/steps/0/bits"),
        (recipe({"step": "quantize"}, {"step": "fold"}), "/recipes/0/steps/0/step"),
        (recipe(*[{"step": "fold"}] * 9), "/recipes/0/steps"),
        ([], "/recipes/0"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_at_the_place_in_it(given_recipe: Any, pointer: str) -> None:
    with pytest.raises(RecipeInvalid) as caught:
        Options.parse({"recipes": [given_recipe]})
    assert caught.value.metadata["pointer"] == pointer
    assert (caught.value.code, caught.value.reason) == ("INVALID_ARGUMENT", "RECIPE_INVALID")


def test_the_platform_refuses_a_bad_recipe_at_the_same_place_before_the_plugin_sees_it() -> None:
    options = {"recipes": [recipe({"step": "quantize"}), recipe({"step": "prune", "kind": "weights", "share": "much"})]}
    with pytest.raises(KitOptionInvalid) as caught:
        check_options(dict(SCHEMA), options)
    assert caught.value.metadata["pointer"] == "/recipes/1/steps/0/share"


def test_an_unknown_option_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(OptionUnknown) as caught:
        Options.parse({"recipe": []})
    assert caught.value.metadata == {"option": "recipe", "nearest": "recipes"}
    assert (caught.value.code, caught.value.reason) == ("INVALID_ARGUMENT", "OPTION_UNKNOWN")


@pytest.mark.parametrize(
    ("option", "value"),
    [("recipes", []), ("recipes", {}), ("bound", {"max_drop": 2}), ("sensitivity", 1), ("task", "")],
)
def test_a_value_outside_of_the_schema_is_refused_with_its_option(option: str, value: object) -> None:
    with pytest.raises(OptionInvalid) as caught:
        Options.parse({option: value})
    assert caught.value.metadata["option"] == option


@pytest.mark.parametrize("kind", OptimizerError.__subclasses__())
def test_every_error_has_a_code_a_reason_and_help(kind: type[OptimizerError]) -> None:
    assert kind.code in {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}
    assert kind.reason.isupper()
    assert kind.help.endswith(".")


@pytest.mark.parametrize("name", ["image", "input_float", "input", "x"])
def test_the_only_input_is_found_by_its_name_or_a_common_one(name: str) -> None:
    samples = match_samples({name: np.ones((5, 2, 3)), "label": np.arange(5)}, ONE)
    assert samples.inputs["image"].dtype == np.float32
    assert len(samples) == 5
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2, 3, 4]
    assert [feed["image"].shape for feed in samples.feeds()] == [(1, 2, 3)] * 5


def test_several_inputs_are_found_by_their_own_names_only() -> None:
    two = report(TensorReport("a", "float32", (1, 2)), TensorReport("b", "int32", (1, 1)))
    samples = match_samples({"a": np.ones((3, 2)), "b": np.ones((3, 1), np.int32)}, two)
    assert samples.labels is None
    with pytest.raises(SamplesInvalid, match="input b"):
        match_samples({"a": np.ones((3, 2)), "input": np.ones((3, 1), np.int32)}, two)


@pytest.mark.parametrize(
    ("arrays", "detail"),
    [
        ({}, "no array"),
        ({"image": np.ones((0, 2, 3))}, "0"),
        ({"image": np.ones((5, 3, 2))}, "shape"),
        ({"image": np.ones(())}, "shape"),
        ({"image": np.full((5, 2, 3), np.nan)}, "NaN"),
        ({"image": np.full((5, 2, 3), "a")}, "needs float32"),
        ({"image": np.ones((5, 2, 3)), "label": np.arange(4)}, "labels"),
        ({"image": np.ones((5, 2, 3)), "label": np.ones(5)}, "labels"),
    ],
)
def test_samples_that_do_not_fit_are_refused(arrays: dict[str, Any], detail: str) -> None:
    with pytest.raises(SamplesInvalid, match=detail):
        match_samples(arrays, ONE)


def test_too_many_samples_are_refused() -> None:
    with pytest.raises(LimitExceeded):
        match_samples({"image": np.ones((samples_module.MAX_SAMPLES + 1, 2, 3), np.float32)}, ONE)


def test_a_file_of_arrays_is_read() -> None:
    found = read_npz(npz(a=np.arange(3), b=np.ones((2, 2), np.float32)))
    assert found["a"].tolist() == [0, 1, 2]
    assert found["b"].shape == (2, 2)
    stream = io.BytesIO()
    np.save(stream, np.arange(4))
    assert read_npz(stream.getvalue())["input"].tolist() == [0, 1, 2, 3]


def test_pickles_are_not_loaded() -> None:
    with pytest.raises(SamplesInvalid, match="objects"):
        read_npz(npz(a=np.array([{}], object)))


def test_an_archive_that_unpacks_to_too_much_is_refused_unopened() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        chunk = bytes(1 << 20)
        for _ in range((samples_module.MAX_BYTES >> 20) + 1):
            member.write(chunk)
    with pytest.raises(LimitExceeded):
        read_npz(stream.getvalue())


def test_an_array_that_claims_more_than_it_has_is_refused() -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    with pytest.raises(SamplesInvalid, match="shorter"):
        read_npz(stream.getvalue())


@QUICK
@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 255))
def test_any_bytes_are_read_or_refused(noise: bytes, at: int, byte: int) -> None:
    good = npz(a=np.arange(6, dtype=np.float32))
    for data in (
        noise,
        b"PK\x03\x04" + noise,
        b"\x93NUMPY" + noise,
        good[:at],
        good[:at] + bytes([byte]) + good[at + 1 :],
    ):
        try:
            read_npz(data)
        except OptimizerError as error:
            refused = error
        else:
            continue
        assert isinstance(refused, SamplesInvalid | LimitExceeded)


FINITE = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@QUICK
@given(low=FINITE, high=FINITE, symmetric=st.booleans())
def test_a_scale_holds_its_range_and_an_exact_zero(low: float, high: float, symmetric: bool) -> None:
    found = Range(min(low, high, 0.0), max(low, high, 0.0))
    scale = scale_of(found, symmetric=symmetric)
    assert scale.scale > 0
    assert -128 <= scale.zero_point <= 127
    assert not symmetric or scale.zero_point == 0
    # Every value of the range is at most half a step, and a rounding of the zero point, away from a step.
    for value in (found.low, found.high):
        step = min(max(round(value / scale.scale) + scale.zero_point, -128), 127)
        assert abs((step - scale.zero_point) * scale.scale - value) <= scale.scale * 1.01
