"""Safe checks of model files: a clear verdict on any bytes, whoever sent them.

`check_model` tells what an acceptable file is (`ModelReport`) or why it is not (`ModelRejected`);
`check_model_isolated` and `check_model_isolated_async` do all of it in a child process that may die. No file that a
model names is ever opened.
"""

from ._isolated import (
    CheckerUnavailable,
    check_model,
    check_model_here,
    check_model_isolated,
    check_model_isolated_async,
)
from ._limits import Limits
from ._rejection import CODES, HELP, Code, ModelRejected, Problem, safe_text
from ._report import ModelReport, Precision, TensorReport
from ._structure import FORMATS, Format, check_structure

__all__ = [
    "CODES",
    "FORMATS",
    "HELP",
    "CheckerUnavailable",
    "Code",
    "Format",
    "Limits",
    "ModelRejected",
    "ModelReport",
    "Precision",
    "Problem",
    "TensorReport",
    "check_model",
    "check_model_here",
    "check_model_isolated",
    "check_model_isolated_async",
    "check_structure",
    "safe_text",
]
