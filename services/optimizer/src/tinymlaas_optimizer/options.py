"""Options of the optimizer, their JSON Schema, and how a request's options become values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import jsonschema

from tinymlaas_optimizer.errors import OptionInvalid, OptionUnknown


class Calibration(StrEnum):
    """How the range of a tensor follows from the values seen."""

    MINMAX = "minmax"
    ENTROPY = "entropy"
    PERCENTILE = "percentile"


class Task(StrEnum):
    """What the first output means: a score for each class, something else, or classes if a Softmax makes it."""

    AUTO = "auto"
    CLASSIFY = "classify"
    OTHER = "other"


class Border(StrEnum):
    """Element type of the optimized model's inputs and outputs."""

    INT8 = "int8"
    FLOAT32 = "float32"


SCHEMA: Final[Mapping[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Optimizer options",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "quantize": {
            "type": "boolean",
            "default": True,
            "description": "Quantize to int8; if false the model is only folded and simplified.",
        },
        "calibration": {
            "enum": [method.value for method in Calibration],
            "default": "minmax",
            "description": "How ranges of activations are found: all values seen, least information lost, or a percentile.",
        },
        "percentile": {
            "type": "number",
            "exclusiveMinimum": 50,
            "maximum": 100,
            "default": 99.999,
            "description": "Share of the values that a range holds, in percent; used with calibration `percentile`.",
        },
        "per_channel": {
            "type": "boolean",
            "default": True,
            "description": "One scale for each output channel of a weight tensor.",
        },
        "symmetric_activations": {
            "type": "boolean",
            "default": False,
            "description": "Zero points of activations are 0; costs a bit of resolution after Relu.",
        },
        "io": {
            "enum": [border.value for border in Border],
            "default": "int8",
            "description": "Type of the inputs and outputs of the optimized model.",
        },
        "task": {
            "enum": [task.value for task in Task],
            "default": "auto",
            "description": "Whether the first output has one score for each class, so that labels give an accuracy.",
        },
    },
}


@dataclass(frozen=True)
class Options:
    """What to do with a model; the defaults are those of `SCHEMA`."""

    quantize: bool = True
    calibration: Calibration = Calibration.MINMAX
    percentile: float = 99.999
    per_channel: bool = True
    symmetric_activations: bool = False
    io: Border = Border.INT8
    task: Task = Task.AUTO

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Options:
        """The options of a request; OptionUnknown or OptionInvalid names the first that is wrong."""
        known = list(SCHEMA["properties"])
        for name in given:
            if name not in known:
                raise OptionUnknown(str(name), known)
        errors = sorted(jsonschema.Draft202012Validator(SCHEMA).iter_errors(given), key=lambda error: list(error.path))
        for error in errors:
            raise OptionInvalid(str(next(iter(error.path), "")), error.message)
        values = dict(given)
        for name, kind in (("calibration", Calibration), ("io", Border), ("task", Task)):
            if name in values:
                values[name] = kind(values[name])
        return cls(**values)
