"""Broken and hostile model files, made on the spot, each with the verdict that it must get.

For the tests of every part that takes model files: `GOOD` files must be accepted, `BAD` files be refused with their
status and problem, in seconds, by a service that goes on serving. Nothing here is needed at run time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ._rejection import CODES, Code, Problem
from ._structure import Format
from ._testing_onnx import (
    BAD_ONNX,
    constant,
    good_onnx,
    good_qdq_onnx,
    hostile_names_onnx,
    nested_if,
    onnx_model,
    value,
)
from ._testing_tflite import BAD_TFLITE, FileOp, FileTensor, TinyFile


@dataclass(frozen=True)
class BadFile:
    """A file that must be refused; `make` gives its bytes, the same on every call."""

    name: str
    problem: Problem
    make: Callable[[], bytes]

    @property
    def format(self) -> Format:
        """The format that the sender claims."""
        return "tflite" if self.name.endswith(".tflite") else "onnx"

    @property
    def code(self) -> Code:
        """The status that the file must get."""
        return CODES[self.problem]


def good_tflite() -> bytes:
    """A small valid int8 TFLite file."""
    return TinyFile().write()


GOOD: Final[dict[str, Callable[[], bytes]]] = {
    "float.onnx": good_onnx,
    "qdq.onnx": good_qdq_onnx,
    "hostile_names.onnx": hostile_names_onnx,
    "int8.tflite": good_tflite,
}


BAD: Final[tuple[BadFile, ...]] = tuple(BadFile(*row) for row in (*BAD_ONNX, *BAD_TFLITE))

__all__ = [
    "BAD",
    "GOOD",
    "BadFile",
    "FileOp",
    "FileTensor",
    "TinyFile",
    "constant",
    "good_onnx",
    "good_qdq_onnx",
    "good_tflite",
    "nested_if",
    "onnx_model",
    "value",
]
