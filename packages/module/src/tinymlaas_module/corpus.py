"""Conformance corpus: sound modules and deterministic mutations of them, for parsers in any language.

``samples`` yields modules that every parser takes; ``mutations`` yields, for one of them, bytes that differ in one
respect. A parser conforms when its verdict on each equals that of ``verdict``: the name of a reason, or ``OK``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from . import layout
from .contents import Golden, GoldenVector, Module, ModuleContents, Numerics, Signature, Tensor
from .errors import ModuleError
from .layout import DType, Executor, Feature, Isa, NumericsClass, PayloadKind, SectionType, TensorKind
from .packing import pack, strip, with_signatures
from .parsing import parse
from .signing import KeyRing, raw_public_key, sign, verify

SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
TRUSTED = KeyRing.of([raw_public_key(SIGNER)])
MINIMUM_COUNTER = 3


def verdicts(image: bytes) -> tuple[str, str]:
    """Return the verdict on the structure of ``image`` and the one on its trust by ``TRUSTED``."""
    structure = verdict(image)
    return structure, verdict(image, TRUSTED) if structure == "OK" else structure


def cases() -> Iterator[tuple[str, bytes]]:
    """Yield (label, bytes) of the whole corpus: about 33,000 cases, always the same."""
    for name, image in samples():
        yield name, image
        for label, mutated in mutations(image, dense=name in ("native", "tflite")):
            yield f"{name}: {label}", mutated


def verdict(image: bytes, keys: KeyRing | None = None, minimum_counter: int = MINIMUM_COUNTER) -> str:
    """Return the reason for which ``image`` is refused, or ``OK``; without ``keys`` only its structure is judged."""
    try:
        module = parse(image)
        if keys is not None:
            verify(module, keys, minimum_counter)
    except ModuleError as error:
        return error.reason
    return "OK"


def native_contents() -> ModuleContents:
    """Return a small NATIVE module: two inputs, one int8 output, two golden vectors, odd sizes that need padding."""
    tensors = (
        Tensor(TensorKind.INPUT, DType.INT8, (1, 7), 0.5, -3, 0),
        Tensor(TensorKind.INPUT, DType.INT16, (3,), 0.25, 0, 16),
        Tensor(TensorKind.OUTPUT, DType.INT8, (1, 4), 0.125, 5, 32),
    )
    vectors = tuple(
        GoldenVector((bytes(range(i, i + 7)), bytes(range(6))), (bytes(range(i + 1, i + 5)),)) for i in range(2)
    )
    return ModuleContents(
        name="corpus-native",
        version="1.2.3",
        kind=PayloadKind.NATIVE,
        payload=bytes(range(1, 40)),
        tensors=tensors,
        arena_bytes=64,
        isa=Isa.ARMV7E_M,
        features=Feature.THUMB2 | Feature.DSP,
        entry_offset=4,
        stack_bytes=128,
        security_counter=MINIMUM_COUNTER,
        golden=Golden(Numerics(NumericsClass.WITHIN_LSB, Executor.TFLITE, lsb=1), vectors),
        manifest=b"manifest bytes",
        certificate=b"certificate",
    )


def tflite_contents() -> ModuleContents:
    """Return a small TFLITE module with float tensors, a scalar among them, compared within a tolerance."""
    tensors = (
        Tensor(TensorKind.INPUT, DType.FLOAT32, (2, 2)),
        Tensor(TensorKind.OUTPUT, DType.FLOAT32, ()),
        Tensor(TensorKind.OUTPUT, DType.BOOL, (3,)),
    )
    vector = GoldenVector((struct.pack("<4f", 1, 2, 3, 4),), (struct.pack("<f", 10.0), bytes([0, 1, 1])))
    return ModuleContents(
        name="corpus-tflite",
        version="0",
        kind=PayloadKind.TFLITE,
        payload=b"\x1c\0\0\0TFL3" + bytes(24),
        tensors=tensors,
        arena_bytes=2048,
        security_counter=MINIMUM_COUNTER + 4,
        golden=Golden(Numerics(NumericsClass.WITHIN_TOLERANCE, Executor.ONNX, rtol=1e-3, atol=1e-6), (vector,)),
    )


def samples() -> Iterator[tuple[str, bytes]]:
    """Yield (name, image) of modules whose structure is sound; all but three are also trusted by ``TRUSTED``."""
    native = sign(pack(native_contents()), SIGNER)
    yield "native", native
    yield "native-stripped", strip(native, [SectionType.GOLDEN, SectionType.MANIFEST, SectionType.CERTIFICATE])
    yield "native-without-manifest", strip(native, [SectionType.MANIFEST])
    yield "tflite", sign(pack(tflite_contents()), SIGNER)
    yield "two-keys", sign(sign(pack(native_contents()), STRANGER), SIGNER)
    module = parse(native)
    later = Signature(7, b"future!!", bytes(range(100)))
    yield "second-algorithm", with_signatures(module, [later, *module.signatures])
    yield "later-section", _with_later_section(native_contents())
    yield "exact", sign(pack(_exact(native_contents())), SIGNER)
    yield (
        "stateful-largest-alignment",
        sign(pack(replace(native_contents(), stateful=True, arena_alignment=layout.MAX_ARENA_ALIGNMENT)), SIGNER),
    )
    yield "unsigned", pack(native_contents())
    yield "stranger", sign(pack(native_contents()), STRANGER)
    yield "older", sign(pack(replace(native_contents(), security_counter=MINIMUM_COUNTER - 1)), SIGNER)


def _exact(contents: ModuleContents) -> ModuleContents:
    golden = contents.golden
    if golden is None:
        raise ValueError("contents without golden vectors")
    return replace(contents, golden=replace(golden, numerics=Numerics(NumericsClass.BIT_EXACT, Executor.ONNX)))


def _with_later_section(contents: ModuleContents) -> bytes:
    """Return a module with a droppable section of a type that format version 1 does not define."""
    module = parse(pack(contents))
    body = b"of a later format"
    head = bytearray(module.signed_head)
    struct.pack_into("<H", head, 2, len(module.sections) + 1)
    head += layout.SECTION_ENTRY.pack(9, layout.SectionFlag.DROPPABLE, len(body), 0, layout.section_digest(body))
    bodies = [section.data or b"" for section in module.sections] + [body]
    rest = b"".join(data.ljust(layout.align_up(len(data)), b"\0") for data in bodies)
    size = layout.SIGNED_FROM + len(head) + len(rest)
    image = layout.ENVELOPE.pack(layout.MAGIC, size, (1 << len(bodies)) - 1, 0) + bytes(head) + rest
    return sign(image, SIGNER)


def mutations(image: bytes, dense: bool = True) -> Iterator[tuple[str, bytes]]:
    """Yield (label, bytes): every truncation, extensions, every flipped byte, rows and sections exchanged, doubled or taken
    away; when ``dense`` also every flipped bit up to the golden header and fields set to boundary values."""
    module = parse(image)
    for size in range(len(image)):
        yield f"cut at {size}", image[:size]
    for extra in (1, 15, 16, 48, 4096):
        yield f"{extra} bytes more", image + bytes(extra)
    yield "twice", image + image
    yield from _bit_flips(image, module, dense)
    if dense:
        yield from _fields(image, module)
    yield from _rows(image, module)


def _bit_flips(image: bytes, module: Module, dense: bool) -> Iterator[tuple[str, bytes]]:
    end = module.payload_offset + layout.align_up(len(module.payload)) + 256 if dense else 0
    for at in range(len(image)):
        for mask in [1 << bit for bit in range(8)] if at < end else [0xFF]:
            changed = bytearray(image)
            changed[at] ^= mask
            yield f"byte {at} xor {mask:#04x}", bytes(changed)


def _boundary_values(value: int, width: int) -> set[int]:
    top = (1 << (8 * width)) - 1
    values = {
        0,
        1,
        2,
        3,
        4,
        15,
        16,
        17,
        32,
        33,
        48,
        63,
        64,
        65,
        255,
        256,
        top,
        top - 1,
        top >> 1,
        (top >> 1) + 1,
        1 << 28,
    }
    near = {value + delta for delta in (-64, -48, -16, -4, -2, -1, 1, 2, 4, 16, 48, 64)} | {value * 2}
    return {candidate for candidate in values | near if 0 <= candidate <= top and candidate != value}


def _fields(image: bytes, module: Module) -> Iterator[tuple[str, bytes]]:
    """Set every 16- and 32-bit field of head, tensor records and golden header to values where checks turn."""
    fields = [(at, 2) for at in (12, 14, *range(16, 40, 2))] + [(at, 4) for at in (8, 28, *range(40, 64, 4))]
    table_end = layout.HEADER_BYTES + layout.SECTION_ENTRY_BYTES * len(module.sections)
    for row in range(layout.HEADER_BYTES, table_end, layout.SECTION_ENTRY_BYTES):
        fields += [(row + at, 4) for at in range(0, 16, 4)]
    if module.signatures:
        fields += [(table_end, 2), (table_end + 2, 2), (table_end + 4, 4)]
    for section in module.sections:
        if section.offset is not None and section.type == SectionType.TENSORS:
            for record in range(section.offset, section.offset + section.size, layout.TENSOR_BYTES):
                fields += [(record, 2), (record + 2, 2)] + [(record + at, 4) for at in range(4, 48, 4)]
        if section.offset is not None and section.type == SectionType.GOLDEN:
            fields += [(section.offset, 2), (section.offset + 2, 2)]
            fields += [(section.offset + at, 4) for at in range(4, 32, 4)]
    for at, width in fields:
        value = int.from_bytes(image[at : at + width], "little")
        for candidate in sorted(_boundary_values(value, width)):
            changed = image[:at] + candidate.to_bytes(width, "little") + image[at + width :]
            yield f"u{8 * width} at {at} = {candidate}", changed


def _rows(image: bytes, module: Module) -> Iterator[tuple[str, bytes]]:
    start, width = layout.HEADER_BYTES, layout.SECTION_ENTRY_BYTES
    rows = [image[start + i * width : start + (i + 1) * width] for i in range(len(module.sections))]
    rest = image[start + len(rows) * width :]
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            swapped = list(rows)
            swapped[i], swapped[j] = rows[j], rows[i]
            yield f"rows {i} and {j} swapped", image[:start] + b"".join(swapped) + rest
            doubled = list(rows)
            doubled[j] = rows[i]
            yield f"row {i} also as row {j}", image[:start] + b"".join(doubled) + rest
    bodies = [section.data for section in module.sections if section.data is not None]
    head_end = module.payload_offset
    for i in range(len(bodies)):
        without = [body for j, body in enumerate(bodies) if j != i]
        yield f"section {i} taken away", image[:head_end] + _sections(without)
        shorter = image[:8] + struct.pack("<I", head_end + len(_sections(without))) + image[12:head_end]
        yield f"section {i} taken away, size adapted", shorter + _sections(without)
        for j in range(i + 1, len(bodies)):
            swapped_bodies = list(bodies)
            swapped_bodies[i], swapped_bodies[j] = bodies[j], bodies[i]
            yield f"sections {i} and {j} swapped", image[:head_end] + _sections(swapped_bodies)
    for present in range(1 << len(module.sections)):
        kept = [section.data or b"" for i, section in enumerate(module.sections) if present >> i & 1]
        size = head_end + len(_sections(kept))
        head = image[:8] + struct.pack("<IH", size, present) + image[14:head_end]
        yield f"presence {present:#x}", head + _sections(kept)


def _sections(bodies: list[bytes]) -> bytes:
    return b"".join(body.ljust(layout.align_up(len(body)), b"\0") for body in bodies)
