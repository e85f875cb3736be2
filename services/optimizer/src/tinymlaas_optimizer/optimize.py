"""The whole way from a float ONNX file, samples and recipes to an optimized file, its recipe, a report and a picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from tinymlaas_modelkit.check import Limits, ModelRejected, ModelReport, check_model, check_model_here
from tinymlaas_optimizer.calibrate import Progress, calibrate
from tinymlaas_optimizer.canonical import canonical
from tinymlaas_optimizer.errors import BoundMissed, NotQuantizable, OptimizerError, SamplesInvalid
from tinymlaas_optimizer.evaluate import Evaluation, classifies, compare, run
from tinymlaas_optimizer.follow import Made, follow
from tinymlaas_optimizer.layers import find_layers
from tinymlaas_optimizer.options import Options
from tinymlaas_optimizer.picture import draw
from tinymlaas_optimizer.recipe import Quantize, Recipe
from tinymlaas_optimizer.report import Report, Result, Size, bound_for, counted, front, keeps, smallest
from tinymlaas_optimizer.samples import match_samples
from tinymlaas_optimizer.sensitivity import Measured, Sensitivity, sensitivities
from tinymlaas_optimizer.simplify import simplify, with_shapes

# Parts of the samples in a cross-validation.
FOLDS: Final = 3
Check = Callable[[bytes, Any, Limits], ModelReport]


@dataclass(frozen=True)
class Optimized:
    """The optimized ONNX file, what it is, and what goes with it.

    `recipe` is the one that was followed (canonical JSON), `report` what is told, `picture` an SVG of it.
    """

    model: bytes
    description: ModelReport
    recipe: bytes
    report: Report
    picture: bytes


class _Meter:
    """Makes one growing share of the progress of several pieces of work, each as long as the others."""

    def __init__(self, pieces: int, progress: Progress) -> None:
        self._pieces, self._progress, self._done, self._last = pieces, progress, 0, 0.0

    def __call__(self, stage: str, share: float) -> None:
        # Stages of a piece follow each other from 0 to 1; what was reached stays reached.
        self._last = max(self._last, (self._done + min(share, 1.0)) / self._pieces)
        self._progress(stage, self._last)

    def next(self, stage: str) -> None:
        """A piece is done."""
        self(stage, 1.0)
        self._done += 1


def _silent(stage: str, share: float) -> None:
    """Progress that nobody watches."""


def optimize(
    model: bytes,
    arrays: Mapping[str, Any] | None = None,
    options: Options | None = None,
    *,
    limits: Limits | None = None,
    progress: Progress = _silent,
    check: Check = check_model,
) -> Optimized:
    """Follow the recipes and give what the smallest within the bound made; the same request gives the same bytes.

    `arrays` are the samples, numpy arrays by name (see `samples.match_samples`), needed to quantize and used to compare.
    `progress` gets (step, share of the whole). `check` looks at the file first: in a process that may die,
    `check_model_here` does. Raises ModelRejected, or an OptimizerError; with several recipes one that can't be followed
    is only told of in the report, unless all fail.
    """
    options, limits = options or Options(), limits or Limits()
    meter = _Meter(len(options.recipes) + 3, progress)
    description = check(model, "onnx", limits)
    meter.next("check")
    samples = None if arrays is None else match_samples(arrays, description)
    if samples is None and any(recipe.needs_samples for recipe in options.recipes):
        raise SamplesInvalid("quantization and refitting need calibration samples")
    source = ModelProto.FromString(model)
    simple = with_shapes(canonical(simplify(source)))
    measured = None
    if samples is not None:
        reference = _finite(run(source, samples, meter, "run the float model"))
        measured = Measured(samples, reference, classifies(source, options.task))
    meter.next("fold")
    tried = [
        _tried(simple, recipe, measured, f"/recipes/{index}", limits, meter, alone=len(options.recipes) == 1)
        for index, recipe in enumerate(options.recipes)
    ]
    bound = bound_for(options.bound, len(tried), classes=measured is not None and measured.classes)
    if measured is None:
        bound = options.bound
    results = [replace(result, within_bound=keeps(result, bound)) for result, _, _ in tried]
    results = [replace(result, pareto=best) for result, best in zip(results, front(results), strict=True)]
    place = smallest(results, bound)
    if place is None:
        raise _missed(results, bound)
    made, data = tried[place][1], tried[place][2]
    assert made is not None
    layers: Sequence[Sensitivity] = made.layers
    if options.sensitivity and measured is not None and not layers:
        layers = _sensitivities(made, results[place].recipe, measured, meter)
    report = Report(
        before=_size(model, source, description),
        results=results,
        chosen=place,
        bound=bound,
        layers=layers,
        samples=0 if samples is None else len(samples),
        labelled=0 if samples is None or samples.labels is None else int((samples.labels >= 0).sum()),
    )
    meter.next("report")
    after = check_model_here(data, "onnx", limits)
    return Optimized(data, after, results[place].recipe.to_json(), report, draw(report))


def _tried(
    simple: ModelProto,
    recipe: Recipe,
    measured: Measured | None,
    pointer: str,
    limits: Limits,
    meter: _Meter,
    *,
    alone: bool,
) -> tuple[Result, Made | None, bytes]:
    try:
        made = follow(simple, recipe, measured, pointer, lambda stage, share: meter(f"{recipe.name}: {stage}", share))
        data = made.model.SerializeToString(deterministic=True)
        description = check_model_here(data, "onnx", limits)
        held_out = measured is not None and recipe.fits and len(measured.samples) >= FOLDS
        evaluation = None
        if measured is not None:
            evaluation = (
                _held_out(simple, recipe, measured, pointer, meter) if held_out else measured.evaluate(made.model)
            )
    except (OptimizerError, ModelRejected) as error:
        meter.next(recipe.name)
        if alone or getattr(error, "reason", "") == "RECIPE_INVALID":
            raise
        fault = {"reason": error.reason, "message": str(error), "metadata": dict(error.metadata)}
        return Result(recipe, error=fault), None, b""
    meter.next(recipe.name)
    return Result(recipe, _size(data, made.model, description), evaluation, made.notes, held_out=held_out), made, data


def _held_out(simple: ModelProto, recipe: Recipe, measured: Measured, pointer: str, meter: _Meter) -> Evaluation:
    """The evaluation of a recipe that fits weights, on samples that the fit has not seen (cross-validation).

    The recipe is followed once for each of `FOLDS` parts of the samples, one part being every third sample, without that part.
    """
    places = np.arange(len(measured.samples))
    outputs = {name: np.empty_like(values) for name, values in measured.reference.items()}
    for fold in range(FOLDS):
        inside = places % FOLDS == fold
        made = follow(simple, recipe, measured.only(places[~inside]), pointer, _silent)
        found = run(made.model, measured.samples.only(places[inside]), _silent, "")
        for name, values in found.items():
            outputs[name][inside] = values
        meter(f"{recipe.name}: evaluate on held-out samples", 0.0)
    return compare(measured.reference, outputs, measured.samples.labels, classes=measured.classes)


def _size(data: bytes, model: ModelProto, description: ModelReport) -> Size:
    parameters, nonzero = counted(model)
    return Size(
        hashlib.sha256(data).hexdigest(),
        len(data),
        description.parameter_bytes,
        parameters,
        nonzero,
        dict(description.operators),
    )


def _sensitivities(made: Made, recipe: Recipe, measured: Measured, meter: _Meter) -> list[Sensitivity]:
    step = recipe.quantize or Quantize()
    layers = find_layers(made.real)
    try:
        ranges = made.ranges if made.ranges is not None else calibrate(made.real, measured.samples, step, meter)
        return sensitivities(made.real, layers, ranges, step, measured, meter)
    except NotQuantizable:
        return []  # a model that is only folded may have no integer form


def _missed(results: Sequence[Result], bound: Any) -> OptimizerError:
    made = [result for result in results if result.size is not None]
    if not made:
        fault = results[0].error or {}
        return NotQuantizable(f"no recipe could be followed: {fault.get('message', '')}")
    best = min(made, key=lambda result: (result.drop or 0.0, -(result.snr_db if result.snr_db is not None else np.inf)))
    words = [] if best.drop is None else [f"drop {best.drop:.4f}"]
    words += [] if best.snr_db is None else [f"{best.snr_db:.1f} dB"]
    wanted = [] if bound.max_drop is None else [f"a drop of at most {bound.max_drop:g}"]
    wanted += [] if bound.min_snr_db is None else [f"at least {bound.min_snr_db:g} dB"]
    return BoundMissed(" and ".join(wanted), f"{best.recipe.name} ({', '.join(words) or 'not compared'})")


def _finite(outputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The outputs; NotQuantizable if one is NaN or infinite, since then neither ranges nor errors mean anything."""
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise NotQuantizable(f"output {name} of the float model is not finite on the samples", tensor=name)
    return outputs
