"""Models and versions as values: what a checked file becomes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tinymlaas.registry.v1 import models_pb2
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_modelkit.check import ModelReport, Precision, TensorReport
from tinymlaas_servicekit import FieldViolation, InvalidArgument
from tinymlaas_servicekit.resource_names import MODEL, MODEL_VERSION, PROJECT, format_name, parse_name

FORMAT_NAMES = {tensor_pb2.MODEL_FORMAT_ONNX: "onnx", tensor_pb2.MODEL_FORMAT_TFLITE: "tflite"}
ARCHIVES = {tensor_pb2.MODEL_FORMAT_KERAS: "keras", tensor_pb2.MODEL_FORMAT_SAVED_MODEL: "saved_model"}
VERSION_DIGITS = 16
MAX_TAGS = 64
MAX_LABELS = 4096
MAX_ATTACHMENTS = 16
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MEDIA_TYPE = re.compile(r"[a-z0-9.+-]{1,64}/[a-z0-9.+-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_DTYPES = {
    "float32": tensor_pb2.DATA_TYPE_FLOAT32,
    "int8": tensor_pb2.DATA_TYPE_INT8,
    "uint8": tensor_pb2.DATA_TYPE_UINT8,
    "int16": tensor_pb2.DATA_TYPE_INT16,
    "int32": tensor_pb2.DATA_TYPE_INT32,
    "int64": tensor_pb2.DATA_TYPE_INT64,
    "bool": tensor_pb2.DATA_TYPE_BOOL,
}


@dataclass(frozen=True)
class ImportRequest:
    """A checked ImportModelHeader: names are valid, the digest is sha256 in hex."""

    project: str
    model: str
    version: str
    sha256: str
    header: models_pb2.ImportModelHeader


def check_header(header: models_pb2.ImportModelHeader) -> ImportRequest:
    """The request behind a header; InvalidArgument when a name, the format or the digest is none."""
    project = parse_name(PROJECT, header.parent)["project"]
    model = format_name(MODEL, project=project, model=header.model_id)
    if header.format not in FORMAT_NAMES and header.format not in ARCHIVES:
        raise _field("header.format", f"{header.format} is no known format")
    if len(header.sha256) != 32:
        raise _field("header.sha256", f"has {len(header.sha256)} bytes, a sha256 has 32")
    if header.derived_from and parse_name(MODEL_VERSION, header.derived_from)["project"] != project:
        raise _field("header.derived_from", "is of another project")
    if len(header.model.tags) > MAX_TAGS or len(header.model.labels) > MAX_LABELS:
        raise _field("header.model", f"has more than {MAX_TAGS} tags or {MAX_LABELS} labels")
    _check_attachments(header.attachments)
    if header.model.name and header.model.name != model:
        raise _field("header.model.name", f"is not {model}")
    sha256 = header.sha256.hex()
    version = f"{model}/versions/{sha256[:VERSION_DIGITS]}"
    return ImportRequest(project, model, version, sha256, header)


def _check_attachments(given: Sequence[models_pb2.Attachment]) -> None:
    if len(given) > MAX_ATTACHMENTS:
        raise _field("header.attachments", f"has more than {MAX_ATTACHMENTS} files")
    for index, item in enumerate(given):
        field = f"header.attachments[{index}]"
        if not _FILE_NAME.fullmatch(item.name) or item.name in {other.name for other in given[:index]}:
            raise _field(f"{field}.name", "is no name of a file, or is there twice")
        if not _SHA256.fullmatch(item.sha256):
            raise _field(f"{field}.sha256", "is no sha256 in hex")
        if item.media_type and not _MEDIA_TYPE.fullmatch(item.media_type):
            raise _field(f"{field}.media_type", "is no media type")


def describe(request: ImportRequest, size: int, report: ModelReport | None) -> models_pb2.ModelVersion:
    """The version that a checked file becomes, without its time. `report` None: an archive that only an importer reads."""
    header = request.header
    version = models_pb2.ModelVersion(
        name=request.version,
        format=header.format,
        sha256=request.sha256,
        size_bytes=size,
        derived_from=header.derived_from,
        derived_by=header.derived_by,
        measurements=header.measurements,
        attachments=header.attachments,
    )
    if report is not None:
        version.inputs.extend(_spec(tensor) for tensor in report.inputs)
        version.outputs.extend(_spec(tensor) for tensor in report.outputs)
        version.operators.update(report.operators)
        version.quantized = report.precision is Precision.QUANTIZED
    return version


def redescribe(request: ImportRequest, known: models_pb2.ModelVersion) -> models_pb2.ModelVersion:
    """As `describe`, for bytes whose check is known from another version of them."""
    version = describe(request, known.size_bytes, None)
    version.inputs.extend(known.inputs)
    version.outputs.extend(known.outputs)
    version.operators.update(known.operators)
    version.quantized = known.quantized
    return version


def updated_model(existing: models_pb2.Model | None, request: ImportRequest) -> models_pb2.Model:
    """The model after an import: what the header says of it replaces what was there; times are the records' affair."""
    model = models_pb2.Model(name=request.model)
    if existing is not None:
        model.CopyFrom(existing)
    if request.header.HasField("model"):
        given = request.header.model
        model.display_name, model.licence = given.display_name, given.licence
        for field in ("tags", "labels"):
            model.ClearField(field)
        model.tags.extend(sorted(set(given.tags)))
        model.labels.extend(given.labels)
    return model


def _spec(tensor: TensorReport) -> tensor_pb2.TensorSpec:
    dtype = _DTYPES.get(tensor.dtype, tensor_pb2.DATA_TYPE_UNSPECIFIED)
    return tensor_pb2.TensorSpec(
        name=tensor.name, dtype=dtype, shape=tensor.shape, scale=tensor.scale or 0.0, zero_point=tensor.zero_point or 0
    )


def _field(field: str, description: str) -> InvalidArgument:
    return InvalidArgument(
        f"{field} {description}", "FIELD_INVALID", {"field": field}, violations=[FieldViolation(field, description)]
    )
