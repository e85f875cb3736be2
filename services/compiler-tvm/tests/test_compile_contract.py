"""The calls' contract: determinism, errors with reasons, certificate data that agree with the payload."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys

import jsonschema
import numpy as np
import onnx
import pytest
from compiler_tvm_bench import TARGETS, ZOO, zoo_model
from onnx import TensorProto, helper

from tinymlaas_compiler_tvm import (
    OPTION_SCHEMA,
    CompileError,
    DoesNotFit,
    ModelInvalid,
    OptionInvalid,
    OptionUnknown,
    TargetSpec,
    TargetUnsupported,
    check_model,
    compile_model,
    errors,
)

_DIGEST = """
import hashlib, sys
from tinymlaas_compiler_tvm import TargetSpec, compile_model
parts = compile_model(open(sys.argv[1], "rb").read(), TargetSpec("cortex-m4", "armv7e-m", ("dsp", "fpu-sp")))
text = repr((parts.certificate, parts.symbols, parts.inputs, parts.outputs))
print(hashlib.sha256(parts.payload + text.encode()).hexdigest())
"""


@pytest.mark.parametrize("model", ["kws_int8_qdq.onnx", "kws_float.onnx"])
def test_the_same_request_gives_the_same_bytes_in_another_folder_time_zone_and_hash_seed(model: str, tmp_path) -> None:
    digests = set()
    for number, zone in enumerate(("UTC", "Asia/Tokyo")):
        folder = tmp_path / f"place{number}"
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": str(number + 1), "TZ": zone, "TMPDIR": str(folder)}
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST, str(ZOO / "kws" / model)],
            env=environment, cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
        digests.add(done.stdout.strip().splitlines()[-1])
    assert len(digests) == 1


def test_the_int8_path_does_not_import_tvm() -> None:
    code = (
        "import sys\nfrom tinymlaas_compiler_tvm import TargetSpec, compile_model\n"
        "compile_model(open(sys.argv[1], 'rb').read(), TargetSpec('cortex-m3', 'armv7-m'))\n"
        "sys.exit('tvm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ZOO / "kws" / "kws_int8_qdq.onnx")], check=False)
    assert done.returncode == 0


def test_symbols_and_sections_cover_the_payload() -> None:
    parts = compile_model(zoo_model("kws", "int8_qdq"), TARGETS["cortex-m4"])
    evidence = parts.certificate
    assert evidence.code_bytes + evidence.constant_bytes == evidence.payload_bytes == len(parts.payload)
    assert all(s.offset >= 0 and s.offset + s.bytes <= len(parts.payload) for s in parts.symbols)
    functions = sorted((s.offset, s.bytes) for s in parts.symbols if s.kind != "constant")
    assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(functions))
    named = {node for s in parts.symbols for node in s.nodes}
    assert len(named) == len([s for s in parts.symbols if s.kind == "step"])
    assert parts.stack_bytes >= sum(evidence.stack_frames[name] for name in evidence.stack_chain)


def test_every_access_of_a_step_lies_in_a_buffer_that_lives_then() -> None:
    parts = compile_model(zoo_model("vww", "int8_qdq"), TARGETS["cortex-m4"])
    for step in parts.certificate.steps:
        for access in (*step.reads, *step.writes):
            assert any(
                b.first <= step.index <= b.last
                and b.offset <= access.offset
                and access.offset + access.bytes <= b.offset + b.bytes
                for b in parts.certificate.buffers
            )


def test_too_little_memory_is_told_with_numbers() -> None:
    small_ram = TargetSpec("cortex-m4", "armv7e-m", ("dsp",), ram_bytes=4096)
    with pytest.raises(DoesNotFit) as caught:
        compile_model(zoo_model("kws", "int8_qdq"), small_ram)
    assert caught.value.metadata["region"] == "ram"
    assert int(caught.value.metadata["need"]) > int(caught.value.metadata["have"]) == 4096
    with pytest.raises(DoesNotFit) as caught:
        compile_model(zoo_model("kws", "int8_qdq"), TargetSpec("cortex-m4", "armv7e-m", ("dsp",), flash_bytes=1024))
    assert caught.value.metadata["region"] == "flash"


@pytest.mark.parametrize(("cpu", "isa"), [("cortex-m85", "armv8.1-m"), ("cortex-m4", "armv7-m"), ("rv32imc", "rv64gc")])
def test_an_unknown_target_is_refused_by_constraint(cpu: str, isa: str) -> None:
    with pytest.raises(TargetUnsupported) as caught:
        compile_model(zoo_model("kws", "int8_qdq"), TargetSpec(cpu, isa))
    assert set(caught.value.metadata) == {"constraint", "value"}


def test_options_name_the_nearest_choice() -> None:
    with pytest.raises(OptionUnknown) as unknown:
        compile_model(b"", TARGETS["cortex-m4"], {"roundin": "tflite"})
    assert unknown.value.metadata == {"option": "roundin", "nearest": "rounding"}
    with pytest.raises(OptionInvalid) as invalid:
        compile_model(b"", TARGETS["cortex-m4"], {"objective": "latencyy"})
    assert invalid.value.metadata == {"option": "objective", "nearest": "latency"}
    with pytest.raises(OptionInvalid):
        compile_model(b"", TARGETS["cortex-m4"], {"tune": True})


def test_the_option_schema_is_a_json_schema_that_takes_its_defaults() -> None:
    jsonschema.Draft202012Validator.check_schema(OPTION_SCHEMA)
    defaults = {name: rule["default"] for name, rule in OPTION_SCHEMA["properties"].items()}
    jsonschema.validate(defaults, OPTION_SCHEMA)


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x08\x12\x00" * 50])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    for call in (compile_model, check_model):
        with pytest.raises(ModelInvalid) as caught:
            call(data, TARGETS["cortex-m4"])
        assert caught.value.reason == "MODEL_INVALID"


def test_every_error_has_code_reason_and_help() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, CompileError)]
    assert len(classes) >= 8
    for each in classes:
        assert each.code.isupper()
        assert each.reason.isupper()
        assert each.help.endswith(".")


def _model_with_names(name: str) -> bytes:
    weight = helper.make_tensor("w" + name, TensorProto.FLOAT, [4, 3], np.arange(12, dtype=np.float32))
    node = helper.make_node("MatMul", ["x" + name, "w" + name], ["y" + name], name="n" + name)
    graph = helper.make_graph(
        [node], "g" + name,
        [helper.make_tensor_value_info("x" + name, TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y" + name, TensorProto.FLOAT, [1, 3])],
        [weight],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


def test_no_name_of_a_model_reaches_the_payload_or_the_source() -> None:
    hostile = compile_model(_model_with_names('"); } int evil(void) { /* \\\n../../x'), TARGETS["cortex-m4"])
    plain = compile_model(_model_with_names("a"), TARGETS["cortex-m4"])
    assert hashlib.sha256(hostile.payload).digest() == hashlib.sha256(plain.payload).digest()


def test_check_model_estimates_before_compiling() -> None:
    verdict = check_model(zoo_model("kws", "int8_qdq"), TARGETS["cortex-m4"])
    assert verdict.supported
    assert verdict.estimates is not None
    assert verdict.estimates.method == "ESTIMATED"
    parts = compile_model(zoo_model("kws", "int8_qdq"), TARGETS["cortex-m4"])
    assert verdict.estimates.arena_bytes == parts.arena_bytes
    assert verdict.estimates.macs == 2_656_768
    assert len(verdict.nodes) == 13


def test_check_model_names_what_no_kernel_takes() -> None:
    node = helper.make_node("NonMaxSuppression", ["b", "s"], ["y"], name="nms")
    graph = helper.make_graph(
        [node], "g",
        [
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 6, 4]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, [1, 1, 6]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [3, 3])],
    )  # fmt: skip
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    try:
        verdict = check_model(data, TARGETS["cortex-m4"])
    except ModelInvalid:
        return
    assert not verdict.supported
    assert [n.operator for n in verdict.nodes if not n.supported] == ["NonMaxSuppression"]
