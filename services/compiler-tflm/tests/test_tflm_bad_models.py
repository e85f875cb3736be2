"""Broken and hostile files end with their status and problem, and the compiler still compiles right after."""

from __future__ import annotations

import pytest

from tinymlaas_compiler_tflm import TargetSpec, check_model, compile_model
from tinymlaas_compiler_tflm.importer import ResultFormat, SourceFormat, import_model
from tinymlaas_modelkit.check import ModelRejected
from tinymlaas_modelkit.check.testing import BAD, GOOD, BadFile
from tinymlaas_modelkit.summary import ModelFormat


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_file_is_refused(bad: BadFile) -> None:
    with pytest.raises(ModelRejected) as caught:
        compile_model(bad.make(), ModelFormat(bad.format), TargetSpec())
    assert (caught.value.code, caught.value.problem) == (bad.code, bad.problem)


@pytest.mark.parametrize("model_format", ModelFormat)
def test_check_and_import_refuse_as_compile_does(model_format: ModelFormat) -> None:
    bad = next(b for b in BAD if b.format == model_format.value)
    result = ResultFormat.ONNX if model_format is ModelFormat.TFLITE else ResultFormat.TFLITE
    with pytest.raises(ModelRejected) as checked:
        check_model(bad.make(), model_format, TargetSpec())
    with pytest.raises(ModelRejected) as imported:
        import_model(bad.make(), SourceFormat(model_format.value), result)
    assert checked.value.problem == imported.value.problem == bad.problem


@pytest.mark.parametrize("name", GOOD)
def test_good_file_compiles(name: str) -> None:
    parts = compile_model(GOOD[name](), ModelFormat(name.rsplit(".", 1)[1]), TargetSpec())
    assert parts.payload[4:8] == b"TFL3"
