"""The race: canonical digests of requests, the Pareto front, and the choice of a winner. Pure and deterministic."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from google.protobuf import struct_pb2
from google.protobuf.message import Message

from tinymlaas.gateway.v1 import builds_pb2
from tinymlaas.type.v1 import target_pb2


@dataclass(frozen=True, slots=True)
class Entry:
    """A sealed candidate's figures. ``instructions`` is None where nothing could count them."""

    key: str
    instructions: float | None
    flash_bytes: float
    ram_bytes: float


def _canonical(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


_SETS: tuple[Literal["features", "payload_kinds"], ...] = ("features", "payload_kinds")
_LISTS: tuple[Literal["memory_regions", "runtimes", "accelerators"], ...] = (
    "memory_regions",
    "runtimes",
    "accelerators",
)


def canonical_target(target: target_pb2.Target) -> target_pb2.Target:
    """Return the target without what changes nothing: its name, and the order of features, regions and lists."""
    result = target_pb2.Target()
    result.CopyFrom(target)
    result.name = ""
    for name in _SETS:
        values = sorted(set(getattr(result, name)))
        result.ClearField(name)
        getattr(result, name).extend(values)
    for runtime in result.runtimes:
        operators = sorted(set(runtime.operators))
        del runtime.operators[:]
        runtime.operators.extend(operators)
    for part in _LISTS:
        messages = sorted(getattr(result, part), key=lambda item: (item.name, _canonical(item)))
        result.ClearField(part)
        getattr(result, part).extend(messages)
    return result


def target_digest(target: target_pb2.Target) -> str:
    """Digest of the canonical target, sha256 hex: equal digests are compiled once."""
    return digest("target", _target_bytes(target))


def _target_bytes(target: target_pb2.Target) -> bytes:
    return _target_bytes_of(target.SerializeToString(deterministic=True))


# The same few targets come again and again.
@lru_cache(maxsize=1024)
def _target_bytes_of(serialized: bytes) -> bytes:
    return _canonical(canonical_target(target_pb2.Target.FromString(serialized)))


def digest(kind: str, *parts: bytes | str | int) -> str:
    """Digest of parts in order, sha256 hex; each part is preceded by its length, so no two lists collide."""
    state = hashlib.sha256()
    for part in (f"tinymlaas/{kind}/1", *parts):
        data = part if isinstance(part, bytes) else str(part).encode()
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()


def options_bytes(options: struct_pb2.Struct | None) -> bytes:
    """Canonical bytes of options: keys in order; absent and empty options are the same."""
    return b"" if options is None else _canonical(options)


@dataclass(frozen=True, slots=True)
class Common:
    """What all candidates of a build share. Digests are sha256 hex; ``key_id`` is the signing key's, hex."""

    project: str
    model_version: str
    model_sha256: str
    target: target_pb2.Target
    samples_sha256: str
    security_counter: int
    key_id: str


def candidate_digest(common: Common, plugin: str, version: str, options: struct_pb2.Struct | None) -> str:
    """Digest of one candidate's request: equal digests yield equal modules."""
    return digest(
        "candidate",
        common.project,
        common.model_version,
        common.model_sha256,
        _target_bytes(common.target),
        common.samples_sha256,
        common.security_counter,
        common.key_id,
        plugin,
        version,
        options_bytes(options),
    )


def build_digest(common: Common, objective: int, candidates: Mapping[str, str], optimizer: str = "") -> str:
    """Digest of a build: objective and, by plugin, the digests of its candidates; their order does not matter.

    `optimizer` is the digest of who optimizes the model first and how; empty when nobody does.
    """
    parts: list[str | int] = [common.project, objective]
    for plugin in sorted(candidates):
        parts += [plugin, candidates[plugin]]
    if optimizer:
        parts += ["optimized", optimizer]
    return digest("build", *parts)


def _figures(entry: Entry) -> tuple[float, float, float]:
    instructions = math.inf if entry.instructions is None else entry.instructions
    return (instructions, entry.flash_bytes, entry.ram_bytes)


def pareto(entries: Sequence[Entry]) -> set[str]:
    """Return keys of entries that no other beats: at least as good in every figure and better in one.

    A figure that nobody measured counts as infinite: it beats nothing.
    """
    front = set()
    for entry in entries:
        mine = _figures(entry)
        beaten = any(
            all(theirs <= own for theirs, own in zip(_figures(other), mine, strict=True)) and _figures(other) != mine
            for other in entries
        )
        if not beaten:
            front.add(entry.key)
    return front


def choose(entries: Sequence[Entry], objective: builds_pb2.Objective.ValueType) -> str | None:
    """Return the key of the winner, None without entries; ties fall to the other figures, then to the key.

    Balanced is the least product of the ratios to the best of each figure. An entry without an instruction count loses
    to one that has it for latency and balanced: an unmeasured figure wins nothing.
    """
    if not entries:
        return None
    best = [min(figures) for figures in zip(*(_figures(entry) for entry in entries), strict=True)]

    def product(entry: Entry) -> float:
        value = 1.0
        for own, least in zip(_figures(entry), best, strict=True):
            if math.isfinite(own):
                value *= (own + 1) / (least + 1)
        return value

    def rank(entry: Entry) -> tuple[object, ...]:
        instructions, flash, ram = _figures(entry)
        orders: dict[int, tuple[float, ...]] = {
            builds_pb2.OBJECTIVE_LATENCY: (instructions, ram, flash),
            builds_pb2.OBJECTIVE_FLASH: (flash, ram, instructions),
            builds_pb2.OBJECTIVE_RAM: (ram, flash, instructions),
        }
        unmeasured = 0.0 if math.isfinite(instructions) else 1.0
        balanced = (unmeasured, product(entry), flash, ram)
        return (*orders.get(objective, balanced), entry.key)

    return min(entries, key=rank).key
