"""What can be told from any message of ours by its descriptor: which resources it names, and its text without secrets."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from google.protobuf import any_pb2, json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

REDACTED = "[redacted]"
MAX_TEXT = 4096
_PROJECTS = "projects/"
# Documents of others inside our messages; strings in them are no names.
_FOREIGN_TREES = ("google.protobuf.", "google.rpc.")


@runtime_checkable
class Forwarded(Protocol):
    """A message that a proxy passes on as bytes, and can parse where somebody must look into it."""

    def parsed(self) -> Message:
        """The message; google.protobuf.message.DecodeError when it is none."""


def named_in(message: Any) -> Iterator[str]:
    """Every resource name of a project in a message, however deep, in field order: all strings that begin with "projects/"."""
    plan = _plan(message.DESCRIPTOR)
    for name in () if plan is None else plan.strings(message):
        # Some handlers are lenient about slashes around a name, so this must be too.
        bare = name.lstrip("/")
        if bare.startswith(_PROJECTS):
            yield bare


def project_of(name: str) -> str:
    """Project id of a resource name that begins with "projects/"."""
    return name.split("/", 2)[1]


def redacted(message: Message, limit: int = MAX_TEXT) -> str:
    """The message as one line of JSON for logs: fields with `debug_redact` and bytes are left out; cut after `limit` characters."""
    sizes: dict[str, str] = {}
    document = _plain(message, "", sizes)
    text = json.dumps({**document, **sizes}, ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def redact_messages(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: messages among the values of an event become their redacted text."""
    for key, value in event.items():
        if isinstance(value, Message):
            event[key] = redacted(value)
    return event


def _plain(message: Any, prefix: str, left_out: dict[str, str]) -> dict[str, Any]:
    """The message as json_format would put it (without its copy, and several times as fast), less what is left out."""
    forms = _forms(message.DESCRIPTOR)
    result: dict[str, Any] = {}
    for field, value in message.ListFields():
        form = forms[field.number]
        name = form.name
        if form.secret:
            left_out[prefix + name] = REDACTED
        elif form.is_bytes:
            count = sum(map(len, value)) if form.repeated else len(value)
            left_out[prefix + name] = f"{count} bytes"
        elif form.nested and form.mapped:
            result[name] = {str(k): _plain(value[k], f"{prefix}{name}[{k}].", left_out) for k in sorted(value, key=str)}
        elif form.nested and form.repeated:
            result[name] = [_plain(v, f"{prefix}{name}[{i}].", left_out) for i, v in enumerate(value)]
        elif form.nested:
            result[name] = _plain(value, f"{prefix}{name}.", left_out)
        elif form.mapped:
            result[name] = {str(k): form.shown(value[k]) for k in sorted(value, key=str)}
        elif form.repeated:
            result[name] = list(map(form.shown, value))
        else:
            result[name] = form.shown(value)
    return result


@dataclass(frozen=True, slots=True)
class _Form:
    """How a field is written: `shown` gives the JSON value of one of its values, unless it is `nested` in our messages."""

    name: str
    repeated: bool
    mapped: bool
    secret: bool
    is_bytes: bool
    nested: bool
    shown: Callable[[Any], Any]


_known_forms: dict[str, dict[int, _Form]] = {}


def _forms(descriptor: Descriptor) -> dict[int, _Form]:
    """The forms of a message type's fields by number; worked out once per type."""
    forms = _known_forms.get(descriptor.full_name)
    if forms is None:
        forms = _known_forms[descriptor.full_name] = {field.number: _form(field) for field in descriptor.fields}
    return forms


_WIDE = frozenset(
    {
        FieldDescriptor.TYPE_INT64,
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_SINT64,
        FieldDescriptor.TYPE_FIXED64,
        FieldDescriptor.TYPE_SFIXED64,
    }
)


def _form(field: FieldDescriptor) -> _Form:
    entry: Any = field.message_type
    mapped = entry is not None and entry.GetOptions().map_entry
    one: Any = entry.fields_by_name["value"] if mapped else field
    inner = one.message_type
    foreign = inner is not None and inner.full_name.startswith("google.protobuf.")
    shown: Callable[[Any], Any] = _same
    if foreign:
        shown = _foreign
    elif one.type == FieldDescriptor.TYPE_ENUM:
        names = {value.number: value.name for value in one.enum_type.values}
        shown = lambda number: names.get(number, number)  # noqa: E731
    elif one.type in _WIDE:
        shown = str  # as JSON's numbers are doubles
    elif one.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        digits = 8 if one.type == FieldDescriptor.TYPE_FLOAT else 17
        shown = lambda value: float(f"{value:.{digits}g}") if math.isfinite(value) else str(value)  # noqa: E731
    elif one.type == FieldDescriptor.TYPE_BYTES:
        shown = lambda value: f"{len(value)} bytes"  # noqa: E731  (in a map)
    return _Form(
        field.name,
        field.is_repeated,
        mapped,
        field.GetOptions().debug_redact,
        field.type == FieldDescriptor.TYPE_BYTES,
        inner is not None and not foreign,
        shown,
    )


def _same(value: Any) -> Any:
    return value


def _foreign(message: Message) -> Any:
    """A message of google.protobuf; of an Any only its type, as its contents cannot be told to be no secret."""
    if isinstance(message, any_pb2.Any):
        return {"@type": message.type_url}
    try:
        return json_format.MessageToDict(message, preserving_proto_field_name=True)
    except (ValueError, TypeError, json_format.Error):  # such as a time that no calendar has
        return f"{message.ByteSize()} bytes"


@dataclass(frozen=True)
class _Step:
    """A field with strings: repeated or one, a map or not; `plan` is that of the messages in it, None for strings."""

    name: str
    repeated: bool
    mapped: bool
    plan: _Plan | None


class _Plan:
    """The fields of a message type that hold strings or lead to some; worked out once per type."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []

    def strings(self, message: Any) -> Iterator[str]:
        for step in self.steps:
            plan = step.plan
            if not step.repeated:
                if plan is None:
                    yield getattr(message, step.name)
                elif message.HasField(step.name):
                    yield from plan.strings(getattr(message, step.name))
                continue
            values = getattr(message, step.name)
            if step.mapped:
                for key in sorted(values, key=str):
                    yield str(key)
                    if plan is not None:
                        yield from plan.strings(values[key])
                    elif isinstance(values[key], str):
                        yield values[key]
            elif plan is None:
                yield from values
            else:
                for value in values:
                    yield from plan.strings(value)


_plans: dict[str, _Plan | None] = {}


def _plan(descriptor: Descriptor) -> _Plan | None:
    """The plan of a message type; None where no strings are in it or below: chunks of uploads cost nothing."""
    name = descriptor.full_name
    if name not in _plans:
        _plans[name] = _build(descriptor) if _reaches_strings(descriptor, set()) else None
    return _plans[name]


def _build(descriptor: Descriptor) -> _Plan:
    plan = _plans[descriptor.full_name] = _Plan()  # first, because message types may be recursive
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            plan.steps.append(_Step(field.name, field.is_repeated, False, None))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            entry: Any = field.message_type
            mapped = entry.GetOptions().map_entry
            value = entry.fields_by_name["value"].message_type if mapped else entry
            inner = None if value is None else _plan(value)
            if inner is not None or mapped:
                plan.steps.append(_Step(field.name, field.is_repeated, mapped, inner))
    return plan


def _reaches_strings(descriptor: Descriptor, seen: set[str]) -> bool:
    if descriptor.full_name.startswith(_FOREIGN_TREES) or descriptor.full_name in seen:
        return False
    seen.add(descriptor.full_name)
    return any(
        field.type == FieldDescriptor.TYPE_STRING
        or (field.message_type is not None and _reaches_strings(field.message_type, seen))
        for field in descriptor.fields
    )
