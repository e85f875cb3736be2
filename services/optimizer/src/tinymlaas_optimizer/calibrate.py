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
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

from tinymlaas_optimizer.errors import NotQuantizable
from tinymlaas_optimizer.options import Calibration, Options
from tinymlaas_optimizer.samples import Samples

# The histogram calibrators keep all tensors of a batch in memory.
_BATCH: Final = 8
_METHODS: Final = {
    Calibration.MINMAX: CalibrationMethod.MinMax,
    Calibration.ENTROPY: CalibrationMethod.Entropy,
    Calibration.PERCENTILE: CalibrationMethod.Percentile,
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


def calibrate(model: ModelProto, samples: Samples, options: Options, progress: Progress) -> Mapping[str, Range]:
    """The range of each float tensor that is not constant; NotQuantizable if a sample makes one of them not finite."""
    extra: dict[str, bool | float] = {"symmetric": options.symmetric_activations}
    if options.calibration is Calibration.PERCENTILE:
        extra["percentile"] = options.percentile
    # The calibrators print as they go; standard output may be a worker's channel.
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        source = Path(folder) / "float.onnx"
        onnx.save(model, source)
        calibrator = create_calibrator(
            source,
            [],
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=_METHODS[options.calibration],
            extra_options=extra,
        )
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
