"""The command line against a running suite: JSON, exit codes, and errors that say what to do next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from suite_rig import ROOT, ZOO, RunningSuite

pytestmark = pytest.mark.xdist_group("suite")


def tinymlaas(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a person would."""
    program = Path(sys.executable).with_name("tinymlaas")
    environment = {**os.environ, "TINYMLAAS_STATE_DIR": str(state), "COLUMNS": "200"}
    return subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=200, check=False
    )


def test_a_model_is_imported_listed_shown_and_deleted(running: RunningSuite) -> None:
    state = running.suite.state
    file = str(ZOO / "ad" / "ad_int8.tflite")
    done = tinymlaas(state, "models", "import", file, "--name", "cli-ad", "--licence", "Apache-2.0", "--json")
    assert done.returncode == 0, done.stderr
    version = json.loads(done.stdout)
    assert version["operators"] == {"FULLY_CONNECTED": 10}
    listed = json.loads(tinymlaas(state, "models", "list", "--json").stdout)
    assert "projects/default/models/cli-ad" in [model["name"] for model in listed]
    assert "FULLY_CONNECTED" in tinymlaas(state, "models", "show", "cli-ad").stdout
    assert tinymlaas(state, "models", "delete", "cli-ad").returncode == 0
    gone = tinymlaas(state, "models", "show", "cli-ad", "--json")
    assert gone.returncode == 3
    assert json.loads(gone.stderr)["error"]["code"] == "NOT_FOUND"


def test_a_refusal_shows_reason_and_next_step_and_no_traceback(running: RunningSuite, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model at all")
    done = tinymlaas(running.suite.state, "models", "import", str(broken))
    assert done.returncode == 3
    assert "MODEL_INVALID" in done.stderr
    assert "next step:" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_device_key_is_told_once_listed_without_its_secret_and_taken_back(running: RunningSuite) -> None:
    state = running.suite.state
    done = tinymlaas(state, "devices", "keys", "create", "keyed-1", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert len(bytes.fromhex(made["secret"])) == 16
    listed = tinymlaas(state, "devices", "keys", "list", "keyed-1", "--json").stdout
    assert [key["identity"] for key in json.loads(listed)] == [made["identity"]]
    assert made["secret"] not in listed
    assert tinymlaas(state, "devices", "keys", "delete", made["identity"]).returncode == 0
    assert json.loads(tinymlaas(state, "devices", "keys", "list", "--json").stdout) == []
    refused = tinymlaas(state, "devices", "keys", "create", "no such/name", "--json")
    assert refused.returncode == 3
    assert json.loads(refused.stderr)["error"]["reason"] == "REGISTRATION_INVALID"


def test_status_names_every_process_and_compilers_list_every_plugin(running: RunningSuite) -> None:
    rows = json.loads(tinymlaas(running.suite.state, "status", "--json").stdout)
    assert {row["name"]: row["state"] for row in rows if row["role"] != "device"} == {
        spec.name: "ready" for spec in running.suite.manifest.processes
    }
    plugins = json.loads(tinymlaas(running.suite.state, "compilers", "list", "--json").stdout)
    names = {plugin["info"]["name"].rsplit(".", 1)[-1] for plugin in plugins}
    assert names == {"compiler-tvm", "compiler-tflm", "optimizer", "profiler"}


def test_wrong_names_are_answered_with_the_right_ones(running: RunningSuite) -> None:
    target = tinymlaas(running.suite.state, "build", "kws", "--target", "cortex-m5")
    assert target.returncode == 2
    assert "cortex-m4" in target.stderr
    log = tinymlaas(running.suite.state, "logs", "nothing")
    assert log.returncode != 0
    assert "gateway" in log.stderr


def test_without_a_suite_the_next_step_is_to_start_one(tmp_path: Path) -> None:
    done = tinymlaas(tmp_path, "models", "list")
    assert done.returncode == 4
    assert "tinymlaas up" in done.stderr
    assert tinymlaas(tmp_path, "status").returncode == 0
    assert "nothing was running" in tinymlaas(tmp_path, "down").stdout


def test_a_sealed_module_is_shown_verified_extracted_and_a_changed_byte_is_caught(
    running: RunningSuite, tmp_path: Path
) -> None:
    state = running.suite.state
    assert tinymlaas(state, "models", "import", str(ZOO / "kws" / "kws_int8.tflite"), "--name", "kws").returncode == 0
    built = tinymlaas(
        state, "build", "kws", "--target", "cortex-m4", "--compiler", "io.tinymlaas.compiler-tvm", "--json"
    )
    assert built.returncode == 0, built.stdout + built.stderr
    digest = json.loads(built.stdout)["module"].rsplit("/", 1)[-1]
    shown = tinymlaas(state, "modules", "show", digest[:12]).stdout
    assert "signed by" in tinymlaas(state, "modules", "verify", digest[:12]).stdout
    assert "instructions" in shown
    file = tmp_path / "kws.tim"
    assert tinymlaas(state, "modules", "extract", digest[:12], "-o", str(file)).returncode == 0
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    verdict = tinymlaas(state, "modules", "verify", str(file), "--json")
    assert verdict.returncode == 1
    assert json.loads(verdict.stdout)["reason"] == "DIGEST_MISMATCH"


@pytest.mark.parametrize("command", [("build",), ("deploy", "create")])
def test_quantizing_without_samples_is_refused_before_anything_is_asked(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    done = tinymlaas(tmp_path, *command, "kws", "--quantize")
    assert done.returncode == 2
    assert "--quantize and --optimize need --samples" in done.stderr


def test_compilers_are_compared_as_table_json_and_page(running: RunningSuite, tmp_path: Path) -> None:
    state = running.suite.state
    assert tinymlaas(state, "models", "import", str(ZOO / "kws" / "kws_int8.tflite"), "--name", "kws").returncode == 0
    one = ("compare", "kws", "--target", "cortex-m4", "--objective", "balanced")
    done = tinymlaas(state, *one, "--output", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "compare.json").read_text())
    entries = {entry["compiler"]: entry for entry in found["entries"]}
    assert set(entries) == {"compiler-tvm", "compiler-tflm"}
    assert entries["compiler-tvm"]["ratios"]["instructions"] < 1
    assert {figure["method"] for entry in entries.values() for figure in entry["figures"].values()} <= {
        "estimated", "linked", "simulated"
    }  # fmt: skip
    assert "compiler-tvm" in (tmp_path / "compare.html").read_text()
    assert "◆" in tinymlaas(state, *one).stdout
