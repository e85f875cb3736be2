"""What can be told from any message of ours by its descriptor: which resources it names, and its text without secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from google.protobuf import json_format
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
    copy = type(message)()
    copy.CopyFrom(message)
    sizes: dict[str, str] = {}
    _redact(copy, "", sizes)
    document = json_format.MessageToDict(copy, preserving_proto_field_name=True)
    text = json.dumps({**document, **sizes}, ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def redact_messages(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: messages among the values of an event become their redacted text."""
    for key, value in event.items():
        if isinstance(value, Message):
            event[key] = redacted(value)
    return event


def _redact(message: Any, prefix: str, left_out: dict[str, str]) -> None:
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if field.GetOptions().debug_redact:
            left_out[path] = REDACTED
            message.ClearField(field.name)
        elif field.type == FieldDescriptor.TYPE_BYTES:
            count = sum(map(len, value)) if field.is_repeated else len(value)
            left_out[path] = f"{count} bytes"
            message.ClearField(field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and not field.message_type.full_name.startswith(
            "google.protobuf."
        ):
            for place, inner in _inner(field, value):
                _redact(inner, f"{path}{place}.", left_out)


def _inner(field: FieldDescriptor, value: Any) -> Iterator[tuple[str, Any]]:
    entry: Any = field.message_type
    if entry.GetOptions().map_entry:
        if entry.fields_by_name["value"].type == FieldDescriptor.TYPE_MESSAGE:
            yield from ((f"[{key}]", value[key]) for key in sorted(value, key=str))
    elif field.is_repeated:
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    else:
        yield "", value


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
