"""The source package for static firmware: complete, deterministic, and no name of the model gets into it."""

from __future__ import annotations

import io
import itertools
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from tinymlaas_compiler_tflm import OptionInvalid, OptionUnknown, PayloadKind, TargetSpec, compile_model
from tinymlaas_modelkit.summary import ModelFormat

HOSTILE = 'x"; system("rm -rf /"); //\n#include "/etc/passwd" \\ ../../evil'


def package(model: bytes, model_format: ModelFormat, **options: object) -> dict[str, str]:
    parts = compile_model(model, model_format, TargetSpec(runtimes=()), options, PayloadKind.SOURCE_PACKAGE)
    with tarfile.open(fileobj=io.BytesIO(parts.payload)) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
        return {m.name: tar.extractfile(m).read().decode("ascii") for m in tar}  # type: ignore[union-attr]


def test_package_holds_model_operators_arena_and_instructions(zoo: Path) -> None:
    model = (zoo / "kws" / "kws_int8.tflite").read_bytes()
    files = package(model, ModelFormat.TFLITE, symbol="kws")
    assert sorted(files) == [
        "kws/README.md", "kws/kws_config.h", "kws/kws_data.c", "kws/kws_data.h", "kws/kws_operators.cc", "kws/kws_operators.h",
    ]  # fmt: skip
    array = re.findall(r"0x([0-9a-f]{2})", files["kws/kws_data.c"])
    assert bytes.fromhex("".join(array)) == model
    added = re.findall(r"resolver\.(Add\w+)\(\)", files["kws/kws_operators.cc"])
    assert added == [
        "AddAveragePool2D",
        "AddConv2D",
        "AddDepthwiseConv2D",
        "AddFullyConnected",
        "AddReshape",
        "AddSoftmax",
    ]
    assert "MicroMutableOpResolver<6>" in files["kws/kws_operators.h"]
    config = files["kws/kws_config.h"]
    assert re.search(r"#define KWS_ARENA_BYTES \d+\n", config)
    assert "ESTIMATED" in config
    assert "#define KWS_INPUT_0_ELEMENTS 490" in config
    assert "#define KWS_INPUT_0_ZERO_POINT (83)" in config


def test_same_model_gives_the_same_archive(zoo: Path) -> None:
    model = (zoo / "ad" / "ad_int8_qdq.onnx").read_bytes()
    parts = [compile_model(model, ModelFormat.ONNX, TargetSpec(), kind=PayloadKind.SOURCE_PACKAGE) for _ in range(2)]
    assert parts[0].payload == parts[1].payload


def c_compilers() -> list[list[str]]:
    """Commands that compile C: the host's compiler, and clang of the light environment for a Cortex-M4."""
    found = [["cc"]] if shutil.which("cc") else []
    light = Path(__file__).parents[3] / ".venv"
    if (light / "bin" / "python").exists() and any(light.glob("lib/python*/site-packages/ziglang")):
        zig = [
            str(light / "bin" / "python"),
            "-m",
            "ziglang",
            "cc",
            "-target",
            "thumb-freestanding-eabi",
            "-mcpu=cortex_m4",
        ]
        found.append(zig)
    return found


@pytest.mark.skipif(not c_compilers(), reason="no C compiler: neither cc nor ziglang in the light environment")
def test_model_array_compiles_as_c(zoo: Path, tmp_path: Path) -> None:
    files = package((zoo / "sww" / "sww_int8.tflite").read_bytes(), ModelFormat.TFLITE)
    for name, text in files.items():
        (tmp_path / Path(name).name).write_text(text)
    (tmp_path / "use.c").write_text(
        '#include "model_config.h"\n#include "model_data.h"\n'
        '_Static_assert(MODEL_ARENA_BYTES % MODEL_ALIGNMENT == 0, "aligned");\n'
        "float use(void);\n"
        "float use(void) { return (float)sizeof(model_data) * MODEL_INPUT_0_SCALE + MODEL_INPUT_0_ZERO_POINT; }\n"
    )
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-c"]
    for compiler, source in itertools.product(c_compilers(), ("use.c", "model_data.c")):
        command = [*compiler, *flags, str(tmp_path / source), "-o", str(tmp_path / "out.o")]
        child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=tmp_path)
        assert child.returncode == 0, child.stderr


def test_no_name_of_the_model_reaches_the_source() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", [HOSTILE], [HOSTILE + "y"], name=HOSTILE)],
        HOSTILE,
        [helper.make_tensor_value_info(HOSTILE, TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info(HOSTILE + "y", TensorProto.FLOAT, [1, 4])],
    )
    model = helper.make_model(graph, producer_name=HOSTILE, opset_imports=[helper.make_opsetid("", 13)])
    files = package(model.SerializeToString(), ModelFormat.ONNX)
    for name, text in files.items():
        assert re.fullmatch(r"model/[A-Za-z_.]+", name)
        for word in ("system", "passwd", "evil", "rm -rf"):
            assert word not in text


@pytest.mark.parametrize("symbol", ["", "9x", "a-b", "x;", "../x", "a" * 40, 7, "Model", "x\n"])
def test_symbol_that_is_no_identifier_is_refused(zoo: Path, symbol: object) -> None:
    with pytest.raises(OptionInvalid) as caught:
        package((zoo / "ad" / "ad_int8.tflite").read_bytes(), ModelFormat.TFLITE, symbol=symbol)
    assert caught.value.metadata["option"] == "symbol"


def test_unknown_option_names_the_nearest(zoo: Path) -> None:
    with pytest.raises(OptionUnknown) as caught:
        package((zoo / "ad" / "ad_int8.tflite").read_bytes(), ModelFormat.TFLITE, symbl="x")
    assert caught.value.metadata == {"option": "symbl", "nearest": "symbol"}
