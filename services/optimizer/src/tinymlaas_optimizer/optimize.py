"""The whole way from a float ONNX file and samples to an optimized file and its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto

from tinymlaas_modelkit.check import Limits, ModelReport, check_model
from tinymlaas_optimizer.calibrate import Progress, calibrate
from tinymlaas_optimizer.canonical import canonical
from tinymlaas_optimizer.errors import NotQuantizable, SamplesInvalid
from tinymlaas_optimizer.evaluate import Evaluation, classifies, compare, run
from tinymlaas_optimizer.options import Options
from tinymlaas_optimizer.quantize import quantize
from tinymlaas_optimizer.samples import Samples, match_samples
from tinymlaas_optimizer.scales import find_scales
from tinymlaas_optimizer.simplify import simplify


@dataclass(frozen=True)
class Report:
    """What the optimizer did.

    Bytes of the file and of its parameters, operators, and the outputs if samples were given.
    """

    bytes_before: int
    bytes_after: int
    parameter_bytes_before: int
    parameter_bytes_after: int
    operators_before: Mapping[str, int]
    operators_after: Mapping[str, int]
    options: Options
    evaluation: Evaluation | None

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON can hold."""
        return asdict(self)


@dataclass(frozen=True)
class Optimized:
    """The optimized ONNX file, what it is, and the report."""

    model: bytes
    description: ModelReport
    report: Report


def _silent(stage: str, share: float) -> None:
    """Progress that nobody watches."""


def optimize(
    model: bytes,
    arrays: Mapping[str, Any] | None = None,
    options: Options | None = None,
    *,
    limits: Limits | None = None,
    progress: Progress = _silent,
) -> Optimized:
    """Fold, simplify and, unless told otherwise, quantize an ONNX file; the same request gives the same bytes.

    `arrays` are the samples, numpy arrays by name (see `samples.match_samples`), needed to quantize and used to
    compare. `progress` gets (stage, share of the stage). Raises ModelRejected, or an OptimizerError.
    """
    options = options or Options()
    limits = limits or Limits()
    before = check_model(model, "onnx", limits)
    progress("check", 1.0)
    samples = None if arrays is None else match_samples(arrays, before)
    if options.quantize and samples is None:
        raise SamplesInvalid("quantization needs calibration samples")
    source = ModelProto.FromString(model)
    simple = simplify(source)
    progress("simplify", 1.0)
    reference = None if samples is None else _finite(run(source, samples, progress, "run before"))
    after = canonical(_quantized(simple, samples, options, progress) if options.quantize and samples else simple)
    data = after.SerializeToString(deterministic=True)
    description = check_model(data, "onnx", limits)
    evaluation = None
    if samples is not None and reference is not None:
        outputs = run(after, samples, progress, "run after")
        evaluation = compare(reference, outputs, samples.labels, classes=classifies(source, options.task))
    report = Report(
        bytes_before=len(model),
        bytes_after=len(data),
        parameter_bytes_before=before.parameter_bytes,
        parameter_bytes_after=description.parameter_bytes,
        operators_before=before.operators,
        operators_after=description.operators,
        options=options,
        evaluation=evaluation,
    )
    return Optimized(data, description, report)


def _finite(outputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The outputs; NotQuantizable if one is NaN or infinite, since then neither ranges nor errors mean anything."""
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise NotQuantizable(f"output {name} of the float model is not finite on the samples", tensor=name)
    return outputs


def _quantized(model: ModelProto, samples: Samples, options: Options, progress: Progress) -> ModelProto:
    ranges = calibrate(model, samples, options, progress)
    if not ranges:
        raise NotQuantizable("the model has no float tensor to quantize")
    scales = find_scales(model, ranges, symmetric=options.symmetric_activations)
    quantized = quantize(model, ranges, scales, per_channel=options.per_channel, border=options.io)
    if not Counter(node.op_type for node in quantized.graph.node)["QuantizeLinear"]:
        raise NotQuantizable("no operator of the model can be quantized")
    onnx.checker.check_model(quantized)
    progress("quantize", 1.0)
    return quantized
