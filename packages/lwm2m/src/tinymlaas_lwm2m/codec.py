"""Content formats: from bytes on the wire to typed values and back (LwM2M Core TS 1.1, clause 7.4)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from . import senml, text, tlv
from .objects import kind_of
from .values import CodecError, Kind, Limits, Path, TypeLookup, Value, Values


class Format(IntEnum):
    """CoAP content formats that this project reads and writes."""

    TEXT = 0
    LINK = 40
    OPAQUE = 42
    SENML_JSON = 110
    SENML_CBOR = 112
    TLV = 11542


def decode(
    content_format: int | None, payload: bytes, base: Path, *, types: TypeLookup = kind_of, limits: Limits | None = None
) -> Values:
    """Typed values that `payload`, received for `base`, holds.

    A missing content format means text, as LwM2M says for a single resource. Raises `CodecError` for an unknown
    format, a malformed payload, values outside `base`, or more than `limits` allow.
    """
    limits = limits or Limits()
    if len(payload) > limits.max_bytes:
        raise CodecError(str(base), f"{len(payload)} bytes, more than {limits.max_bytes}")
    if content_format == Format.TLV:
        return tlv.decode(payload, base, types, limits)
    if content_format == Format.SENML_JSON:
        return senml.decode_json(payload, base, types, limits)
    if content_format == Format.SENML_CBOR:
        return senml.decode_cbor(payload, base, types, limits)
    if content_format in (None, Format.TEXT, Format.OPAQUE):
        if base.depth < 3:
            raise CodecError(str(base), f"content format {content_format} can only carry one resource")
        kind = types(base.object_id, base.resource_id or 0)
        if content_format == Format.OPAQUE:
            if kind not in (None, Kind.OPAQUE):
                raise CodecError(str(base), "opaque bytes are not expected here")
            return {base: payload}
        return {base: text.decode(payload, kind, str(base))}
    raise CodecError(str(base), f"content format {content_format} is not supported")


def encode(content_format: int, values: Mapping[Path, Value], base: Path, *, types: TypeLookup = kind_of) -> bytes:
    """Payload that carries `values`, all at or under `base`, in the given format; `CodecError` where it can't."""
    if content_format == Format.TLV:
        return tlv.encode(values, base, types)
    if content_format == Format.SENML_JSON:
        return senml.encode_json(values, base)
    if content_format == Format.SENML_CBOR:
        return senml.encode_cbor(values, base)
    if content_format in (Format.TEXT, Format.OPAQUE) and len(values) == 1 and base in values:
        value = values[base]
        if content_format == Format.TEXT:
            return text.encode(value)
        if isinstance(value, bytes):
            return value
    raise CodecError(str(base), f"content format {content_format} can't carry these values")
