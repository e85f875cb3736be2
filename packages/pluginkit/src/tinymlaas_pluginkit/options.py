"""Options of a plugin: JSON Schema in, checked values with defaults out."""

from __future__ import annotations

import difflib
import json
from typing import Any

from google.protobuf import json_format, struct_pb2

from .errors import OptionInvalid, OptionUnknown, PluginProtocol

MAX_SCHEMA_BYTES = 256 * 1024


def struct_to_options(options: struct_pb2.Struct) -> dict[str, Any]:
    """The values of a Struct; numbers without a fraction become int, since a Struct knows only doubles."""
    values = json_format.MessageToDict(options)
    integral: dict[str, Any] = _integral(values)
    return integral


def options_to_struct(options: dict[str, Any]) -> struct_pb2.Struct:
    """The Struct of option values."""
    struct = struct_pb2.Struct()
    struct.update(options)
    return struct


def check_options(schema: dict[str, Any] | None, options: dict[str, Any]) -> dict[str, Any]:
    """The options with the schema's defaults filled in; OptionUnknown (with the nearest) or OptionInvalid.

    `schema` is a JSON Schema (draft 2020-12) of an object with additionalProperties false; None: no options.
    """
    properties: dict[str, Any] = (schema or {}).get("properties", {})
    for name in sorted(options):
        if name not in properties:
            # Names are hostile text: only a bounded part is compared and shown.
            nearest = difflib.get_close_matches(name[:64], list(properties), 1, 0.5)
            raise OptionUnknown(name[:64], nearest[0] if nearest else "")
    if schema is not None:
        from jsonschema import Draft202012Validator  # late: plugins without options need not load it

        error = next(iter(sorted(Draft202012Validator(schema).iter_errors(options), key=_position)), None)
        if error is not None:
            option = str(error.absolute_path[0]) if error.absolute_path else _missing(error.message)
            pointer = "".join(
                f"/{str(part)[:64].replace('~', '~0').replace('/', '~1')}" for part in error.absolute_path
            )
            raise OptionInvalid(option, error.message[:200], pointer)
    defaults = {name: spec["default"] for name, spec in properties.items() if "default" in spec}
    return {**defaults, **options}


def parse_schema(text: str) -> dict[str, Any] | None:
    """A schema as a plugin sent it, checked: at most 256 KiB, valid, an object type that takes no other properties.

    None for the empty text: no options. PluginProtocol otherwise.
    """
    clause = "CP-OPTION-001"
    if not text:
        return None
    if len(text.encode()) > MAX_SCHEMA_BYTES:
        raise PluginProtocol(clause, f"the option schema is larger than {MAX_SCHEMA_BYTES} bytes")
    from jsonschema import Draft202012Validator, SchemaError

    try:
        schema = json.loads(text)
        Draft202012Validator.check_schema(schema)
    except (ValueError, RecursionError, SchemaError) as error:
        raise PluginProtocol(clause, f"the option schema is no JSON Schema: {str(error)[:200]}") from error
    if (
        not isinstance(schema, dict)
        or schema.get("type") != "object"
        or schema.get("additionalProperties") is not False
    ):
        raise PluginProtocol(clause, "the option schema must describe an object with additionalProperties false")
    if not isinstance(schema.get("properties", {}), dict):
        raise PluginProtocol(clause, "properties must be an object")
    if "$ref" in text or "$dynamicRef" in text:
        raise PluginProtocol(clause, "the option schema must not refer elsewhere")
    return schema


def _position(error: Any) -> str:
    return "/".join(map(str, error.absolute_path))


def _missing(text: str) -> str:
    """The name in jsonschema's "'x' is a required property"; that error has the object's path, not the property's."""
    return text.split("'")[1] if text.count("'") >= 2 else "options"


def _integral(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _integral(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_integral(inner) for inner in value]
    return value
