"""Options of a compilation: JSON Schema, defaults, and errors that name the nearest option."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tinymlaas_compiler_tflm.errors import OptionInvalid, OptionUnknown

SYMBOL = r"^[a-z][a-z0-9_]{0,31}$"

OPTION_SCHEMA: dict[str, object] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "symbol": {
            "type": "string",
            "pattern": SYMBOL,
            "default": "model",
            "description": "Prefix of files and C identifiers in a source package; no name of the model gets there.",
        },
    },
}


@dataclass(frozen=True)
class Options:
    """Checked options."""

    symbol: str = "model"

    @staticmethod
    def of(values: Mapping[str, object]) -> Options:
        """Options out of a JSON object. Errors: OptionUnknown, OptionInvalid."""
        for name in values:
            if name != "symbol":
                near = difflib.get_close_matches(str(name)[:64], ["symbol"], 1, 0.5)
                raise OptionUnknown(f"no such option: {str(name)[:64]}", option=str(name)[:64], nearest="".join(near))
        symbol = values.get("symbol", "model")
        if not isinstance(symbol, str) or not re.match(SYMBOL, symbol) or symbol.endswith("\n"):
            raise OptionInvalid(f"symbol must match {SYMBOL}", option="symbol", nearest="model")
        return Options(symbol)
