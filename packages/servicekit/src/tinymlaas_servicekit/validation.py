"""Checks of a message by what its proto declares: field behaviour, resource references, string lengths, page sizes.

The rules come from google/api/field_behavior.proto (AIP-203) and google/api/resource.proto (AIP-4231, AIP-122):
REQUIRED fields are set, IDENTIFIER and referenced names match the pattern of their resource, OUTPUT_ONLY fields are
ignored, strings hold at most 4096 characters, `page_size` is 0 to 1000. Rules are worked out once per message type.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from google.api import field_behavior_pb2, resource_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

import tinymlaas

from .errors import FieldViolation
from .paging import MAX_PAGE_SIZE
from .resource_names import parent_pattern, pattern_regex

MAX_STRING = 4096
MAX_SHOWN = 16
# Fields that hold documents rather than names and words.
LONG_STRINGS = {
    "tinymlaas.registry.v1.Plugin.compiler_option_schema": 256 * 1024,
    "tinymlaas.registry.v1.Plugin.optimizer_option_schema": 256 * 1024,
}

_Report = Callable[[str, str], None]
_Rule = Callable[[Any, str, _Report], None]


def validate(message: Message) -> list[FieldViolation]:
    """Every violation in `message` and the messages inside it, in field order, at most 16; empty when it is fine."""
    descriptor: Any = message.DESCRIPTOR
    rules = _rules_of(descriptor)
    if not rules.active:
        return []
    found: list[FieldViolation] = []

    def report(field: str, description: str) -> None:
        if len(found) < MAX_SHOWN:
            found.append(FieldViolation(field, description))

    rules.apply(message, "", report)
    return found


class _Rules:
    """The rules of one message type; filled after creation, because message types may be recursive."""

    def __init__(self) -> None:
        self.rules: list[_Rule] = []
        self.nested: list[tuple[FieldDescriptor, _Rules]] = []
        self.active = True

    def apply(self, message: Any, prefix: str, report: _Report) -> None:
        for rule in self.rules:
            rule(message, prefix, report)
        for field, rules in self.nested:
            if not rules.active:
                continue
            value = getattr(message, field.name)
            if _is_map(field):
                for key in sorted(value, key=str):
                    rules.apply(value[key], f"{prefix}{field.name}[{key}].", report)
            elif field.is_repeated:
                for index, item in enumerate(value):
                    rules.apply(item, f"{prefix}{field.name}[{index}].", report)
            elif message.HasField(field.name):
                rules.apply(value, f"{prefix}{field.name}.", report)


_built: dict[str, _Rules] = {}


def _rules_of(descriptor: Descriptor) -> _Rules:
    rules = _built.get(descriptor.full_name)
    if rules is None:
        rules = _build(descriptor)
        _mark_active(descriptor.full_name)
    return rules


def _build(descriptor: Descriptor) -> _Rules:
    rules = _built[descriptor.full_name] = _Rules()
    resource = descriptor.GetOptions().Extensions[resource_pb2.resource]
    for field in descriptor.fields:
        behaviours = set(field.GetOptions().Extensions[field_behavior_pb2.field_behavior])
        if field_behavior_pb2.OUTPUT_ONLY in behaviours:
            continue
        if field_behavior_pb2.REQUIRED in behaviours:
            rules.rules.append(_required(field))
        if field_behavior_pb2.IDENTIFIER in behaviours and resource.pattern:
            rules.rules.append(_matches(field, tuple(resource.pattern)))
        reference = field.GetOptions().Extensions[resource_pb2.resource_reference]
        if reference.type:
            rules.rules.append(_matches(field, resource_patterns(reference.type)))
        elif reference.child_type:
            rules.rules.append(
                _matches(field, tuple(parent_pattern(p) for p in resource_patterns(reference.child_type)))
            )
        if field.type == FieldDescriptor.TYPE_STRING and not _is_map(field):
            rules.rules.append(_bounded(field))
        if field.name == "page_size":
            rules.rules.append(_page_size)
        inner = _inner(field)
        if inner is not None:
            rules.nested.append((field, _built.get(inner.full_name) or _build(inner)))
    return rules


def _mark_active(name: str) -> None:
    """A type without rules of its own or below is skipped: chunks of uploads cost nothing."""
    seen: set[int] = set()

    def reaches(rules: _Rules) -> bool:
        if rules.rules:
            return True
        if id(rules) in seen:
            return False
        seen.add(id(rules))
        return any(reaches(inner) for _, inner in rules.nested)

    for rules in _built.values():
        seen.clear()
        rules.active = reaches(rules)


def _inner(field: FieldDescriptor) -> Descriptor | None:
    entry: Any = field.message_type
    inner: Descriptor | None = entry.fields_by_name["value"].message_type if _is_map(field) else entry
    return inner


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _required(field: FieldDescriptor) -> _Rule:
    name = field.name
    if field.is_repeated:
        present: Callable[[Any], bool] = lambda message: len(getattr(message, name)) > 0  # noqa: E731
    elif field.has_presence:
        present = lambda message: bool(message.HasField(name))  # noqa: E731
    elif field.type in (FieldDescriptor.TYPE_BOOL, FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        present = lambda message: True  # noqa: E731  (false and zero are values)
    else:
        present = lambda message: bool(getattr(message, name))  # noqa: E731

    def rule(message: Any, prefix: str, report: _Report) -> None:
        if not present(message):
            report(prefix + name, "is required")

    return rule


def _matches(field: FieldDescriptor, patterns: tuple[str, ...]) -> _Rule:
    name = field.name
    expressions: list[re.Pattern[str]] = [pattern_regex(pattern) for pattern in patterns]

    def rule(message: Any, prefix: str, report: _Report) -> None:
        values = getattr(message, name)
        for value in values if field.is_repeated else [values]:
            if value and not any(expression.fullmatch(value) for expression in expressions):
                report(prefix + name, f"does not match {' or '.join(patterns)}")

    return rule


def _bounded(field: FieldDescriptor) -> _Rule:
    name, limit = field.name, LONG_STRINGS.get(field.full_name, MAX_STRING)

    def rule(message: Any, prefix: str, report: _Report) -> None:
        values = getattr(message, name)
        for value in values if field.is_repeated else [values]:
            if len(value) > limit:
                report(prefix + name, f"has {len(value)} characters, at most {limit} are allowed")

    return rule


def _page_size(message: Any, prefix: str, report: _Report) -> None:
    if not 0 <= message.page_size <= MAX_PAGE_SIZE:
        report(prefix + "page_size", f"is {message.page_size}, must be 0 (default) to {MAX_PAGE_SIZE}")


@lru_cache(maxsize=1)
def contract_modules() -> tuple[Any, ...]:
    """The generated message modules of all contracts, imported."""
    # Namespace packages have no __init__ by which pkgutil would find them.
    names = {
        ".".join(("tinymlaas", *path.relative_to(root).with_suffix("").parts))
        for root in map(Path, tinymlaas.__path__)
        for path in root.glob("*/v*/*_pb2.py")
    }
    return tuple(importlib.import_module(name) for name in sorted(names))


@lru_cache(maxsize=1)
def _resources() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for module in contract_modules():
        for descriptor in module.DESCRIPTOR.message_types_by_name.values():
            resource = descriptor.GetOptions().Extensions[resource_pb2.resource]
            if resource.type:
                found[resource.type] = tuple(resource.pattern)
    return found


def resource_patterns(resource_type: str) -> tuple[str, ...]:
    """The name patterns of a resource type such as "tinymlaas.io/Model"; KeyError when no contract defines it."""
    return _resources()[resource_type]
