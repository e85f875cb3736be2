"""CP-DETERMINISM-001, -002: the same request gives the same bytes in processes as unlike as two machines."""

from __future__ import annotations

from pathlib import Path

import pytest
from compiler_tvm_bench import ZOO

from tinymlaas_pluginkit.unlike import in_unlike_processes

CODE = """
import hashlib
from dataclasses import replace
from pathlib import Path
from tinymlaas_compiler_tvm import TargetSpec, compile_model
parts = compile_model(Path({file!r}).read_bytes(), TargetSpec({cpu!r}, {isa!r}, {features!r}))
print(hashlib.sha256(parts.payload).hexdigest(), hashlib.sha256(repr(parts).encode()).hexdigest())
"""
M4 = ("cortex-m4", "armv7e-m", ("thumb2", "dsp", "fpu-sp"))
RV32 = ("rv32imc", "rv32imc", ())


@pytest.mark.parametrize(
    ("file", "target"),
    [("kws/kws_int8_qdq.onnx", M4), ("ad/ad_int8_qdq.onnx", RV32), ("ad/ad_float.onnx", M4)],
    ids=["int8 on m4", "int8 on rv32", "float on m4"],
)
def test_unlike_processes_compile_to_the_same_bytes(
    tmp_path: Path, file: str, target: tuple[str, str, tuple[str, ...]]
) -> None:
    cpu, isa, features = target
    code = CODE.format(file=str(ZOO / file), cpu=cpu, isa=isa, features=features)
    first, second = in_unlike_processes(code, tmp_path)
    assert first == second
    assert len(first.split()) == 2
