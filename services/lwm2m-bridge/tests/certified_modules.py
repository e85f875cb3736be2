"""Real native modules for virtual boards, with a memory certificate that is true unless a test makes it lie."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tinymlaas_module import (
    Access,
    Buffer,
    BufferKind,
    CodeSection,
    CriticalFlag,
    Frame,
    MemoryCertificate,
    Module,
    ModuleContents,
    Step,
    encode_certificate,
    pack,
    parse,
    sign,
)

sys.path.insert(0, str(Path(__file__).parents[3] / "device" / "reference" / "tests"))

from board_modules import KEY, OTHER_KEY, PUBLIC_KEY, WIDTH, module_for

__all__ = ["KEY", "OTHER_KEY", "PUBLIC_KEY", "certificate_of", "certified_for", "module_for", "with_certificate"]

PLAN_BYTES = 2 * WIDTH
Lie = Callable[[MemoryCertificate], MemoryCertificate]


def honest(certificate: MemoryCertificate) -> MemoryCertificate:
    """No lie."""
    return certificate


def certificate_of(module: Module) -> MemoryCertificate:
    """The true certificate of a module of `board_modules`: input, output, and a workspace over the rest of the arena."""
    header = module.header
    scratch = header.arena_bytes - PLAN_BYTES
    buffers = [
        Buffer("in", 0, WIDTH, 0, 0, BufferKind.INPUT),
        Buffer("out", WIDTH, WIDTH, 0, 0, BufferKind.OUTPUT),
    ]
    writes = [Access("out", 0, WIDTH)]
    if scratch:
        buffers.append(Buffer("scratch", PLAN_BYTES, scratch, 0, 0, BufferKind.WORKSPACE))
        writes.append(Access("scratch", 0, scratch))
    return MemoryCertificate(
        sections=(CodeSection(".text", 0, len(module.payload)),),
        arena_bytes=header.arena_bytes,
        arena_alignment=header.arena_alignment,
        stack_bytes=header.stack_bytes,
        stack_method="frames of the test's one function",
        buffers=tuple(buffers),
        steps=(Step("add", (Access("in", 0, WIDTH),), tuple(writes)),),
        frames=(Frame("entry", header.stack_bytes),),
        entry_function="entry",
    )


def with_certificate(image: bytes, certificate: bytes, key: Ed25519PrivateKey = KEY) -> bytes:
    """The module of `image` sealed anew with these bytes as its certificate section; empty: without one."""
    module = parse(image)
    taken: dict[str, Any] = {
        field.name: getattr(module.header, field.name)
        for field in fields(ModuleContents)
        if hasattr(module.header, field.name)
    }
    contents = ModuleContents(
        **taken,
        payload=module.payload,
        tensors=module.tensors,
        golden=module.golden,
        certificate=certificate,
        stateful=CriticalFlag.STATEFUL in module.header.critical_flags,
    )
    return sign(pack(contents), key)


def certified_for(cpu: str, *, lie: Lie = honest, key: Ed25519PrivateKey = KEY, **options: Any) -> bytes:
    """`module_for` with a certificate, after `lie` has changed it."""
    image = module_for(cpu, key=key, **options)
    return with_certificate(image, encode_certificate(lie(certificate_of(parse(image)))), key)
