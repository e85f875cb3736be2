"""Who takes part in a rollout, and in which wave: device queries and the division into waves. Pure."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from tinymlaas.gateway.v1 import rollouts_pb2
from tinymlaas.registry.v1 import devices_pb2
from tinymlaas.type.v1 import target_pb2

from . import rollout, routing
from .policy import Policy

DeviceQuery = rollouts_pb2.DeviceQuery


def matches(query: DeviceQuery, device: devices_pb2.Device) -> bool:
    """Tell whether a device is what a query asks for; an empty query takes every device."""
    target = device.capabilities.target
    patterns: tuple[tuple[Sequence[str], str], ...] = (
        (query.names, device.name.rsplit("/", 1)[-1]),
        (query.manufacturers, device.manufacturer),
        (query.models, device.model),
        (query.firmware_versions, device.firmware_version),
        (query.rtos, device.capabilities.rtos),
    )
    if any(wanted and not _like_any(wanted, have) for wanted, have in patterns):
        return False
    some: tuple[tuple[Iterable[str], Iterable[str]], ...] = (
        (query.isas, [target.isa]),
        (query.cpus, [target.cpu]),
        (query.runtimes, [item.name for item in target.runtimes]),
    )
    if any(_folded(wanted) and not _folded(wanted) & _folded(have) for wanted, have in some):
        return False
    if query.payload_kinds and not set(query.payload_kinds) & set(target.payload_kinds):
        return False
    if not _folded(query.features) <= _folded(target.features):
        return False
    if not _folded(query.peripherals) <= _folded(rollout.peripherals(device)):
        return False
    return _enough(target, query)


def _enough(target: target_pb2.Target, query: DeviceQuery) -> bool:
    """What a device does not state is not enough: a query asks for what is known."""
    region = target_pb2.MemoryRegion
    for wanted, kind in ((query.min_ram_free_bytes, region.KIND_RAM), (query.min_flash_free_bytes, region.KIND_FLASH)):
        found = routing.space(target, kind)
        if wanted and (found is None or found.available < wanted):
            return False
    return True


def _folded(texts: Iterable[str]) -> set[str]:
    return {text.casefold() for text in texts}


def _like_any(patterns: Iterable[str], text: str) -> bool:
    return any(fnmatch.fnmatchcase(text.casefold(), pattern.casefold()) for pattern in patterns)


def draw(deployment: str, device: str, purpose: str) -> float:
    """Return a number in [0, 1) that is fixed for a deployment, a device and what it is drawn for."""
    digest = hashlib.sha256("\n".join((purpose, deployment, device)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def order(deployment: str, targets: Mapping[str, str]) -> list[str]:
    """Return device names in the order in which waves take them, given the digest of each one's target.

    The order is a draw, so that another deployment has other canaries; and the first of every kind of target come before
    the second of any, so that a small wave covers as many kinds as it can.
    """
    drawn = sorted(targets, key=lambda name: (draw(deployment, name, "order"), name))
    seen: dict[str, int] = {}
    ranks: dict[str, int] = {}
    for name in drawn:
        ranks[name] = seen[targets[name]] = seen.get(targets[name], -1) + 1
    return sorted(drawn, key=lambda name: ranks[name])


def divide(policy: Policy, ordered: Sequence[str], admits: Callable[[DeviceQuery, str], bool]) -> dict[str, int]:
    """Return each device's wave (index). Waves take in their turn; the last one takes all that are left.

    `admits` tells whether a device matches a query. A percentage is of all devices given, rounded up.
    """
    found: dict[str, int] = {}
    for index, wave in enumerate(policy.waves[:-1]):
        left = [name for name in ordered if name not in found]
        if wave.query is not None:
            left = [name for name in left if admits(wave.query, name)]
        size = wave.count if wave.count is not None else len(left)
        if wave.percent is not None:
            size = -(-len(ordered) * wave.percent // 100)
        found |= dict.fromkeys(left[:size], index)
    return {name: found.get(name, len(policy.waves) - 1) for name in ordered}
