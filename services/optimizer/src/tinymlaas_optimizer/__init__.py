"""Makes models smaller: float ONNX and calibration samples to QDQ int8 ONNX, the same form for every compiler."""

from tinymlaas_optimizer.errors import (
    LimitExceeded,
    NotFloat,
    NotQuantizable,
    OptimizerError,
    OptionInvalid,
    OptionUnknown,
    SamplesInvalid,
)
from tinymlaas_optimizer.evaluate import Evaluation, OutputFidelity
from tinymlaas_optimizer.optimize import Optimized, Report, optimize
from tinymlaas_optimizer.options import SCHEMA, Border, Calibration, Options
from tinymlaas_optimizer.samples import Samples, match_samples, read_npz

__all__ = [
    "SCHEMA",
    "Border",
    "Calibration",
    "Evaluation",
    "LimitExceeded",
    "NotFloat",
    "NotQuantizable",
    "Optimized",
    "OptimizerError",
    "OptionInvalid",
    "OptionUnknown",
    "Options",
    "OutputFidelity",
    "Report",
    "Samples",
    "SamplesInvalid",
    "match_samples",
    "optimize",
    "read_npz",
]
