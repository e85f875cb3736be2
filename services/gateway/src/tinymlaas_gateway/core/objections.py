"""Objections: a reason against a pair of compiler and target, with the smallest change that would lift it."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from tinymlaas.gateway.v1 import routing_pb2
from tinymlaas.type.v1 import target_pb2

DOMAIN = "tinymlaas.io"
MAX_TEXT = 400
MAX_METADATA = 16

_KIND_TEXT = {
    target_pb2.PAYLOAD_KIND_NATIVE: "native",
    target_pb2.PAYLOAD_KIND_TFLITE: "tflite",
    target_pb2.PAYLOAD_KIND_TFLITE_VELA: "tflite-vela",
    target_pb2.PAYLOAD_KIND_IREE_VMFB: "iree-vmfb",
    target_pb2.PAYLOAD_KIND_SHARED_OBJECT: "shared-object",
    target_pb2.PAYLOAD_KIND_FPGA: "fpga",
    target_pb2.PAYLOAD_KIND_SOURCE_PACKAGE: "source-package",
    target_pb2.PAYLOAD_KIND_FIRMWARE: "firmware",
}


def bytes_text(count: int) -> str:
    """Write a number of bytes for people: ``12,288 B``."""
    return f"{count:,} B"


def kind_text(kind: target_pb2.PayloadKind.ValueType) -> str:
    """Name a payload kind for people; a kind of a later contract is named by its number."""
    return _KIND_TEXT.get(kind, f"payload-kind-{int(kind)}")


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """Make text of a plugin or device fit to be shown: control characters removed, at most ``limit`` characters."""
    kept = "".join(character for character in text[: 4 * limit] if character.isprintable())
    return kept if len(kept) <= limit else kept[: limit - 1] + "…"


def objection(reason: str, message: str, remedy: str, **metadata: object) -> routing_pb2.Objection:
    """Build an objection; texts are cleaned because some of their parts come from plugins."""
    return routing_pb2.Objection(
        reason=clean(reason, 64),
        message=clean(message),
        remedy=clean(remedy),
        metadata={clean(key, 64): clean(str(value), 128) for key, value in list(metadata.items())[:MAX_METADATA]},
    )


def error_info(status: status_pb2.Status) -> error_details_pb2.ErrorInfo | None:
    """Return the first ErrorInfo of a status, None when there is none or it is malformed."""
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            try:
                detail.Unpack(info)
            except DecodeError:  # a hostile Any: there is no ErrorInfo in it
                return None
            return info
    return None


def status(code: int, reason: str, message: str, **metadata: object) -> status_pb2.Status:
    """Build a google.rpc.Status with one ErrorInfo of this system's domain."""
    result = status_pb2.Status(code=code, message=clean(message, 1000))
    info = error_details_pb2.ErrorInfo(
        reason=clean(reason, 64),
        domain=DOMAIN,
        metadata={clean(key, 64): clean(str(value), 256) for key, value in list(metadata.items())[:MAX_METADATA]},
    )
    result.details.add().Pack(info)
    return result


def reason_of(value: status_pb2.Status) -> str:
    """Return the machine-readable reason of a status; empty when it has none."""
    info = error_info(value)
    return info.reason if info is not None else ""
