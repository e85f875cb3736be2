"""The role RPCs as data: their messages, the blobs that go in and out, and how a worker reads a job and writes its output.

A job lives in a folder: `header.pb`, one file per blob in (`in-model`, ...), `scratch/`, one file per blob out
(`out-payload`, ...). Files rather than pipes, so that neither process holds more of a blob than it needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from tinymlaas.plugin.v1 import compiler_pb2, importer_pb2, optimizer_pb2, profiler_pb2

from .jobs import (
    CompileJob,
    CompileOutput,
    ImportJob,
    ImportOutput,
    OptimizeJob,
    OptimizeOutput,
    ProfileJob,
    ProfileOutput,
    ReferenceJob,
    ReferenceOutput,
)


@dataclass(frozen=True)
class Rpc:
    """One role RPC. `seal` writes digest and size of the blobs out into the result: (result, blob name, sha256, size)."""

    kind: str
    request: type[Message]
    response: type[Message]
    header: type[Any]
    result: type[Message]
    blobs_in: tuple[str, ...]
    optional_in: frozenset[str]
    blobs_out: tuple[str, ...]
    read_job: Callable[[Path], Any]
    write_output: Callable[[Path, Any], Message]
    seal: Callable[[Any, str, bytes, int], None]


def header_path(folder: Path) -> Path:
    """Where the header of a job lies."""
    return folder / "header.pb"


def blob_in(folder: Path, name: str) -> Path:
    """Where a blob that came in lies."""
    return folder / f"in-{name}"


def blob_out(folder: Path, name: str) -> Path:
    """Where a blob that goes out lies."""
    return folder / f"out-{name}"


def options_path(folder: Path) -> Path:
    """Where the checked options of a job lie, as JSON."""
    return folder / "options.json"


def _header(folder: Path, kind: type[Any]) -> Any:
    return kind.FromString(header_path(folder).read_bytes())


def _options(folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = json.loads(options_path(folder).read_text(encoding="utf-8"))
    return options


def _wrong(expected: type[Any], got: object) -> TypeError:
    return TypeError(f"the plugin's function returned {type(got).__name__} instead of {expected.__name__}")


def _read_compile(folder: Path) -> CompileJob:
    header = _header(folder, compiler_pb2.CompileHeader)
    model = blob_in(folder, "model").read_bytes()
    scratch = folder / "scratch"
    return CompileJob(model, header.model_format, header.target, _options(folder), header.payload_kind, scratch)


def _write_check(folder: Path, output: Any) -> Message:
    if not isinstance(output, compiler_pb2.CheckModelResult):
        raise _wrong(compiler_pb2.CheckModelResult, output)
    return output


def _write_compile(folder: Path, output: Any) -> Message:
    if not isinstance(output, CompileOutput):
        raise _wrong(CompileOutput, output)
    blob_out(folder, "payload").write_bytes(output.payload)
    if output.report is not None:
        blob_out(folder, "report").write_bytes(output.report)
    return output.result


def _read_import(folder: Path) -> ImportJob:
    conversion = _header(folder, importer_pb2.ImportHeader).conversion
    return ImportJob(
        blob_in(folder, "model").read_bytes(), getattr(conversion, "from"), conversion.to, folder / "scratch"
    )


def _write_import(folder: Path, output: Any) -> Message:
    if not isinstance(output, ImportOutput):
        raise _wrong(ImportOutput, output)
    blob_out(folder, "model").write_bytes(output.model)
    return importer_pb2.ImportResult()


def _read_optimize(folder: Path) -> OptimizeJob:
    header = _header(folder, optimizer_pb2.OptimizeHeader)
    calibration = blob_in(folder, "calibration")
    return OptimizeJob(
        blob_in(folder, "model").read_bytes(),
        header.model_format,
        _options(folder),
        calibration.read_bytes() if calibration.exists() else None,
        folder / "scratch",
    )


def _write_optimize(folder: Path, output: Any) -> Message:
    if not isinstance(output, OptimizeOutput):
        raise _wrong(OptimizeOutput, output)
    blob_out(folder, "model").write_bytes(output.model)
    for name, data in (("recipe", output.recipe), ("report", output.report), ("picture", output.picture)):
        if data is not None:
            blob_out(folder, name).write_bytes(data)
    return optimizer_pb2.OptimizeResult(model_format=output.model_format, before=output.before, after=output.after)


def _inputs(folder: Path) -> profiler_pb2.InputSet:
    return profiler_pb2.InputSet.FromString(blob_in(folder, "inputs").read_bytes())


def _write_outputs(folder: Path, outputs: profiler_pb2.InputSet) -> None:
    blob_out(folder, "outputs").write_bytes(outputs.SerializeToString(deterministic=True))


def _read_profile(folder: Path) -> ProfileJob:
    header = _header(folder, profiler_pb2.ProfileHeader)
    payload = blob_in(folder, "payload").read_bytes()
    return ProfileJob(header.target, header.parts, payload, _inputs(folder), folder / "scratch")


def _write_profile(folder: Path, output: Any) -> Message:
    if not isinstance(output, ProfileOutput):
        raise _wrong(ProfileOutput, output)
    _write_outputs(folder, output.outputs)
    return profiler_pb2.ProfileResult(measurements=output.measurements, operators=output.operators)


def _read_reference(folder: Path) -> ReferenceJob:
    header = _header(folder, profiler_pb2.RunReferenceHeader)
    model = blob_in(folder, "model").read_bytes()
    return ReferenceJob(model, header.model_format, header.reference, _inputs(folder), folder / "scratch")


def _write_reference(folder: Path, output: Any) -> Message:
    if not isinstance(output, ReferenceOutput):
        raise _wrong(ReferenceOutput, output)
    _write_outputs(folder, output.outputs)
    return profiler_pb2.RunReferenceResult(inputs=output.input_specs, outputs=output.output_specs)


def _seal_nothing(result: Any, blob: str, sha256: bytes, size: int) -> None:
    """CheckModel sends no blobs."""


def _seal_payload(result: Any, blob: str, sha256: bytes, size: int) -> None:
    if blob == "payload":
        result.payload_sha256, result.payload_bytes = sha256, size


def _seal_model(result: Any, blob: str, sha256: bytes, size: int) -> None:
    if blob == "model":
        result.model_sha256, result.model_bytes = sha256, size


def _seal_outputs(result: Any, blob: str, sha256: bytes, size: int) -> None:
    result.outputs_sha256 = sha256


_NONE: frozenset[str] = frozenset()

RPCS: dict[str, Rpc] = {
    rpc.kind: rpc
    for rpc in (
        Rpc(
            "check",
            compiler_pb2.CheckModelRequest,
            compiler_pb2.CheckModelResponse,
            compiler_pb2.CompileHeader,
            compiler_pb2.CheckModelResult,
            ("model",),
            _NONE,
            (),
            _read_compile,
            _write_check,
            _seal_nothing,
        ),
        Rpc(
            "compile",
            compiler_pb2.CompileRequest,
            compiler_pb2.CompileResponse,
            compiler_pb2.CompileHeader,
            compiler_pb2.CompileResult,
            ("model",),
            _NONE,
            ("payload", "report"),
            _read_compile,
            _write_compile,
            _seal_payload,
        ),
        Rpc(
            "import",
            importer_pb2.ImportRequest,
            importer_pb2.ImportResponse,
            importer_pb2.ImportHeader,
            importer_pb2.ImportResult,
            ("model",),
            _NONE,
            ("model",),
            _read_import,
            _write_import,
            _seal_model,
        ),
        Rpc(
            "optimize",
            optimizer_pb2.OptimizeRequest,
            optimizer_pb2.OptimizeResponse,
            optimizer_pb2.OptimizeHeader,
            optimizer_pb2.OptimizeResult,
            ("model", "calibration"),
            frozenset({"calibration"}),
            ("model", "recipe", "report", "picture"),
            _read_optimize,
            _write_optimize,
            _seal_model,
        ),
        Rpc(
            "profile",
            profiler_pb2.ProfileRequest,
            profiler_pb2.ProfileResponse,
            profiler_pb2.ProfileHeader,
            profiler_pb2.ProfileResult,
            ("payload", "inputs"),
            _NONE,
            ("outputs",),
            _read_profile,
            _write_profile,
            _seal_outputs,
        ),
        Rpc(
            "reference",
            profiler_pb2.RunReferenceRequest,
            profiler_pb2.RunReferenceResponse,
            profiler_pb2.RunReferenceHeader,
            profiler_pb2.RunReferenceResult,
            ("model", "inputs"),
            _NONE,
            ("outputs",),
            _read_reference,
            _write_reference,
            _seal_outputs,
        ),
    )
}
