"""Content formats: from bytes on the wire to typed values and back (LwM2M Core TS 1.1, clause 7.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum

from . import lwm2m_cbor, senml, text, tlv
from .objects import kind_of
from .values import CodecError, Kind, Limits, Path, TypeLookup, Value, Values


class Format(IntEnum):
    """CoAP content formats that this project reads and writes."""

    TEXT = 0
    LINK = 40
    OPAQUE = 42
    CBOR = 60
    SENML_JSON = 110
    SENML_CBOR = 112
    SENML_ETCH_JSON = 320
    SENML_ETCH_CBOR = 322
    TLV = 11542
    LWM2M_CBOR = 11544


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
    if content_format == Format.LWM2M_CBOR:
        return lwm2m_cbor.decode(payload, base, types, limits)
    if content_format in (None, Format.TEXT, Format.OPAQUE, Format.CBOR):
        if base.depth < 3:
            raise CodecError(str(base), f"content format {content_format} can only carry one resource")
        if content_format == Format.CBOR:
            return {base: lwm2m_cbor.decode_value(payload, base, types, limits)}
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
    if content_format == Format.LWM2M_CBOR:
        return lwm2m_cbor.encode(values, base, types)
    if content_format in (Format.TEXT, Format.OPAQUE, Format.CBOR) and len(values) == 1 and base in values:
        value = values[base]
        if content_format == Format.CBOR:
            return lwm2m_cbor.encode_value(value, base, types)
        if content_format == Format.TEXT:
            return text.encode(value)
        if isinstance(value, bytes):
            return value
    raise CodecError(str(base), f"content format {content_format} can't carry these values")


COMPOSITE = (Format.SENML_CBOR, Format.SENML_JSON)
"""Formats of composite operations (Core TS 1.1, clause 6.3.8 and on); SenML-ETCH is read as SenML where a value is written."""

_ETCH = {Format.SENML_ETCH_CBOR: Format.SENML_CBOR, Format.SENML_ETCH_JSON: Format.SENML_JSON}


def decode_composite(
    content_format: int | None, payload: bytes, *, types: TypeLookup = kind_of, limits: Limits | None = None
) -> Values:
    """Values of several objects at once, as Read-Composite answers and Write-Composite brings them."""
    limits = limits or Limits()
    plain = _ETCH.get(Format(content_format), content_format) if content_format in _ETCH else content_format
    if plain == Format.SENML_JSON:
        return senml.decode_json(payload, None, types, limits)
    if plain == Format.SENML_CBOR:
        return senml.decode_cbor(payload, None, types, limits)
    if plain == Format.LWM2M_CBOR:
        return lwm2m_cbor.decode(payload, None, types, limits)
    raise CodecError("composite", f"content format {content_format} is not supported")


def encode_composite(content_format: int, values: Mapping[Path, Value], *, types: TypeLookup = kind_of) -> bytes:
    """Payload that carries values of several objects."""
    if content_format in (Format.SENML_JSON, Format.SENML_ETCH_JSON):
        return senml.encode_json(values, None)
    if content_format in (Format.SENML_CBOR, Format.SENML_ETCH_CBOR):
        return senml.encode_cbor(values, None)
    if content_format == Format.LWM2M_CBOR:
        return lwm2m_cbor.encode(values, None, types)
    raise CodecError("composite", f"content format {content_format} can't carry several objects")


def decode_paths(content_format: int | None, payload: bytes, *, limits: Limits | None = None) -> tuple[Path, ...]:
    """Paths that a Read-Composite or Observe-Composite asks for."""
    if content_format not in COMPOSITE:
        raise CodecError("composite", f"content format {content_format} is not supported")
    return senml.decode_paths(payload, limits or Limits(), binary=content_format == Format.SENML_CBOR)


def encode_paths(content_format: int, paths: Iterable[Path]) -> bytes:
    """Payload that asks for these paths."""
    if content_format not in COMPOSITE:
        raise CodecError("composite", f"content format {content_format} can't carry paths")
    return senml.encode_paths(paths, binary=content_format == Format.SENML_CBOR)
