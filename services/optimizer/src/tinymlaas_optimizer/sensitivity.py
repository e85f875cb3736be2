"""What quantizing single layers costs, and which layers to keep in a wider type for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from tinymlaas_optimizer.calibrate import Progress, Range
from tinymlaas_optimizer.evaluate import Array, Evaluation, compare, run
from tinymlaas_optimizer.layers import Layer, constant, with_followers
from tinymlaas_optimizer.quantize import quantize
from tinymlaas_optimizer.recipe import Activations, Border, Fallback, Mixed, Quantize
from tinymlaas_optimizer.samples import Samples
from tinymlaas_optimizer.scales import find_scales

# Of a layer that adds no noise at all.
_SILENT = 999.0


@dataclass(frozen=True)
class Sensitivity:
    """The model with only this layer quantized, against the same model in float.

    `snr_db` is that of the worst output (None: no noise); `drop` the share of samples lost (see `Evaluation`).
    """

    layer: str
    op: str
    parameters: int
    snr_db: float | None
    drop: float | None


@dataclass(frozen=True)
class Measured:
    """What measuring needs: samples, what the float model gives on them, whether the first output scores classes."""

    samples: Samples
    reference: Mapping[str, Array]
    classes: bool

    def only(self, places: npt.NDArray[np.int64]) -> Measured:
        """The same on some of the samples."""
        reference = {name: values[places] for name, values in self.reference.items()}
        return Measured(self.samples.only(places), reference, self.classes)

    def evaluate(self, model: ModelProto) -> Evaluation:
        """The model against the float model."""
        outputs = run(model, self.samples, _silent, "")
        return compare(self.reference, outputs, self.samples.labels, classes=self.classes)


def _silent(stage: str, share: float) -> None:
    """Progress that is reported elsewhere."""


def sensitivities(
    model: ModelProto,
    layers: Sequence[Layer],
    ranges: Mapping[str, Range],
    step: Quantize,
    measured: Measured,
    progress: Progress,
) -> list[Sensitivity]:
    """Each layer's sensitivity to being quantized as `step` would, in the order of the layers."""
    # Against this model, not the one before pruning, whose noise would cover that of a layer.
    alone = Measured(measured.samples, run(model, measured.samples, _silent, ""), measured.classes)
    found = []
    for index, layer in enumerate(layers):
        single = quantized(model, ranges, step, only=with_followers(model, [layer.name]))
        evaluation = alone.evaluate(single)
        parameters = sum(constant(model, name).size for name in (layer.weights, layer.bias) if name)
        found.append(Sensitivity(layer.name, layer.op, parameters, worst_snr(evaluation), evaluation.drop))
        progress("measure layers", (index + 1) / len(layers))
    return found


def choose_layers(
    model: ModelProto,
    layers: Sequence[Layer],
    ranges: Mapping[str, Range],
    step: Quantize,
    mixed: Mixed,
    measured: Measured,
    found: Sequence[Sensitivity],
) -> list[str]:
    """The layers to keep as `mixed.to`, most sensitive first, within the budget (see `Mixed`)."""
    sizes = {layer.name: constant(model, layer.weights).size for layer in layers}
    order = sorted(found, key=lambda entry: (_SILENT if entry.snr_db is None else entry.snr_db, entry.layer))
    kept: list[str] = []
    extra = 0
    for entry in order:
        if mixed.min_snr_db is not None:
            now = worst_snr(measured.evaluate(quantized(model, ranges, step, keep=kept, to=mixed.to)))
            if now is None or now >= mixed.min_snr_db:
                break
        if len(kept) == mixed.max_layers:
            break
        # A float weight takes three bytes more than an int8 one; int16 activations change no weight.
        more = 3 * sizes[entry.layer] if mixed.to is Fallback.FLOAT32 else 0
        if mixed.max_extra_bytes is not None and extra + more > mixed.max_extra_bytes:
            continue
        extra += more
        kept.append(entry.layer)
    return kept


def quantized(
    model: ModelProto,
    ranges: Mapping[str, Range],
    step: Quantize,
    *,
    only: Collection[str] = (),
    exclude: Collection[str] = (),
    keep: Collection[str] = (),
    to: Fallback = Fallback.FLOAT32,
    border: Border = Border.FLOAT32,
) -> ModelProto:
    """The QDQ form as a step wants it, of all nodes or of those in `only`; layers in `keep` as `to`, `exclude` as float."""
    wide: set[str] = set()
    if step.activations is Activations.INT16:
        wide = set(ranges)
    elif to is Fallback.INT16 and keep:
        names = set(with_followers(model, keep))
        wide = {name for node in model.graph.node if node.name in names for name in (node.input[0], *node.output[:1])}
    apart = [*exclude, *(keep if to is Fallback.FLOAT32 else ())]
    scales = find_scales(model, ranges, symmetric=step.symmetric_activations, wide=wide)
    return quantize(
        model,
        ranges,
        scales,
        per_channel=step.per_channel,
        border=border,
        only=only,
        exclude=with_followers(model, apart) if apart else (),
    )


def worst_snr(evaluation: Evaluation) -> float | None:
    """The lowest signal to noise ratio of the outputs in dB; None: there is no noise."""
    return min((output.snr_db for output in evaluation.outputs if output.snr_db is not None), default=None)
