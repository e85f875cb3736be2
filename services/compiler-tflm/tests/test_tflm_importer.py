"""The importer: TFLite to ONNX and back without TensorFlow; archives and missing extras."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tinymlaas_compiler_tflm.archive import unpack
from tinymlaas_compiler_tflm.errors import FormatUnsupported
from tinymlaas_compiler_tflm.importer import ResultFormat, SourceFormat, conversions, has_tensorflow, import_model
from tinymlaas_modelkit.errors import MalformedModel
from tinymlaas_modelkit.summary import ModelFormat, summarize


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_tflite_becomes_onnx_with_the_same_figures(zoo: Path) -> None:
    tflite = (zoo / "kws" / "kws_int8.tflite").read_bytes()
    onnx = summarize(import_model(tflite, SourceFormat.TFLITE, ResultFormat.ONNX), ModelFormat.ONNX)
    own = summarize(tflite)
    assert (onnx.macs, onnx.precision) == (own.macs, own.precision)
    assert [(s.dtype, s.shape, s.scale, s.zero_point) for s in onnx.inputs] == [
        (s.dtype, s.shape, s.scale, s.zero_point) for s in own.inputs
    ]


def test_onnx_becomes_tflite(zoo: Path) -> None:
    tflite = import_model((zoo / "ad" / "ad_float.onnx").read_bytes(), SourceFormat.ONNX, ResultFormat.TFLITE)
    assert summarize(tflite).macs == 264_192


def test_conversion_to_the_same_format_is_refused(zoo: Path) -> None:
    with pytest.raises(FormatUnsupported):
        import_model(b"", SourceFormat.ONNX, ResultFormat.ONNX)


@pytest.mark.skipif(has_tensorflow(), reason="TensorFlow is installed: nothing is missing")
def test_missing_tensorflow_is_told_with_the_next_step() -> None:
    with pytest.raises(FormatUnsupported) as caught:
        import_model(b"PK", SourceFormat.KERAS, ResultFormat.ONNX)
    assert "requirements-tensorflow.lock" in caught.value.help
    assert all(source in (SourceFormat.ONNX, SourceFormat.TFLITE) for source, _ in conversions())


@pytest.mark.parametrize("name", ["../outside", "/absolute", "a/../../outside"])
def test_archive_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    data = tar_of((tarfile.TarInfo(name), b"x"), (tarfile.TarInfo("saved_model.pb"), b"x"))
    with pytest.raises(MalformedModel):
        unpack(data, tmp_path / "in")
    assert not (tmp_path / "outside").exists()


def test_archive_with_a_link_is_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("variables")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    with pytest.raises(MalformedModel):
        unpack(tar_of((link, b"")), tmp_path / "in")


@pytest.mark.parametrize("data", [b"", b"not a tar at all" * 100])
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(MalformedModel):
        unpack(data, tmp_path / "in")


def test_archive_without_a_saved_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedModel, match="0 files"):
        unpack(tar_of((tarfile.TarInfo("a/readme"), b"x")), tmp_path / "in")


def test_folder_of_the_saved_model_is_found(tmp_path: Path) -> None:
    data = tar_of((tarfile.TarInfo("export/1/saved_model.pb"), b"x"), (tarfile.TarInfo("export/1/variables/v"), b"y"))
    assert unpack(data, tmp_path / "in") == tmp_path / "in" / "export" / "1"
