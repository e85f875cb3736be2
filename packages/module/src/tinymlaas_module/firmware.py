"""Firmware packages (spec/inference-module.md, section 14): an application and a native module, linked into one image."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .contents import Module, ModuleContents, Tensor
from .errors import ModuleError, Reason
from .layout import DType, Feature, Isa, PayloadKind, TensorKind, align_up
from .packing import pack
from .parsing import parse
from .signing import sign

_HEAD = struct.Struct("<4sIII")
_MAGIC = b"TFW1"
# The format wants tensors, and a base package has no module that they could belong to.
_NO_TENSORS = (Tensor(TensorKind.INPUT, DType.INT8, (1,)), Tensor(TensorKind.OUTPUT, DType.INT8, (1,)))


@dataclass(frozen=True, slots=True)
class Application:
    """A board's firmware without a module: code that runs in place at any 16-byte aligned address of its flash.

    ``board`` names whom it is for, ``isa`` and ``features`` what it is compiled for; ``entry`` is the offset of its first
    instruction in ``code``, without Thumb bit.
    """

    board: str
    isa: Isa
    features: Feature
    code: bytes
    entry: int


def link_firmware(application: Application, module_image: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return the signed package of ``application`` with the native module in ``module_image``; the same for the same input.

    The module goes in as it was sealed, with its golden vectors and its certificate. Raises ModuleError
    (``KIND_UNKNOWN``) for a module that is not ``NATIVE``, or whatever breaks the module format.
    """
    module = parse(module_image)
    if module.header.kind is not PayloadKind.NATIVE:
        raise ModuleError(
            Reason.KIND_UNKNOWN, f"{module.header.kind.name} can't be linked in", kind=module.header.kind.value
        )
    header = module.header
    contents = ModuleContents(
        name=application.board,
        version=header.version,
        kind=PayloadKind.FIRMWARE,
        payload=_payload(application, module_image),
        tensors=tuple(replace(tensor, arena_offset=None) for tensor in module.tensors),
        arena_bytes=header.arena_bytes,
        arena_alignment=header.arena_alignment,
        stack_bytes=header.stack_bytes,
        isa=application.isa,
        features=application.features,
        security_counter=header.security_counter,
    )
    return sign(pack(contents), key)


def base_firmware(application: Application, key: Ed25519PrivateKey) -> bytes:
    """Return the signed base package of ``application``: no module is linked in, so no device takes it (IM-LINK-006)."""
    contents = ModuleContents(
        name=application.board,
        version="0",
        kind=PayloadKind.FIRMWARE,
        payload=_payload(application, b""),
        tensors=_NO_TENSORS,
        arena_bytes=0,
        isa=application.isa,
        features=application.features,
    )
    return sign(pack(contents), key)


def application_of(package: Module) -> Application:
    """Return the application of a package, with a module linked in or without; signatures are the caller's to check.

    Linking the same module again gives the same package. Raises ModuleError where the package's head breaks IM-LINK-002
    or 003.
    """
    payload, entry, place = _opened(package)
    header = package.header
    code = payload[_HEAD.size : place]
    return Application(header.name, header.isa, header.features, code, entry - _HEAD.size)


def _payload(application: Application, module_image: bytes) -> bytes:
    place = align_up(_HEAD.size + len(application.code))
    head = _HEAD.pack(_MAGIC, _HEAD.size + application.entry, place, len(module_image))
    return (head + application.code).ljust(place, b"\0") + module_image


def linked_module(package: Module) -> Module:
    """Return the module that a package brings, its structure checked like any other's; signatures are the caller's to check.

    Raises ModuleError where the package's head breaks IM-LINK-002 or 003, or the module in it is malformed or not native.
    """
    payload, _, place = _opened(package)
    module = parse(payload[place:])
    if module.header.kind is not PayloadKind.NATIVE:
        raise ModuleError(Reason.KIND_UNKNOWN, "the linked module is not native", kind=module.header.kind.value)
    return module


def _opened(package: Module) -> tuple[bytes, int, int]:
    """Payload of a package, offset of its first instruction and of what is linked in."""
    payload = package.payload
    if package.header.kind is not PayloadKind.FIRMWARE or len(payload) < _HEAD.size:
        raise ModuleError(Reason.KIND_UNKNOWN, "no firmware package", kind=package.header.kind.value)
    magic, entry, place, size = _HEAD.unpack_from(payload)
    if place % 16 or place > len(payload) or size != len(payload) - place:
        raise ModuleError(Reason.SIZE_MISMATCH, "the linked module does not end the package", size=size, offset=place)
    if magic != _MAGIC or entry % 2 or not _HEAD.size <= entry < place:
        raise ModuleError(Reason.ENTRY_INVALID, "the application has no entry", entry=entry)
    return payload, entry, place
