"""Makes models smaller: float ONNX, samples and recipes to ONNX that is folded, pruned or quantized."""

import os

# Before numpy is loaded: sums of the refit must not depend on how many cores there are, nor its threads wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tinymlaas_optimizer.errors import (
    BoundMissed,
    LimitExceeded,
    NotFloat,
    NotQuantizable,
    OptimizerError,
    OptionInvalid,
    OptionUnknown,
    RecipeInvalid,
    SamplesInvalid,
)
from tinymlaas_optimizer.evaluate import Evaluation, OutputFidelity
from tinymlaas_optimizer.optimize import Optimized, optimize
from tinymlaas_optimizer.options import SCHEMA, Bound, Options, Task
from tinymlaas_optimizer.recipe import Recipe
from tinymlaas_optimizer.report import Report, Result, Size
from tinymlaas_optimizer.samples import Samples, match_samples, read_npz
from tinymlaas_optimizer.sensitivity import Sensitivity

__all__ = [
    "SCHEMA",
    "Bound",
    "BoundMissed",
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
    "Recipe",
    "RecipeInvalid",
    "Report",
    "Result",
    "Samples",
    "SamplesInvalid",
    "Sensitivity",
    "Size",
    "Task",
    "match_samples",
    "optimize",
    "read_npz",
]
