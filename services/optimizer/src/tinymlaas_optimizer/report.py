"""What the optimizer tells of its work, as values that JSON can hold: one result for each recipe, and the layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from tinymlaas_optimizer.evaluate import Evaluation
from tinymlaas_optimizer.options import USUAL, USUAL_UNCLASSIFIED, Bound
from tinymlaas_optimizer.recipe import Recipe
from tinymlaas_optimizer.sensitivity import Sensitivity, worst_snr

VERSION: Final = 1


@dataclass(frozen=True)
class Size:
    """A model's size: of the file; of its constants without scales and zero points; how many of these are not zero."""

    sha256: str
    bytes: int
    parameter_bytes: int
    parameters: int
    nonzero_parameters: int
    operators: Mapping[str, int]


@dataclass(frozen=True)
class Result:
    """What became of one recipe: a model with its size and evaluation, or the error it ended with.

    `held_out`: the recipe fits weights, so the evaluation is a cross-validation, on samples that no fit had seen.
    """

    recipe: Recipe
    size: Size | None = None
    evaluation: Evaluation | None = None
    notes: Sequence[Mapping[str, Any]] = ()
    error: Mapping[str, Any] | None = None
    held_out: bool = False
    within_bound: bool = False
    pareto: bool = False

    @property
    def drop(self) -> float | None:
        """See `Evaluation`."""
        return None if self.evaluation is None else self.evaluation.drop

    @property
    def snr_db(self) -> float | None:
        """See `sensitivity.worst_snr`."""
        return None if self.evaluation is None else worst_snr(self.evaluation)

    def to_dict(self) -> dict[str, Any]:
        """The result as values that JSON can hold."""
        return {
            "recipe": self.recipe.to_dict(),
            "model": None if self.size is None else asdict(self.size),
            "evaluation": None if self.evaluation is None else asdict(self.evaluation),
            "held_out": self.held_out,
            "drop": self.drop,
            "snr_db": self.snr_db,
            "steps": list(self.notes),
            "error": self.error,
            "within_bound": self.within_bound,
            "pareto": self.pareto,
        }


@dataclass(frozen=True)
class Report:
    """The whole: the model before, a result for each recipe, which one was taken, what each layer costs."""

    before: Size
    results: Sequence[Result]
    chosen: int
    bound: Bound | None
    layers: Sequence[Sensitivity]
    samples: int
    labelled: int

    @property
    def taken(self) -> Result:
        """The result that was taken."""
        return self.results[self.chosen]

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON can hold."""
        return {
            "version": VERSION,
            "before": asdict(self.before),
            "samples": self.samples,
            "labelled": self.labelled,
            "bound": None if self.bound is None else asdict(self.bound),
            "results": [result.to_dict() for result in self.results],
            "chosen": self.chosen,
            "layers": [asdict(layer) for layer in self.layers],
        }

    def to_json(self) -> bytes:
        """The report as the bytes that are stored."""
        return (json.dumps(self.to_dict(), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def counted(model: ModelProto) -> tuple[int, int]:
    """How many parameters a model has and how many are not zero: constants of at least one dimension that are numbers.

    Scales, zero points and shapes do not count.
    """
    small = {
        name
        for node in model.graph.node
        for place, name in enumerate(node.input)
        if (node.op_type in ("QuantizeLinear", "DequantizeLinear") and place)
        or (node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Pad", "Slice", "Resize", "Clip") and place)
    }
    total = nonzero = 0
    for tensor in model.graph.initializer:
        if tensor.name in small or not tensor.dims or tensor.data_type in (TensorProto.INT64, TensorProto.BOOL):
            continue
        values = numpy_helper.to_array(tensor)
        total += values.size
        nonzero += int(np.count_nonzero(values.astype(np.float32) if values.dtype.kind not in "fiu" else values))
    return total, nonzero


def bound_for(given: Bound | None, recipes: int, *, classes: bool) -> Bound | None:
    """The bound that holds: the one given, none for one recipe, the usual one for several."""
    if given is not None or recipes == 1:
        return given
    return USUAL if classes else USUAL_UNCLASSIFIED


def keeps(result: Result, bound: Bound | None) -> bool:
    """Whether a result is there and within the bound; what could not be measured is not within it."""
    if result.size is None:
        return False
    if bound is None:
        return True
    lost, snr = result.drop, result.snr_db
    # None: no noise at all, when the outputs were compared.
    quiet = result.evaluation is not None and (snr is None or bound.min_snr_db is None or snr >= bound.min_snr_db)
    if bound.min_snr_db is not None and not quiet:
        return False
    return bound.max_drop is None or (lost is not None and lost <= bound.max_drop + 1e-9)


def smallest(results: Sequence[Result], bound: Bound | None) -> int | None:
    """The place of the smallest result within the bound: parameter bytes, then parameters that are not zero, then noise."""
    best: tuple[tuple[float, ...], int] | None = None
    for index, result in enumerate(results):
        if result.size is None or not keeps(result, bound):
            continue
        snr = result.snr_db if result.snr_db is not None else float("inf")
        key = (result.size.parameter_bytes, result.size.nonzero_parameters, -snr)
        if best is None or key < best[0]:
            best = key, index
    return None if best is None else best[1]


def front(results: Sequence[Result]) -> list[bool]:
    """Which results are not beaten: none is at least as good in bytes, bytes that are not zero and quality, and better in one.

    Quality is the accuracy kept where classes are, else the signal to noise ratio.
    """

    def figures(result: Result) -> tuple[float, float, float] | None:
        if result.size is None:
            return None
        snr = result.snr_db if result.snr_db is not None else float("inf")
        lost = result.drop if result.drop is not None else -snr
        # Whole percents: a few weights that quantization happens to round to zero are no merit.
        share = round(result.size.nonzero_parameters / max(result.size.parameters, 1), 2)
        return (result.size.parameter_bytes, share * result.size.parameter_bytes, lost)

    every = [figures(result) for result in results]
    return [
        mine is not None
        and not any(
            other is not None and other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
            for other in every
        )
        for mine in every
    ]
