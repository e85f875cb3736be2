"""Options of a compilation: JSON Schema, defaults, and errors that name the nearest option or value."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from tinymlaas_compiler_tvm.errors import OptionInvalid, OptionUnknown

OPTION_SCHEMA: Mapping[str, object] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "rounding": {
            "type": "string",
            "enum": ["tflite", "onnx"],
            "default": "tflite",
            "description": (
                "Reference that int8 layers follow: TFLite Micro's reference kernels (fixed point, bit by bit), "
                "or ONNX Runtime on the QDQ graph (to nearest even)."
            ),
        },
        "objective": {
            "type": "string",
            "enum": ["balanced", "latency", "flash", "ram"],
            "default": "balanced",
            "description": (
                "What to prefer where kernels trade speed for flash or RAM; `balanced` turns to `flash` where a target has "
                "too little of it."
            ),
        },
        "tune": {
            "type": "integer",
            "minimum": 0,
            "maximum": 3,
            "default": 0,
            "description": (
                "Effort of the search for kernel variants, counted on a simulated CPU: 0 takes the shipped database, "
                "1 seconds, 2 minutes, 3 more. Layers of int8 only."
            ),
        },
    },
}


@dataclass(frozen=True)
class Options:
    """Checked options."""

    rounding: str = "tflite"
    objective: str = "balanced"
    tune: int = 0

    @staticmethod
    def of(values: Mapping[str, object]) -> Options:
        """Options out of a JSON object; OptionUnknown or OptionInvalid names the offender."""
        properties = OPTION_SCHEMA["properties"]
        assert isinstance(properties, dict)
        for name, value in values.items():
            if name not in properties:
                close = difflib.get_close_matches(str(name), list(properties), n=1, cutoff=0.0)
                raise OptionUnknown("no such option", option=name, nearest=close[0] if close else "")
            _check(name, value, properties[name])
        return Options(**dict(values))  # type: ignore[arg-type]


def _check(name: str, value: object, rule: Mapping[str, object]) -> None:
    if rule["type"] == "integer":
        low, high = int(str(rule["minimum"])), int(str(rule["maximum"]))
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            nearest = min(max(value, low), high) if isinstance(value, int) else low
            raise OptionInvalid("value is out of range", option=name, nearest=nearest)
        return
    allowed = [str(choice) for choice in rule["enum"]]  # type: ignore[attr-defined]
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)
        raise OptionInvalid("value is not one of the choices", option=name, nearest=close[0] if close else allowed[0])
