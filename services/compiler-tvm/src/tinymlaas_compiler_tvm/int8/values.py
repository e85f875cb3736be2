"""C literals and initializers of compile-time values."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Values = list[int | float]


def literal(value: int | float) -> str:
    """A C literal: integers as they are, floats in hexadecimal so that no digit is lost."""
    if isinstance(value, float):
        return f"{float(np.float32(value)).hex()}f"
    return str(int(value))


def braces(values: Iterable[int | float]) -> str:
    """A C initializer."""
    return "{" + ", ".join(literal(value) for value in values) + "}"
