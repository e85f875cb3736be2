"""CoRE link format (RFC 6690) of registrations: which objects and instances a device has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .values import MAX_ID, CodecError, Path

MAX_BYTES = 16_384
MAX_LINKS = 512

_NAME = r"[A-Za-z0-9!#$&+\-.^_`|~*]{1,32}"
_WORD = r'"(?:[^"\\]|\\.){0,256}"|[^",;\s<>]{1,256}'
_LINK = re.compile(rf'<([^<>"]{{0,256}})>((?:;{_NAME}(?:=(?:{_WORD}))?){{0,16}})')
_ATTRIBUTE = re.compile(rf";({_NAME})(?:=({_WORD}))?")
_OBJECT = re.compile(r"/([0-9]{1,5})(?:/([0-9]{1,5}))?")


@dataclass(frozen=True, order=True)
class ObjectLink:
    """One object or object instance that a device says it has, with the object's version ("" means 1.0)."""

    object_id: int
    instance_id: int | None = None
    version: str = ""

    def __str__(self) -> str:
        path = f"/{self.object_id}" if self.instance_id is None else f"/{self.object_id}/{self.instance_id}"
        return f"<{path}>;ver={self.version}" if self.version else f"<{path}>"


def parse_registration(payload: bytes) -> tuple[ObjectLink, ...]:
    """Objects of a registration payload, sorted; `CodecError` for malformed, oversize or repeated links.

    The root link (`</>;rt="oma.lwm2m"`) may stand anywhere; an alternate path in it is refused because nothing here
    would use it. Links to anything but objects and instances are refused as well.
    """
    if len(payload) > MAX_BYTES:
        raise CodecError("links", f"{len(payload)} bytes, more than {MAX_BYTES}")
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CodecError("links", "are not UTF-8") from error
    links: dict[tuple[int, int | None], ObjectLink] = {}
    offset = count = 0
    while offset < len(text):
        match = _LINK.match(text, offset)
        count += 1
        if not match or count > MAX_LINKS:
            raise CodecError("links", f"malformed at character {offset}" if not match else f"more than {MAX_LINKS}")
        offset = match.end()
        if offset < len(text):
            if text[offset] != "," or offset + 1 == len(text):
                raise CodecError("links", f"malformed at character {offset}")
            offset += 1
        attributes = {name: value.strip('"') for name, value in _ATTRIBUTE.findall(match[2])}
        target = match[1]
        if attributes.get("rt") == "oma.lwm2m":
            if target not in ("/", ""):
                raise CodecError("links", "an alternate path is not supported")
            continue
        link = _object_link(target, attributes.get("ver", ""))
        if (link.object_id, link.instance_id) in links:
            raise CodecError("links", f"{link} occurs twice")
        links[link.object_id, link.instance_id] = link
    return tuple(
        sorted(links.values(), key=lambda link: (link.object_id, -1 if link.instance_id is None else link.instance_id))
    )


def _object_link(target: str, version: str) -> ObjectLink:
    match = _OBJECT.fullmatch(target)
    if not match:
        raise CodecError("links", f"{target[:40]!r} is not an object or an instance")
    object_id = int(match[1])
    instance_id = None if match[2] is None else int(match[2])
    if object_id > MAX_ID or (instance_id or 0) > MAX_ID:
        raise CodecError("links", f"{target} has an id above {MAX_ID}")
    if version and not re.fullmatch(r"[0-9]{1,3}\.[0-9]{1,3}", version):
        raise CodecError("links", f"{version[:20]!r} is not a version")
    return ObjectLink(object_id, instance_id, version)


def parse_discovery(payload: bytes) -> tuple[Path, ...]:
    """Paths in an answer to Discover, in its order, attributes left out; `CodecError` where it is malformed or oversize."""
    if len(payload) > MAX_BYTES:
        raise CodecError("links", f"{len(payload)} bytes, more than {MAX_BYTES}")
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CodecError("links", "are not UTF-8") from error
    paths: list[Path] = []
    offset = 0
    while offset < len(text):
        match = _LINK.match(text, offset)
        if not match or (match.end() < len(text) and text[match.end()] != ","):
            raise CodecError("links", f"malformed at character {offset}")
        offset = match.end() + 1
        paths.append(Path.parse(match[1]))
    return tuple(paths)


def format_discovery(paths: Iterable[Path], versions: Mapping[int, str]) -> bytes:
    """Answer to Discover (Core TS 1.1, clause 6.3.2): objects, instances, resources; `dim` counts resource instances."""
    instances: dict[Path, int] = {}
    for path in paths:
        if path.depth == 4:
            parent = Path(path.object_id, path.instance_id, path.resource_id)
            instances[parent] = instances.get(parent, 0) + 1
        else:
            instances.setdefault(path, 0)
    lines = []
    for path, count in sorted(instances.items(), key=lambda item: tuple(int(part) for part in item[0].segments)):
        version = versions.get(path.object_id, "1.0") if path.depth == 1 else "1.0"
        attributes = (f";dim={count}" if count else "") + (f";ver={version}" if version != "1.0" else "")
        lines.append(f"<{path}>{attributes}")
    return ",".join(lines).encode()


def format_registration(links: Iterable[ObjectLink]) -> bytes:
    """Registration payload of a device with these objects; the root link says that TLV and SenML are understood."""
    return ",".join(['</>;rt="oma.lwm2m";ct="60 110 112 11542 11544"', *(str(link) for link in links)]).encode()
