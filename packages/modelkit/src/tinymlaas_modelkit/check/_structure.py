"""Which format a file has, and the checks of that format that are safe in this process."""

from __future__ import annotations

from typing import Final, Literal

from ._limits import Limits
from ._onnx import CheckedOnnx, check_onnx_structure
from ._rejection import ModelRejected, Problem
from ._report import ModelReport
from ._tflite import IDENTIFIER, check_tflite_structure

Format = Literal["onnx", "tflite"]
FORMATS: Final[tuple[Format, ...]] = ("onnx", "tflite")
# First bytes of files that people send by mistake: ZIP (SavedModel, .keras, .pt), HDF5, gzip, ELF, PNG, pickle.
_OTHERS: Final = (b"PK\x03\x04", b"\x89HDF", b"\x1f\x8b", b"\x7fELF", b"\x89PNG", b"\x80\x04\x95", b"\x80\x02")
_HEAD: Final = 4096
_TEXT: Final = frozenset(range(32, 127)) | {9, 10, 13}


def _is_tflite(data: bytes) -> bool:
    return data[4:8] == IDENTIFIER


def _is_onnx(data: bytes) -> bool:
    """Whether the file starts as an ONNX file does: field 1, ir_version, a small number.

    Then another field of ModelProto.
    """
    return len(data) > 3 and data[0] == 0x08 and 0 < data[1] < 64 and data[2] >> 3 in (2, 3, 4, 5, 6, 7, 8)


def check_structure(data: bytes, format: Format, limits: Limits) -> CheckedOnnx | ModelReport:
    """The checks that need no library which might crash: all of TFLite's, and ONNX's up to shape inference.

    Raises ModelRejected with the first problem; ValueError if `format` is none of `FORMATS`.
    """
    if format not in FORMATS:
        raise ValueError(f"format is one of {', '.join(FORMATS)}")
    if not data:
        raise ModelRejected(Problem.EMPTY_FILE, "file", "0 bytes")
    if len(data) > limits.model_bytes:
        detail = f"{len(data)} bytes, the limit is {limits.model_bytes}"
        raise ModelRejected(
            Problem.MODEL_TOO_LARGE, "file", detail, limit=str(limits.model_bytes), value=str(len(data))
        )
    if format == "onnx":
        if _is_tflite(data):
            raise ModelRejected(Problem.FORMAT_MISMATCH, "file", "it is a TFLite file, not an ONNX file")
        if data.startswith(_OTHERS) or _TEXT.issuperset(data[:_HEAD]):
            raise ModelRejected(Problem.NOT_A_MODEL, "file", "it is no ONNX file")
        return check_onnx_structure(data, limits)
    if not _is_tflite(data):
        if _is_onnx(data):
            raise ModelRejected(Problem.FORMAT_MISMATCH, "file", "it is an ONNX file, not a TFLite file")
        raise ModelRejected(Problem.NOT_A_MODEL, "file", "it lacks the TFLite identifier TFL3")
    return check_tflite_structure(data, limits)
