"""Read modules: every check of spec/inference-module.md section 7, in its order, with the C loader's verdicts."""

from __future__ import annotations

from dataclasses import dataclass

from . import layout
from .contents import Golden, Header, Module, Section, Signature, Tensor
from .errors import ModuleError, Reason
from .layout import (
    CriticalFlag,
    Feature,
    Isa,
    PayloadKind,
    SectionFlag,
    SectionType,
    SignatureAlgorithm,
    align_up,
    is_member,
)
from .records import parse_golden, parse_tensors


@dataclass(frozen=True, slots=True)
class _Row:
    type: int
    flags: int
    size: int
    digest: bytes


def parse(data: bytes, require_all: bool = False) -> Module:
    """Return the module in ``data`` or raise ``ModuleError`` with the reason of the first failed check.

    With ``require_all`` an image from which sections were left out is refused (SECTION_MISSING). Neither signatures nor
    digests are judged here: that is ``verify``.
    """
    if len(data) < layout.HEADER_BYTES:
        raise ModuleError(Reason.TRUNCATED, f"{len(data)} bytes are less than a header", size=len(data))
    magic, image_size, present, signature_bytes = layout.ENVELOPE.unpack_from(data)
    if magic != layout.MAGIC:
        raise ModuleError(Reason.BAD_MAGIC, "the first 8 bytes are not those of an inference module")
    header, section_count = _header(data, image_size)
    rows = _section_table(data, section_count)
    payload, tensor_table = rows[0], rows[1]
    if header.kind is PayloadKind.NATIVE:
        entry_fits = header.entry_offset < payload.size and header.entry_offset % 2 == 0
    else:
        entry_fits = header.entry_offset == 0
    if not entry_fits:
        raise ModuleError(Reason.ENTRY_INVALID, f"entry offset {header.entry_offset}, payload {payload.size} bytes")
    tensor_count = header.input_count + header.output_count
    if tensor_table.size != layout.TENSOR_BYTES * tensor_count:
        raise ModuleError(Reason.TENSORS_INVALID, f"{tensor_table.size} bytes for {tensor_count} tensor records")
    _check_presence(rows, present, require_all)
    head_end = layout.HEADER_BYTES + layout.SECTION_ENTRY_BYTES * section_count
    sections = _place_sections(data, rows, present, head_end, signature_bytes)
    signatures = _signatures(data[head_end : head_end + signature_bytes])
    for section in sections:
        if section.offset is not None:
            end = section.offset + section.size
            if any(data[end : align_up(end)]):
                raise ModuleError(Reason.PADDING_NOT_ZERO, f"padding after {section.name}", section=section.name)
    tensors = parse_tensors(header, sections[1].data or b"")
    golden = _golden(sections, tensors)
    signed_head = bytes(data[layout.SIGNED_FROM : head_end])
    return Module(header, sections, tensors, golden, signatures, signed_head, image_size)


def _header(data: bytes, image_size: int) -> tuple[Header, int]:
    (
        version,
        section_count,
        critical_flags,
        optional_flags,
        kind,
        isa,
        features,
        abi,
        inputs,
        outputs,
        reserved0,
        entry_offset,
        arena_bytes,
        arena_alignment,
        stack_bytes,
        security_counter,
        reserved1,
        name,
        text_version,
        reserved2,
    ) = layout.SIGNED_HEADER.unpack_from(data, layout.SIGNED_FROM)
    if version != layout.FORMAT_VERSION:
        raise ModuleError(Reason.VERSION_UNSUPPORTED, f"format version {version}", version=version)
    if image_size > len(data):
        raise ModuleError(Reason.TRUNCATED, f"{len(data)} of {image_size} bytes", size=len(data), expected=image_size)
    if image_size < len(data):
        raise ModuleError(
            Reason.TRAILING_BYTES, f"{len(data) - image_size} bytes follow", size=len(data), expected=image_size
        )
    if critical_flags & ~layout.ALL_CRITICAL_FLAGS:
        raise ModuleError(Reason.FLAGS_UNKNOWN, f"critical flags {critical_flags:#06x}", flags=critical_flags)
    if not PayloadKind.NATIVE <= kind <= PayloadKind.FIRMWARE:
        raise ModuleError(Reason.KIND_UNKNOWN, f"payload kind {kind}", kind=kind)
    _check_isa(kind, isa, features)
    if abi != (layout.NATIVE_ABI if kind == PayloadKind.NATIVE else 0):
        raise ModuleError(Reason.ABI_UNSUPPORTED, f"ABI {abi} for {PayloadKind(kind).name}", abi=abi)
    if inputs < 1 or outputs < 1 or inputs + outputs > layout.MAX_TENSORS:
        raise ModuleError(Reason.TENSORS_INVALID, f"{inputs} inputs, {outputs} outputs", inputs=inputs, outputs=outputs)
    if reserved0 or reserved1 or any(reserved2):
        raise ModuleError(Reason.RESERVED_NOT_ZERO, "reserved header bytes are not zero")
    _check_memory(kind, arena_bytes, arena_alignment, stack_bytes)
    header = Header(
        CriticalFlag(critical_flags),
        optional_flags,
        PayloadKind(kind),
        Isa(isa),
        Feature(features),
        abi,
        inputs,
        outputs,
        entry_offset,
        arena_bytes,
        arena_alignment,
        stack_bytes,
        security_counter,
        _text(name),
        _text(text_version),
    )
    return header, section_count


def _check_isa(kind: int, isa: int, features: int) -> None:
    if isa > max(Isa):
        raise ModuleError(Reason.ISA_INVALID, f"ISA {isa} is not known", isa=isa)
    cpu_code = kind in (PayloadKind.NATIVE, PayloadKind.SHARED_OBJECT, PayloadKind.FIRMWARE)
    if cpu_code == (isa == Isa.ANY) and kind != PayloadKind.IREE_VMFB:
        raise ModuleError(Reason.ISA_INVALID, f"ISA {Isa(isa).text} for {PayloadKind(kind).name}", isa=isa)
    if features & ~layout.ALL_FEATURES or (features and isa == Isa.ANY):
        raise ModuleError(
            Reason.FEATURES_INVALID, f"features {features:#x} with ISA {Isa(isa).text}", features=features
        )


def _check_memory(kind: int, arena_bytes: int, arena_alignment: int, stack_bytes: int) -> None:
    native = kind == PayloadKind.NATIVE
    power_of_two = arena_alignment & (arena_alignment - 1) == 0
    if (
        arena_bytes > layout.MAX_MEMORY_BYTES
        or (native and arena_bytes == 0)
        or not power_of_two
        or not layout.MIN_ARENA_ALIGNMENT <= arena_alignment <= layout.MAX_ARENA_ALIGNMENT
    ):
        raise ModuleError(Reason.ARENA_INVALID, f"arena {arena_bytes} bytes, aligned to {arena_alignment}")
    if stack_bytes > layout.MAX_MEMORY_BYTES or (native and stack_bytes == 0):
        raise ModuleError(Reason.STACK_INVALID, f"stack bound {stack_bytes} bytes")


def _text(raw: bytes) -> str:
    text = raw.rstrip(b"\0")
    if not text or len(text) == len(raw) or any(not 0x21 <= byte <= 0x7E for byte in text):
        raise ModuleError(Reason.NAME_INVALID, f"{raw!r} is not 1 to {len(raw) - 1} printable characters")
    return text.decode("ascii")


def _section_table(data: bytes, count: int) -> list[_Row]:
    if not 2 <= count <= layout.MAX_SECTIONS:
        raise ModuleError(Reason.SECTION_TABLE_INVALID, f"{count} sections", sections=count)
    if layout.HEADER_BYTES + layout.SECTION_ENTRY_BYTES * count > len(data):
        raise ModuleError(Reason.TRUNCATED, f"{len(data)} bytes end inside the section table", size=len(data))
    rows: list[_Row] = []
    previous = 0
    for index in range(count):
        kind, flags, size, reserved, digest = layout.SECTION_ENTRY.unpack_from(
            data, layout.HEADER_BYTES + layout.SECTION_ENTRY_BYTES * index
        )
        if kind <= previous or flags & ~layout.ALL_SECTION_FLAGS or not 1 <= size <= layout.MAX_SECTION_BYTES:
            raise ModuleError(
                Reason.SECTION_TABLE_INVALID, f"row {index}: type {kind}, flags {flags:#x}, {size} bytes", row=index
            )
        if reserved:
            raise ModuleError(Reason.RESERVED_NOT_ZERO, f"row {index} of the section table", row=index)
        fixed = layout.SECTION_FLAGS.get(kind)
        if fixed is None and flags & SectionFlag.CRITICAL:
            raise ModuleError(Reason.SECTION_UNKNOWN, f"critical section type {kind}", type=kind)
        if flags != (SectionFlag.DROPPABLE if fixed is None else fixed):
            raise ModuleError(Reason.SECTION_TABLE_INVALID, f"row {index}: flags {flags:#x}", row=index)
        previous = kind
        rows.append(_Row(kind, flags, size, digest))
    if rows[0].type != SectionType.PAYLOAD or rows[1].type != SectionType.TENSORS:
        raise ModuleError(Reason.SECTION_TABLE_INVALID, "the first sections are not PAYLOAD and TENSORS")
    return rows


def _check_presence(rows: list[_Row], present: int, require_all: bool) -> None:
    if present >> len(rows):
        raise ModuleError(Reason.SECTION_TABLE_INVALID, f"presence {present:#x} for {len(rows)} sections")
    for index, row in enumerate(rows):
        if not present >> index & 1 and (require_all or not row.flags & SectionFlag.DROPPABLE):
            raise ModuleError(Reason.SECTION_MISSING, f"section type {row.type} is not in this image", type=row.type)


def _place_sections(
    data: bytes, rows: list[_Row], present: int, head_end: int, signature_bytes: int
) -> tuple[Section, ...]:
    if signature_bytes % layout.ALIGNMENT or signature_bytes > layout.MAX_SIGNATURE_BLOCK_BYTES:
        raise ModuleError(Reason.SIGNATURE_BLOCK_INVALID, f"{signature_bytes} bytes of signatures")
    offset = head_end + signature_bytes
    sections: list[Section] = []
    for index, row in enumerate(rows):
        if present >> index & 1:
            body = bytes(data[offset : offset + row.size])
            sections.append(Section(row.type, row.flags, row.size, row.digest, offset, body))
            offset = align_up(offset + row.size)
        else:
            sections.append(Section(row.type, row.flags, row.size, row.digest, None, None))
    if offset != len(data):
        raise ModuleError(Reason.SIZE_MISMATCH, f"sections end at {offset}, image at {len(data)}", expected=offset)
    return tuple(sections)


def _signatures(block: bytes) -> tuple[Signature, ...]:
    records: list[Signature] = []
    offset = 0
    while offset < len(block):
        algorithm, flags, size, key_id = layout.SIGNATURE_RECORD.unpack_from(block, offset)
        start = offset + layout.SIGNATURE_RECORD_HEADER_BYTES
        end = start + size
        offset = align_up(end)
        if (
            len(records) == layout.MAX_SIGNATURES
            or algorithm == 0
            or flags
            or size == 0
            or offset > len(block)
            or any(block[end:offset])
            or (algorithm == SignatureAlgorithm.ED25519 and size != layout.ED25519_SIGNATURE_BYTES)
        ):
            raise ModuleError(
                Reason.SIGNATURE_BLOCK_INVALID, f"record {len(records)}: algorithm {algorithm}, {size} bytes"
            )
        known = SignatureAlgorithm(algorithm) if is_member(SignatureAlgorithm, algorithm) else algorithm
        records.append(Signature(known, key_id, block[start:end]))
    return tuple(records)


def _golden(sections: tuple[Section, ...], tensors: tuple[Tensor, ...]) -> Golden | None:
    for section in sections:
        if section.type == SectionType.GOLDEN and section.data is not None:
            return parse_golden(section.data, tensors)
    return None
