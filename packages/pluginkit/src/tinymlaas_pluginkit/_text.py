"""Text from strangers made safe for logs, terminals and messages."""

from __future__ import annotations

import re
import unicodedata

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)", re.DOTALL)


def clean(text: str, limit: int) -> str:
    """The text without terminal escapes and control characters (tabs become spaces), at most `limit` characters."""
    text = _ESCAPE.sub("", text[: 4 * limit]).replace("\t", " ")
    text = "".join(c for c in text if unicodedata.category(c)[0] != "C")
    return text if len(text) <= limit else text[: limit - 1] + "…"
