"""The range of values that each float tensor takes over the calibration samples, by ONNX Runtime's calibrators."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization.calibrate import EntropyCalibrater, MinMaxCalibrater, PercentileCalibrater

from tinymlaas_optimizer.errors import NotQuantizable
from tinymlaas_optimizer.recipe import Calibration, Quantize
from tinymlaas_optimizer.runtime import session
from tinymlaas_optimizer.samples import Samples

# The histogram calibrators keep all tensors of a batch in memory.
_BATCH: Final = 8
_METHODS: Final = {
    Calibration.MINMAX: MinMaxCalibrater,
    Calibration.ENTROPY: EntropyCalibrater,
    Calibration.PERCENTILE: PercentileCalibrater,
}
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Range:
    """Lowest and highest value, always with 0 between them, since padding and Relu need an exact zero."""

    low: float
    high: float

    def union(self, other: Range) -> Range:
        """The smallest range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))


class _Feeds(CalibrationDataReader):  # type: ignore[misc]
    """A batch of samples in the form that the calibrators take."""

    def __init__(self, feeds: list[dict[str, npt.NDArray[Any]]]) -> None:
        self._feeds: Iterator[dict[str, npt.NDArray[Any]]] = iter(feeds)

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """The next sample, None at the end."""
        return next(self._feeds, None)


def calibrate(model: ModelProto, samples: Samples, step: Quantize, progress: Progress) -> Mapping[str, Range]:
    """The range of each float tensor that is not constant; NotQuantizable if a sample makes one of them not finite."""
    extra: dict[str, bool | float] = {"symmetric": step.symmetric_activations}
    if step.calibration is Calibration.PERCENTILE:
        extra["percentile"] = step.percentile
    # The calibrators print as they go; standard output may be a worker's channel.
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        source, augmented = Path(folder) / "float.onnx", Path(folder) / "augmented.onnx"
        onnx.save(model, source)
        calibrator = _METHODS[step.calibration](source, [], augmented_model_path=str(augmented), **extra)
        calibrator.augment_graph()
        # Not its own session, whose number of threads is that of the machine's cores: sums must not depend on it.
        calibrator.infer_session = session(augmented.read_bytes())
        feeds = list(samples.feeds())
        for start in range(0, len(feeds), _BATCH):
            calibrator.collect_data(_Feeds(feeds[start : start + _BATCH]))
            progress("calibrate", min(1.0, (start + _BATCH) / len(feeds)))
        found = calibrator.compute_data()
    ranges = {}
    for name in sorted(found.keys()):
        low, high = (float(np.asarray(edge).reshape(-1)[0]) for edge in found[name].range_value)
        if not np.isfinite([low, high]).all():
            raise NotQuantizable(f"tensor {name} takes values that are not finite on the samples", tensor=name)
        ranges[name] = Range(min(low, 0.0), max(high, 0.0))
    return ranges
