"""CP-DETERMINISM-001, -002: the same request gives the same bytes in processes as unlike as two machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinymlaas_pluginkit.unlike import in_unlike_processes

CODE = """
import hashlib
from pathlib import Path
from tinymlaas_compiler_tflm.compile import compile_model
from tinymlaas_compiler_tflm.parts import PayloadKind
from tinymlaas_compiler_tflm.target import TargetSpec
from tinymlaas_modelkit.summary import ModelFormat
target = TargetSpec("cortex-m4", "armv7e-m", (), 1 << 20, 1 << 22, (("tflite-micro", ()),))
parts = compile_model(Path({file!r}).read_bytes(), ModelFormat.ONNX, target, kind=PayloadKind({kind!r}))
print(hashlib.sha256(parts.payload).hexdigest(), hashlib.sha256(repr(parts).encode()).hexdigest())
"""


@pytest.mark.parametrize("kind", ["TFLITE", "SOURCE_PACKAGE"])
def test_unlike_processes_compile_to_the_same_bytes(zoo: Path, tmp_path: Path, kind: str) -> None:
    code = CODE.format(file=str(zoo / "kws" / "kws_int8_qdq.onnx"), kind=kind)
    first, second = in_unlike_processes(code, tmp_path)
    assert first == second
    assert len(first.split()) == 2
