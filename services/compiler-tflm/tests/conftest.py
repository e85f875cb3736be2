"""Shared by the tests of compiler-tflm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tinymlaas_modelkit.graph import DType, Tensor
from tinymlaas_modelkit.tflite_schema import CODES
from tinymlaas_modelkit.tflite_writer._builder import Encoded, FileBuilder

ZOO = Path(__file__).parents[3] / "zoo"


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The folder of the models that ship with the product."""
    return ZOO


def _one_operator(name: str, code: int | None = None) -> bytes:
    builder = FileBuilder()
    for tensor in ("x", "y"):
        builder.tensors[tensor] = Tensor(tensor, (1, 4), DType.FLOAT32)
    builder.ops = [Encoded(CODES[name] if code is None else code, 1, ("x",), ("y",), 0, None)]
    return builder.file(["x"], ["y"])


@pytest.fixture(scope="session")
def one_operator() -> Callable[..., bytes]:
    """Make a TFLite file with one operator of the schema, without options, from input `x` to output `y`."""
    return _one_operator
