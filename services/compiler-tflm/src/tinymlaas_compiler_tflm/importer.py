"""`import_model`: from one model format to another.

ONNX and TFLite are converted here, without TensorFlow and with their quantization kept exactly. Keras archives and
SavedModels
need TensorFlow, an optional extra, which runs in a process of its own: a model can hold code, and TensorFlow can crash.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from tinymlaas_compiler_tflm.archive import unpack
from tinymlaas_compiler_tflm.errors import FormatUnsupported, LimitExceeded, ToolCrash
from tinymlaas_compiler_tflm.interpreter import Limits
from tinymlaas_modelkit.check import check_model
from tinymlaas_modelkit.errors import MalformedModel
from tinymlaas_modelkit.onnx_reader import read_onnx
from tinymlaas_modelkit.onnx_writer import write_onnx
from tinymlaas_modelkit.tflite_reader import read_tflite
from tinymlaas_modelkit.tflite_writer import write_tflite

TENSORFLOW_HELP = (
    "Install the extra: `make tensorflow` (requirements-tensorflow.lock; the container image has it), or convert the model "
    "to TFLite or ONNX yourself."
)
TENSORFLOW_LIMITS = Limits(seconds=240, memory_bytes=8 << 30)


class SourceFormat(StrEnum):
    """Formats that are read."""

    ONNX = "onnx"
    TFLITE = "tflite"
    KERAS = "keras"
    SAVED_MODEL = "saved-model"


class ResultFormat(StrEnum):
    """Formats that are made."""

    ONNX = "onnx"
    TFLITE = "tflite"


def has_tensorflow() -> bool:
    """Whether the optional extra is installed; does not load it."""
    return importlib.util.find_spec("tensorflow") is not None


def conversions() -> tuple[tuple[SourceFormat, ResultFormat], ...]:
    """The pairs that `import_model` converts here and now."""
    own = ((SourceFormat.TFLITE, ResultFormat.ONNX), (SourceFormat.ONNX, ResultFormat.TFLITE))
    if not has_tensorflow():
        return own
    foreign = [
        (s, r) for s in (SourceFormat.KERAS, SourceFormat.SAVED_MODEL) for r in (ResultFormat.ONNX, ResultFormat.TFLITE)
    ]
    return (*own, *foreign)


def import_model(model: bytes, source: SourceFormat, result: ResultFormat, *, limits: Limits | None = None) -> bytes:
    """The model in another format; Keras (.keras) and SavedModel (a tar archive of its folder) come in as float,
    batch 1.

    Errors: ModelRejected (the file check), FormatUnsupported (pair not served, or TensorFlow not installed),
    MalformedModel, UnsupportedOperator,
    LimitExceeded, ToolCrash.
    """
    if source.value == result.value:
        raise FormatUnsupported(f"the model is {source} already", format=f"{source} to {result}")
    if source in (SourceFormat.ONNX, SourceFormat.TFLITE):
        check_model(model, "onnx" if source is SourceFormat.ONNX else "tflite")
    if source is SourceFormat.ONNX:
        return write_tflite(read_onnx(model))
    tflite = model if source is SourceFormat.TFLITE else _with_tensorflow(model, source, limits or TENSORFLOW_LIMITS)
    return tflite if result is ResultFormat.TFLITE else write_onnx(read_tflite(tflite))


def _with_tensorflow(model: bytes, source: SourceFormat, limits: Limits) -> bytes:
    if not has_tensorflow():
        raise FormatUnsupported(
            f"{source} models need TensorFlow, which is not installed", TENSORFLOW_HELP, format=str(source)
        )
    with tempfile.TemporaryDirectory(prefix="tinymlaas-import-") as folder:
        path, result = Path(folder) / "model.keras", Path(folder) / "model.tflite"
        if source is SourceFormat.SAVED_MODEL:
            path = unpack(model, Path(folder) / "saved")
        else:
            path.write_bytes(model)
        _run(source, path, result, Path(folder), limits)
        return result.read_bytes()


def _run(source: SourceFormat, path: Path, result: Path, folder: Path, limits: Limits) -> None:
    """Convert in a child process. It tells a bad model from a crash by exit status 3 and the file `refused`."""
    module = "tinymlaas_compiler_tflm.tensorflow_job"
    command = [
        sys.executable,
        "-m",
        module,
        str(source),
        str(path),
        str(result),
        str(limits.memory_bytes),
        str(limits.seconds),
    ]
    try:
        child = subprocess.run(
            command, cwd=folder, capture_output=True, timeout=limits.seconds, check=False, env=_environment(folder)
        )
    except subprocess.TimeoutExpired as error:
        raise LimitExceeded(
            "the conversion took too long", limit=f"seconds = {limits.seconds}", value="more"
        ) from error
    refused = folder / "refused"
    if child.returncode == 3 and refused.is_file():
        raise MalformedModel("MALFORMED", refused.read_text("utf-8"), str(source))
    if child.returncode != 0 or not result.is_file():
        status = {"signal": str(-child.returncode)} if child.returncode < 0 else {"exit": str(child.returncode)}
        raise ToolCrash(
            "TensorFlow died while converting", **status, log=child.stderr[-1000:].decode("utf-8", "replace")
        )


def _environment(folder: Path) -> Mapping[str, str]:
    import os

    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "VIRTUAL_ENV") if name in os.environ}
    return {**kept, "HOME": str(folder), "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "", "LC_ALL": "C.UTF-8"}
