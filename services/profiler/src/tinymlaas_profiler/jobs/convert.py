"""Job: turn an ONNX model into the TFLite form that the `tflite` reference executor runs."""

from typing import Any

from tinymlaas_modelkit.errors import ModelKitError
from tinymlaas_modelkit.onnx_reader import read_onnx
from tinymlaas_modelkit.tflite_writer import write_tflite
from tinymlaas_profiler.errors import ProfilerError


def run(request: dict[str, Any], blobs: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """Convert `blobs[0]`; the one blob given back is the TFLite file."""
    try:
        return {}, [write_tflite(read_onnx(blobs[0], batch=1))]
    except ModelKitError as error:
        raise ProfilerError(error.reason, str(error), metadata=error.metadata, help=error.help) from error
