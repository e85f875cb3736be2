"""Compare a model before and after on samples: classes against labels, and how far the outputs are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, numpy_helper

from tinymlaas_optimizer.calibrate import Progress
from tinymlaas_optimizer.options import Task
from tinymlaas_optimizer.runtime import session
from tinymlaas_optimizer.samples import Samples

# Operators that may stand between the scores and the output.
_MOVES = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose"))
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class OutputFidelity:
    """How well an output is kept: signal to noise in dB (None: no noise at all) and the largest absolute error."""

    name: str
    snr_db: float | None
    max_abs_error: float


@dataclass(frozen=True)
class Evaluation:
    """Shares are of the samples used.

    Accuracies are None without labels, and all shares unless the output scores classes.

    `agreement` is the share of samples whose largest output is the same before and after. `drop` is the share of samples
    lost: labelled ones that are right no more, less those that are right now, and others that changed their class; where
    all have labels, the accuracy lost.
    """

    samples: int
    labelled: int
    accuracy_before: float | None
    accuracy_after: float | None
    agreement: float | None
    drop: float | None
    outputs: tuple[OutputFidelity, ...]


@dataclass(frozen=True)
class _Border:
    """Quantization of an integer input or output of a QDQ model."""

    scale: float
    zero_point: int
    dtype: np.dtype[Any]


def borders(model: ModelProto) -> dict[str, _Border]:
    """Scale and zero point of the model's integer inputs and outputs, from the Q or DQ next to each."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    found = {}
    for node in model.graph.node:
        name = {"DequantizeLinear": node.input[:1], "QuantizeLinear": node.output[:1]}.get(node.op_type, [])
        for end in ends.intersection(name):
            scale, zero = (numpy_helper.to_array(constants[node.input[place]]) for place in (1, 2))
            found[end] = _Border(float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]), zero.dtype)
    return found


def run(model: ModelProto, samples: Samples, progress: Progress, stage: str) -> dict[str, Array]:
    """The real outputs of each sample, [samples, *shape]; integer inputs and outputs are converted by their scales."""
    runner = session(model)
    scales = borders(model)
    wanted = {value.name: value.type for value in runner.get_inputs()}
    names = [value.name for value in runner.get_outputs()]
    rows: list[list[Array]] = []
    for index, feed in enumerate(samples.feeds()):
        given = {
            name: _to_integers(values, scales[name]) if wanted[name] != "tensor(float)" and name in scales else values
            for name, values in feed.items()
        }
        rows.append(runner.run(names, given))
        progress(stage, (index + 1) / len(samples))
    out = {}
    for place, name in enumerate(names):
        values = np.stack([row[place] for row in rows])
        if name in scales:
            values = (values.astype(np.float64) - scales[name].zero_point) * scales[name].scale
        out[name] = values.astype(np.float64)
    return out


def _to_integers(values: Array, border: _Border) -> Array:
    steps = np.rint(values / np.float32(border.scale)) + border.zero_point
    limits = np.iinfo(border.dtype)
    return np.asarray(np.clip(steps, limits.min, limits.max), border.dtype)


def classifies(model: ModelProto, task: Task) -> bool:
    """Whether the first output of a float model has one score for each class."""
    if task is not Task.AUTO:
        return task is Task.CLASSIFY
    name = model.graph.output[0].name
    writers = {output: node for node in model.graph.node for output in node.output}
    node = writers.get(name)
    while node is not None and node.op_type in _MOVES:
        node = writers.get(node.input[0])
    return node is not None and node.op_type in ("Softmax", "LogSoftmax")


def compare(
    before: Mapping[str, Array], after: Mapping[str, Array], labels: Array | None, *, classes: bool
) -> Evaluation:
    """What changed between two runs over the same samples; `classes`: the first output scores classes."""
    first = next(iter(before))
    count = len(before[first])
    flat = before[first].reshape(count, -1)
    classes = classes and flat.shape[1] > 1
    best_before = flat.argmax(axis=1) if classes else None
    best_after = after[first].reshape(count, -1).argmax(axis=1) if classes else None
    true = np.full(count, -1) if labels is None or not classes else labels
    known = (true >= 0) & (true < flat.shape[1])
    labelled = int(known.sum())

    def accuracy(best: Array | None) -> float | None:
        return float(np.equal(best, true)[known].mean()) if labelled and best is not None else None

    return Evaluation(
        samples=count,
        labelled=labelled,
        accuracy_before=accuracy(best_before),
        accuracy_after=accuracy(best_after),
        agreement=float(np.equal(best_before, best_after).mean())
        if best_before is not None and best_after is not None
        else None,
        drop=_drop(best_before, best_after, true, known)
        if best_before is not None and best_after is not None
        else None,
        outputs=tuple(_fidelity(name, before[name], after[name]) for name in before),
    )


def _drop(before: Array, after: Array, true: Array, known: Array) -> float:
    lost = np.equal(before, true).astype(np.int64) - np.equal(after, true)
    return float(np.where(known, lost, np.not_equal(before, after)).mean())


def _fidelity(name: str, before: Array, after: Array) -> OutputFidelity:
    error = after - before
    noise, signal = float((error**2).sum()), float((before**2).sum())
    snr = None if noise == 0 else float(10 * np.log10(max(signal, np.finfo(np.float64).tiny) / noise))
    return OutputFidelity(name, snr, float(np.abs(error).max()))
