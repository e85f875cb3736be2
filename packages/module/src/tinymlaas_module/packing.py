"""Write modules: ``pack`` contents into bytes, ``strip`` sections from an image.

The output is a pure function of the contents: no time, host, path or randomness.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import TypeVar

from . import layout
from .contents import Golden, Module, ModuleContents, Signature, Tensor
from .errors import ModuleError, Reason
from .layout import CriticalFlag, PayloadKind, SectionType, TensorKind, align_up
from .parsing import parse

_T = TypeVar("_T")


def pack(contents: ModuleContents) -> bytes:
    """Return the unsigned module for ``contents``.

    Raises ``ModuleError`` with the reason that ``parse`` would give: no module leaves here that a loader refuses.
    """
    bodies: dict[SectionType, bytes] = {
        SectionType.PAYLOAD: contents.payload,
        SectionType.TENSORS: _guard(Reason.TENSORS_INVALID, _tensor_table, contents.tensors),
    }
    if contents.golden is not None:
        _check_vector_sizes(contents.golden, contents.tensors)
        bodies[SectionType.GOLDEN] = _guard(Reason.GOLDEN_INVALID, _golden, contents.golden)
    if contents.manifest:
        bodies[SectionType.MANIFEST] = contents.manifest
    if contents.certificate:
        bodies[SectionType.CERTIFICATE] = contents.certificate
    header = _guard(Reason.RESERVED_NOT_ZERO, lambda value: _signed_header(value, len(bodies)), contents)
    table = b"".join(
        layout.SECTION_ENTRY.pack(kind, layout.SECTION_FLAGS[kind], len(body), 0, layout.section_digest(body))
        for kind, body in bodies.items()
    )
    present = (1 << len(bodies)) - 1
    image = _assemble(header + table, present, b"", bodies.values())
    parse(image, require_all=True)
    return image


def strip(image: bytes, sections: Iterable[SectionType]) -> bytes:
    """Return the image without ``sections`` (GOLDEN, MANIFEST, CERTIFICATE); its signatures stay valid.

    Sections that the module does not have are ignored. Raises ``ModuleError`` for sections that must stay
    (SECTION_MISSING) and for an image that does not parse.
    """
    module = parse(image)
    drop = set(sections)
    for kind in drop:
        if layout.SECTION_FLAGS[kind] & layout.SectionFlag.CRITICAL:
            raise ModuleError(Reason.SECTION_MISSING, f"{kind.name} cannot be left out", section=kind.name)
    present = 0
    bodies: list[bytes] = []
    for index, section in enumerate(module.sections):
        if section.data is not None and section.type not in drop:
            present |= 1 << index
            bodies.append(section.data)
    return _assemble(module.signed_head, present, encode_signatures(module.signatures), bodies)


def with_signatures(module: Module, signatures: Iterable[Signature]) -> bytes:
    """Return the image of ``module`` with ``signatures`` in place of those it carries."""
    present = sum(1 << index for index, section in enumerate(module.sections) if section.data is not None)
    bodies = [section.data for section in module.sections if section.data is not None]
    return _assemble(module.signed_head, present, encode_signatures(signatures), bodies)


def encode_signatures(signatures: Iterable[Signature]) -> bytes:
    """Return the signature block: records of 16 bytes head, value, zero padding to 16."""
    block = b""
    for signature in signatures:
        head = layout.SIGNATURE_RECORD.pack(int(signature.algorithm), 0, len(signature.value), signature.key_id)
        block += _padded(head + signature.value)
    return block


def _guard(reason: Reason, encode: Callable[[_T], bytes], value: _T) -> bytes:
    """Return ``encode(value)``; numbers that do not fit their field become ``reason``."""
    try:
        return encode(value)
    except (struct.error, OverflowError) as error:
        raise ModuleError(reason, f"a number does not fit its field: {error}") from error


def _padded(data: bytes) -> bytes:
    return data + bytes(align_up(len(data)) - len(data))


def _assemble(signed_head: bytes, present: int, signatures: bytes, bodies: Iterable[bytes]) -> bytes:
    body = signatures + b"".join(_padded(data) for data in bodies)
    size = layout.SIGNED_FROM + len(signed_head) + len(body)
    return layout.ENVELOPE.pack(layout.MAGIC, size, present, len(signatures)) + signed_head + body


def _text(text: str, width: int) -> bytes:
    try:
        data = text.encode("ascii")
    except UnicodeEncodeError:
        raise ModuleError(Reason.NAME_INVALID, f"{text!r} is not ASCII") from None
    if not 1 <= len(data) < width:
        raise ModuleError(Reason.NAME_INVALID, f"{text!r} has {len(data)} characters, allowed are 1 to {width - 1}")
    return data.ljust(width, b"\0")


def _signed_header(contents: ModuleContents, section_count: int) -> bytes:
    for reason, number in (
        (Reason.ENTRY_INVALID, contents.entry_offset),
        (Reason.ARENA_INVALID, contents.arena_bytes),
        (Reason.ARENA_INVALID, contents.arena_alignment),
        (Reason.STACK_INVALID, contents.stack_bytes),
    ):
        if not 0 <= number <= layout.MAX_MEMORY_BYTES:
            raise ModuleError(reason, f"{number} is not between 0 and {layout.MAX_MEMORY_BYTES}")
    inputs = sum(1 for tensor in contents.tensors if tensor.kind is TensorKind.INPUT)
    return layout.SIGNED_HEADER.pack(
        layout.FORMAT_VERSION,
        section_count,
        CriticalFlag.STATEFUL if contents.stateful else 0,
        0,
        contents.kind,
        contents.isa,
        contents.features,
        layout.NATIVE_ABI if contents.kind is PayloadKind.NATIVE else 0,
        inputs,
        len(contents.tensors) - inputs,
        0,
        contents.entry_offset,
        contents.arena_bytes,
        contents.arena_alignment,
        contents.stack_bytes,
        contents.security_counter,
        0,
        _text(contents.name, layout.NAME_BYTES),
        _text(contents.version, layout.VERSION_BYTES),
        bytes(16),
    )


def _tensor_table(tensors: tuple[Tensor, ...]) -> bytes:
    return b"".join(_tensor(tensor) for tensor in tensors)


def _tensor(tensor: Tensor) -> bytes:
    rank = len(tensor.shape)
    if rank > layout.MAX_RANK:
        raise ModuleError(Reason.TENSORS_INVALID, f"rank {rank} is above {layout.MAX_RANK}")
    dims = tensor.shape + (0,) * (layout.MAX_RANK - rank)
    offset = layout.NO_ARENA_OFFSET if tensor.arena_offset is None else tensor.arena_offset
    return layout.TENSOR.pack(
        tensor.kind, tensor.dtype, rank, 0, tensor.size, offset, tensor.scale, tensor.zero_point, *dims, 0
    )


def _check_vector_sizes(golden: Golden, tensors: tuple[Tensor, ...]) -> None:
    """Raise GOLDEN_INVALID unless vectors have exactly the tensors' bytes, which padding hides from a parser."""
    for kind in TensorKind:
        want = [tensor.size for tensor in tensors if tensor.kind is kind]
        for index, vector in enumerate(golden.vectors):
            have = [len(data) for data in (vector.inputs if kind is TensorKind.INPUT else vector.outputs)]
            if have != want:
                raise ModuleError(
                    Reason.GOLDEN_INVALID, f"vector {index}: {kind.name} {have} bytes, not {want}", vector=index
                )


def _golden(golden: Golden) -> bytes:
    numerics = golden.numerics
    data = layout.GOLDEN_HEADER.pack(
        len(golden.vectors),
        numerics.numerics_class,
        numerics.executor,
        numerics.lsb,
        numerics.rtol,
        numerics.atol,
        bytes(16),
    )
    for vector in golden.vectors:
        data += b"".join(_padded(tensor) for tensor in vector.inputs + vector.outputs)
    return data
