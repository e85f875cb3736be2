"""Checks of what plugins answer; each failure names the clause of spec/compiler-plugin.md that it breaks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any
from xml.etree import ElementTree

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from tinymlaas.plugin.v1 import compiler_pb2, identity_pb2, profiler_pb2
from tinymlaas.type.v1 import target_pb2, tensor_pb2
from tinymlaas_servicekit.errors import CUT_OFF, ServiceError, error_for, from_rpc_error, from_status
from tinymlaas_servicekit.validation import validate

from ._text import clean
from .errors import DigestMismatch, PluginProtocol, PluginTimeout, PluginUnavailable
from .reasons import Reason

MAX_CAPABILITIES = 256
MAX_REPORT_BYTES = 4 * 1024 * 1024
_SVG = "{http://www.w3.org/2000/svg}"
_SVG_ELEMENTS = frozenset(
    {
        "svg", "g", "title", "desc", "style", "rect", "circle", "ellipse", "line", "polyline", "polygon", "path", "text",
        "tspan", "defs", "linearGradient", "stop",
    }
)  # fmt: skip
MAX_CAPABILITY = 128
_CODES = {reason.code for reason in Reason}
_ELEMENT_BYTES = {
    tensor_pb2.DATA_TYPE_FLOAT32: 4,
    tensor_pb2.DATA_TYPE_INT8: 1,
    tensor_pb2.DATA_TYPE_UINT8: 1,
    tensor_pb2.DATA_TYPE_INT16: 2,
    tensor_pb2.DATA_TYPE_INT32: 4,
    tensor_pb2.DATA_TYPE_INT64: 8,
    tensor_pb2.DATA_TYPE_BOOL: 1,
}


def check_message(message: Message, clause: str) -> None:
    """What the proto declares holds for the message."""
    violations = validate(message)
    if violations:
        raise PluginProtocol(clause, f"{violations[0].field} {violations[0].description}")


def check_info(info: identity_pb2.GetPluginInfoResponse) -> None:
    """Name, vendor version, contract version."""
    from .plugin import MAX_NAME, NAME

    check_message(info, "CP-IDENTITY-001")
    if not NAME.fullmatch(info.name) or len(info.name) > MAX_NAME:
        raise PluginProtocol("CP-IDENTITY-001", f"name {clean(info.name, 80)!r} is no reverse-DNS name")
    if len(info.vendor_version) > MAX_CAPABILITY or clean(info.vendor_version, MAX_CAPABILITY) != info.vendor_version:
        raise PluginProtocol(
            "CP-IDENTITY-002", "vendor_version is longer than 128 characters or has control characters"
        )
    major, _, minor = info.contract_version.partition(".")
    if major != "1" or not minor.isdecimal():
        raise PluginProtocol("CP-VERSION-001", f"contract version {clean(info.contract_version, 32)!r}, needed is 1.x")


def check_capabilities(answer: identity_pb2.GetPluginCapabilitiesResponse) -> None:
    """Limits are set; capabilities are a bounded list of dotted strings. An unknown one is fine."""
    check_message(answer, "CP-IDENTITY-004")
    if len(answer.capabilities) > MAX_CAPABILITIES:
        raise PluginProtocol("CP-IDENTITY-003", f"{len(answer.capabilities)} capabilities")
    for text in answer.capabilities:
        if not text or len(text) > MAX_CAPABILITY or not text.isascii() or not text.isprintable() or " " in text:
            raise PluginProtocol("CP-IDENTITY-003", f"capability {clean(text, 64)!r} is no dotted string")


def check_verdict(result: compiler_pb2.CheckModelResult, _blobs: Mapping[str, bytes]) -> None:
    """A negative verdict says why; estimates are labelled as such."""
    check_message(result, "CP-CHECK-001")
    if result.supported == result.HasField("error"):
        raise PluginProtocol("CP-CHECK-002", "exactly the unsupported verdict carries an error")
    if result.supported and any(not operator.supported for operator in result.operators):
        raise PluginProtocol("CP-CHECK-003", "supported, but one of its operators is not")
    if result.HasField("error"):
        error = from_status(result.error)
        row = Reason.__members__.get(error.reason)
        if row is not None and row.code != error.code:
            raise PluginProtocol("CP-ERROR-002", f"{error.reason} with code {error.code}")


def check_compiled(result: compiler_pb2.CompileResult, blobs: Mapping[str, bytes]) -> None:
    """Digest, size, and every claim that can be checked without running anything."""
    payload = blobs.get("payload")
    if payload is None:
        raise PluginProtocol("CP-COMPILE-002", "a result without a payload")
    _check_blob("payload", payload, result.payload_sha256, result.payload_bytes)
    check_message(result, "CP-COMPILE-003")
    if not result.inputs or not result.outputs:
        raise PluginProtocol("CP-COMPILE-004", "a payload without inputs or outputs")
    sizes = [(t.name, t.arena_offset, _tensor_bytes(t)) for t in (*result.inputs, *result.outputs)]
    if not result.arena_bytes or result.arena_bytes >= 2**32 or result.stack_bytes >= 2**32:
        raise PluginProtocol("CP-COMPILE-005", f"arena of {result.arena_bytes} and stack of {result.stack_bytes} bytes")
    alignment = result.arena_alignment
    if alignment & (alignment - 1) or alignment > 4096:
        raise PluginProtocol("CP-COMPILE-005", f"arena alignment {alignment} is no power of two up to 4096")
    if result.payload_kind == target_pb2.PAYLOAD_KIND_NATIVE:
        _check_native(result, sizes)


def _check_native(result: compiler_pb2.CompileResult, tensors: list[tuple[str, int, int]]) -> None:
    if not result.isa:
        raise PluginProtocol("CP-COMPILE-006", "a native payload without its instruction set")
    if result.entry_offset >= result.payload_bytes:
        raise PluginProtocol("CP-COMPILE-006", f"entry {result.entry_offset} is outside of the payload")
    if not result.HasField("certificate"):
        raise PluginProtocol("CP-COMPILE-007", "a native payload without a memory certificate")
    if result.certificate.arena_bytes != result.arena_bytes or result.certificate.stack_bytes != result.stack_bytes:
        raise PluginProtocol("CP-COMPILE-007", "the certificate is about another arena or stack than the result")
    for name, offset, size in tensors:
        if offset + size > result.arena_bytes or offset % 4:
            raise PluginProtocol(
                "CP-COMPILE-008", f"tensor {clean(name, 64)!r} is outside of the arena or not aligned to 4"
            )
    for symbol in result.symbols:
        if symbol.offset + symbol.bytes > result.payload_bytes:
            raise PluginProtocol("CP-COMPILE-009", f"symbol {clean(symbol.symbol, 64)!r} is outside of the payload")


def _tensor_bytes(spec: tensor_pb2.TensorSpec) -> int:
    width = _ELEMENT_BYTES.get(spec.dtype)
    if width is None or any(d == 0 for d in spec.shape) or len(spec.shape) > 8 or not math.isfinite(spec.scale):
        raise PluginProtocol("CP-COMPILE-004", f"tensor {clean(spec.name, 64)!r} has no usable type or shape")
    return math.prod(spec.shape) * width


def check_model_out(result: Any, blobs: Mapping[str, bytes]) -> None:
    """The model that came is the one that the result names."""
    model = blobs.get("model")
    if model is None:
        raise PluginProtocol("CP-IMPORT-002", "a result without a model")
    _check_blob("model", model, result.model_sha256, result.model_bytes)
    check_message(result, "CP-IMPORT-002")


def check_optimized(result: Any, blobs: Mapping[str, bytes]) -> None:
    """As `check_model_out`; recipe and report are JSON objects, the picture is an SVG that refers to nothing."""
    check_model_out(result, blobs)
    for name in ("recipe", "report"):
        if name in blobs:
            _check_json(name, blobs[name])
    if "picture" in blobs:
        fault = svg_fault(blobs["picture"])
        if fault:
            raise PluginProtocol("CP-OPTIMIZE-002", f"the picture {fault}")


def _check_json(name: str, data: bytes) -> None:
    try:
        whole = len(data) <= MAX_REPORT_BYTES and isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise PluginProtocol("CP-OPTIMIZE-002", f"the {name} is no JSON object of at most {MAX_REPORT_BYTES} bytes")


def svg_fault(data: bytes) -> str:
    """Why a file is no self-contained SVG that is safe to show; empty when it is one."""
    # A document type could define entities; nothing that a picture needs begins like it.
    if len(data) > MAX_REPORT_BYTES or b"<!" in data or b"<?" in data:
        return "is too large, or has a document type or an instruction"
    try:
        root = ElementTree.fromstring(data.decode("utf-8"))  # noqa: S314 (entities need a document type, refused above)
    except (UnicodeDecodeError, ElementTree.ParseError):
        return "is no XML in UTF-8"
    if root.tag != f"{_SVG}svg":
        return "is no SVG"
    for element in root.iter():
        if not isinstance(element.tag, str) or element.tag.removeprefix(_SVG) not in _SVG_ELEMENTS:
            return f"has an element {clean(str(element.tag), 64)}"
        for key, value in element.attrib.items():
            if key.startswith(("on", "{")) or key == "href":
                return f"has an attribute {clean(key, 64)}"
            if _outside(value):
                return "refers to something outside of it"
        if element.tag == f"{_SVG}style" and _outside(element.text or ""):
            return "has a style that refers to something outside of it"
    return ""


def _outside(text: str) -> bool:
    low = text.lower()
    return any(word in low for word in ("url(", "@import", "javascript:", "expression(", "\\", "image("))


def outputs_checker(samples: int) -> Callable[[Any, Mapping[str, bytes]], None]:
    """A check that the outputs are an InputSet with one entry per sample, and are those that the result names."""

    def check(result: Any, blobs: Mapping[str, bytes]) -> None:
        outputs = blobs.get("outputs")
        if outputs is None:
            raise PluginProtocol("CP-PROFILE-002", "a result without outputs")
        _check_blob("outputs", outputs, result.outputs_sha256, len(outputs))
        check_message(result, "CP-PROFILE-003")
        try:
            values = profiler_pb2.InputSet.FromString(outputs)
        except DecodeError as error:
            raise PluginProtocol("CP-PROFILE-002", "outputs are no InputSet") from error
        if len(values.samples) != samples:
            raise PluginProtocol("CP-PROFILE-002", f"{len(values.samples)} outputs for {samples} inputs")
        for measurement in getattr(result, "measurements", ()):
            if not math.isfinite(measurement.value):
                raise PluginProtocol("CP-PROFILE-003", "a measurement that is no finite number")

    return check


def _check_blob(name: str, data: bytes, sha256: bytes, size: int) -> None:
    import hashlib

    got = hashlib.sha256(data).digest()
    if sha256 != got:
        raise DigestMismatch(f"sha256 of {name} in the result", sha256[:32].hex(), got.hex())
    if size != len(data):
        raise DigestMismatch(f"size of {name} in the result", size, len(data))


def call_error(code: grpc.StatusCode, details: str | None, trailing: Any) -> grpc.aio.AioRpcError:
    """The exception that gRPC would have raised for a call that was read message by message."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing or grpc.aio.Metadata(), details=details or "")


def plugin_error(error: grpc.RpcError, seconds: float = 0.0) -> ServiceError:
    """What a failed call says about the plugin: its own error when that keeps to the table, else a breach or an outage."""
    got = from_rpc_error(error)
    message = clean(got.message, 1024)
    row = Reason.__members__.get(got.reason)
    if row is not None:
        if row.code != got.code:
            return PluginProtocol("CP-ERROR-002", f"{got.reason} with code {got.code}")
    elif got.reason == got.code:  # no ErrorInfo: gRPC itself speaks, or the plugin forgot it
        return _bare_error(got.code, message, seconds)
    elif got.code not in _CODES:
        return PluginProtocol("CP-ERROR-003", f"code {got.code} is not in the table: {message}")
    metadata = {clean(key, 64): clean(value, 1024) for key, value in got.metadata.items()}
    return error_for(got.code, message, got.reason, metadata, clean(got.help, 1024))


def _bare_error(code: str, message: str, seconds: float) -> ServiceError:
    if code == "UNAVAILABLE":
        return PluginUnavailable(message or "the plugin cannot be reached")
    if code == "DEADLINE_EXCEEDED":
        return PluginTimeout("CP-IDENTITY-005" if seconds else "CP-LIMIT-004", "no answer in time", seconds)
    if code == "CANCELLED":
        return PluginUnavailable("the plugin closed the stream")
    if code == "INTERNAL" and message == CUT_OFF:
        return PluginUnavailable("the plugin ended the call while it was being sent to")
    if code == "UNIMPLEMENTED":
        return PluginProtocol("CP-IDENTITY-006", f"advertised, but not implemented: {message}")
    return PluginProtocol("CP-ERROR-001", f"{code} without ErrorInfo: {message}")
