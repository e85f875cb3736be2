"""Packing and parsing modules: each rule of spec/inference-module.md sections 2 to 7 is cited by its id."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymlaas_module import (
    CriticalFlag,
    DType,
    Executor,
    Feature,
    Golden,
    GoldenVector,
    Isa,
    KeyRing,
    ModuleContents,
    ModuleError,
    Numerics,
    NumericsClass,
    PayloadKind,
    Reason,
    SectionType,
    Tensor,
    TensorKind,
    digest,
    identity,
    key_id,
    layout,
    pack,
    parse,
    raw_public_key,
    sign,
    strip,
    verify,
)
from tinymlaas_module import corpus as im_corpus

NATIVE = im_corpus.native_contents()
IMAGE = sign(pack(NATIVE), im_corpus.SIGNER)
DROPPABLE = [SectionType.GOLDEN, SectionType.MANIFEST, SectionType.CERTIFICATE]


def refused(image: bytes) -> str:
    with pytest.raises(ModuleError) as caught:
        parse(image)
    return caught.value.reason


def put(image: bytes, offset: int, fmt: str, *values: Any) -> bytes:
    data = bytearray(image)
    struct.pack_into("<" + fmt, data, offset, *values)
    return bytes(data)


def test_what_was_packed_is_parsed() -> None:
    module = parse(pack(NATIVE), require_all=True)
    assert module.header.name == NATIVE.name
    assert module.header.version == NATIVE.version
    assert module.header.isa is Isa.ARMV7E_M
    assert module.header.features == Feature.THUMB2 | Feature.DSP
    assert module.header.entry_offset == NATIVE.entry_offset
    assert module.payload == NATIVE.payload
    assert module.tensors == NATIVE.tensors
    assert module.golden == NATIVE.golden
    assert module.manifest == NATIVE.manifest
    assert module.certificate == NATIVE.certificate
    assert module.signatures == ()


def test_the_same_contents_give_the_same_bytes() -> None:
    """IM-FILE-004."""
    assert pack(NATIVE) == pack(im_corpus.native_contents())
    assert sign(pack(NATIVE), im_corpus.SIGNER) == IMAGE


def test_the_layout_is_the_one_of_the_specification() -> None:
    """Sections 3 to 6, byte by byte, read without the package's own structures."""
    assert IMAGE[:8] == bytes.fromhex("8954494d0d0a1a0a")
    assert struct.unpack_from("<IHH", IMAGE, 8) == (len(IMAGE), 0b11111, 80)
    assert struct.unpack_from("<HHHHHH", IMAGE, 16) == (1, 5, 0, 0, 1, 3)
    assert struct.unpack_from("<IHHHH", IMAGE, 28) == (3, 1, 2, 1, 0)
    assert struct.unpack_from("<IIIIII", IMAGE, 40) == (4, 64, 16, 128, 3, 0)
    assert IMAGE[64:96] == b"corpus-native".ljust(32, b"\0")
    assert IMAGE[96:112] == b"1.2.3".ljust(16, b"\0")
    sizes = []
    for row in range(5):
        kind, flags, size, reserved = struct.unpack_from("<IIII", IMAGE, 128 + 48 * row)
        assert (kind, flags, reserved) == (row + 1, 1 if row < 2 else 2, 0)
        sizes.append(size)
    assert sizes[:2] == [39, 3 * 48]
    assert struct.unpack_from("<HHI", IMAGE, 368) == (1, 0, 64)
    assert IMAGE[376:384] == hashlib.sha512(raw_public_key(im_corpus.SIGNER)).digest()[:8]
    offset = 448
    for row, size in enumerate(sizes):
        assert IMAGE[128 + 48 * row + 16 :][:32] == hashlib.sha512(IMAGE[offset : offset + size]).digest()[:32]
        offset += -(-size // 16) * 16
    assert offset == len(IMAGE)
    first = 448 + 48
    assert struct.unpack_from("<BBBBII", IMAGE, first) == (1, 1, 2, 0, 7, 0)
    assert struct.unpack_from("<fi6I", IMAGE, first + 12) == (0.5, -3, 1, 7, 0, 0, 0, 0)


def test_the_overhead_stays_below_a_kibibyte() -> None:
    """IM-FILE-005."""
    assert parse(IMAGE).overhead_bytes <= 1024
    one_each = replace(NATIVE, tensors=(NATIVE.tensors[0], NATIVE.tensors[2]), golden=None, payload=bytes(64))
    with_golden = replace(
        one_each, golden=Golden(im_corpus.native_contents().golden.numerics, (GoldenVector((bytes(7),), (bytes(4),)),))
    )
    assert parse(sign(pack(with_golden), im_corpus.SIGNER)).overhead_bytes == 544


def test_a_file_that_is_too_short_or_too_long_is_refused() -> None:
    """IM-FILE-001, IM-FILE-002."""
    assert refused(b"") == "TRUNCATED"
    assert refused(IMAGE[:127]) == "TRUNCATED"
    assert refused(IMAGE[:-1]) == "TRUNCATED"
    assert refused(IMAGE + b"\0") == "TRAILING_BYTES"


CHANGES: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("IM-HEAD-001", lambda d: b"\x88" + d[1:], "BAD_MAGIC"),
    ("IM-HEAD-002", lambda d: put(d, 16, "H", 2), "VERSION_UNSUPPORTED"),
    ("IM-HEAD-003", lambda d: put(d, 20, "H", 2), "FLAGS_UNKNOWN"),
    ("IM-HEAD-004 kind 0", lambda d: put(d, 24, "H", 0), "KIND_UNKNOWN"),
    ("IM-HEAD-004 kind 8", lambda d: put(d, 24, "H", 8), "KIND_UNKNOWN"),
    ("IM-HEAD-006 firmware has no ABI", lambda d: put(d, 24, "H", 7), "ABI_UNSUPPORTED"),
    ("IM-HEAD-004 isa", lambda d: put(d, 26, "H", 10), "ISA_INVALID"),
    ("IM-HEAD-004 native any", lambda d: put(d, 26, "H", 0), "ISA_INVALID"),
    ("IM-HEAD-004 tflite with isa", lambda d: put(d, 24, "H", 2), "ISA_INVALID"),
    ("IM-HEAD-005", lambda d: put(d, 28, "I", 64), "FEATURES_INVALID"),
    ("IM-HEAD-006", lambda d: put(d, 32, "H", 2), "ABI_UNSUPPORTED"),
    ("IM-HEAD-007 a", lambda d: put(d, 38, "H", 1), "RESERVED_NOT_ZERO"),
    ("IM-HEAD-007 b", lambda d: put(d, 60, "I", 1), "RESERVED_NOT_ZERO"),
    ("IM-HEAD-007 c", lambda d: put(d, 127, "B", 1), "RESERVED_NOT_ZERO"),
    ("IM-HEAD-008 no arena", lambda d: put(d, 44, "I", 0), "ARENA_INVALID"),
    ("IM-HEAD-008 huge arena", lambda d: put(d, 44, "I", 1 << 31), "ARENA_INVALID"),
    ("IM-HEAD-008 alignment 8", lambda d: put(d, 48, "I", 8), "ARENA_INVALID"),
    ("IM-HEAD-008 alignment 24", lambda d: put(d, 48, "I", 24), "ARENA_INVALID"),
    ("IM-HEAD-008 alignment 8192", lambda d: put(d, 48, "I", 8192), "ARENA_INVALID"),
    ("IM-HEAD-008 no stack", lambda d: put(d, 52, "I", 0), "STACK_INVALID"),
    ("IM-HEAD-009 empty", lambda d: put(d, 64, "32s", b""), "NAME_INVALID"),
    ("IM-HEAD-009 blank", lambda d: put(d, 64, "32s", b"a b"), "NAME_INVALID"),
    ("IM-HEAD-009 after end", lambda d: put(d, 64, "32s", b"a\0b"), "NAME_INVALID"),
    ("IM-HEAD-009 no end", lambda d: put(d, 64, "32s", b"a" * 32), "NAME_INVALID"),
    ("IM-HEAD-009 version", lambda d: put(d, 96, "16s", b"\xff"), "NAME_INVALID"),
    ("IM-HEAD-010 odd", lambda d: put(d, 40, "I", 5), "ENTRY_INVALID"),
    ("IM-HEAD-010 end", lambda d: put(d, 40, "I", 40), "ENTRY_INVALID"),
    ("IM-HEAD-011 none", lambda d: put(d, 34, "H", 0), "TENSORS_INVALID"),
    ("IM-HEAD-011 33", lambda d: put(d, 36, "H", 31), "TENSORS_INVALID"),
    ("IM-SECT-001 order", lambda d: put(d, 128 + 96, "I", 5), "SECTION_TABLE_INVALID"),
    ("IM-SECT-001 first", lambda d: put(d, 18, "H", 1), "SECTION_TABLE_INVALID"),
    ("IM-SECT-001 nine", lambda d: put(d, 18, "H", 9), "SECTION_TABLE_INVALID"),
    ("IM-SECT-002 golden critical", lambda d: put(d, 128 + 100, "I", 1), "SECTION_TABLE_INVALID"),
    ("IM-SECT-002 payload droppable", lambda d: put(d, 132, "I", 2), "SECTION_TABLE_INVALID"),
    ("IM-SECT-002 unknown flag", lambda d: put(d, 132, "I", 5), "SECTION_TABLE_INVALID"),
    ("IM-SECT-003", lambda d: put(d, 128 + 192, "II", 77, 1), "SECTION_UNKNOWN"),
    ("IM-SECT-004 empty", lambda d: put(d, 128 + 152, "I", 0), "SECTION_TABLE_INVALID"),
    ("IM-SECT-004 reserved", lambda d: put(d, 128 + 156, "I", 1), "RESERVED_NOT_ZERO"),
    ("IM-SECT-005", lambda d: put(d, 12, "H", 0x3F), "SECTION_TABLE_INVALID"),
    ("IM-SECT-006 payload", lambda d: put(d, 12, "H", 0x1E), "SECTION_MISSING"),
    ("IM-SECT-006 tensors", lambda d: put(d, 12, "H", 0x1D), "SECTION_MISSING"),
    ("IM-SECT-007 absent", lambda d: put(d, 12, "H", 0x0F), "SIZE_MISMATCH"),
    ("IM-SECT-007 size", lambda d: put(d, 136, "I", 60), "SIZE_MISMATCH"),
    ("IM-FILE-003", lambda d: put(d, 448 + 39, "B", 1), "PADDING_NOT_ZERO"),
    ("IM-SIGN-001 odd", lambda d: put(d, 14, "H", 81), "SIGNATURE_BLOCK_INVALID"),
    ("IM-SIGN-001 large", lambda d: put(d, 14, "H", 8208), "SIGNATURE_BLOCK_INVALID"),
    ("IM-SIGN-002 algorithm", lambda d: put(d, 368, "H", 0), "SIGNATURE_BLOCK_INVALID"),
    ("IM-SIGN-002 flags", lambda d: put(d, 370, "H", 1), "SIGNATURE_BLOCK_INVALID"),
    ("IM-SIGN-002 size", lambda d: put(d, 372, "I", 48), "SIGNATURE_BLOCK_INVALID"),
    ("IM-SIGN-002 beyond", lambda d: put(d, 372, "I", 65), "SIGNATURE_BLOCK_INVALID"),
    ("IM-TENS-001 order", lambda d: put(d, 496, "B", 2), "TENSORS_INVALID"),
    ("IM-TENS-001 count", lambda d: put(d, 34, "H", 1), "TENSORS_INVALID"),
    ("IM-TENS-002 dtype", lambda d: put(d, 497, "B", 11), "TENSORS_INVALID"),
    ("IM-TENS-002 rank", lambda d: put(d, 498, "B", 7), "TENSORS_INVALID"),
    ("IM-TENS-002 reserved", lambda d: put(d, 499, "B", 1), "TENSORS_INVALID"),
    ("IM-TENS-002 zero dimension", lambda d: put(d, 496 + 20, "I", 0), "TENSORS_INVALID"),
    ("IM-TENS-002 stray dimension", lambda d: put(d, 496 + 28, "I", 1), "TENSORS_INVALID"),
    ("IM-TENS-003 bytes", lambda d: put(d, 500, "I", 8), "TENSORS_INVALID"),
    ("IM-TENS-003 overflow", lambda d: put(d, 516, "II", 0x10000, 0x10000), "TENSORS_INVALID"),
    ("IM-TENS-004 negative scale", lambda d: put(d, 508, "f", -1.0), "TENSORS_INVALID"),
    ("IM-TENS-004 NaN scale", lambda d: put(d, 508, "f", float("nan")), "TENSORS_INVALID"),
    ("IM-TENS-004 infinite scale", lambda d: put(d, 508, "f", float("inf")), "TENSORS_INVALID"),
    ("IM-TENS-004 minus zero", lambda d: put(d, 508, "fi", -0.0, 0), "TENSORS_INVALID"),
    ("IM-TENS-004 zero point of no scale", lambda d: put(d, 508, "f", 0.0), "TENSORS_INVALID"),
    ("IM-TENS-004 zero point", lambda d: put(d, 512, "i", 128), "TENSORS_INVALID"),
    ("IM-TENS-005 misaligned", lambda d: put(d, 504, "I", 2), "TENSORS_INVALID"),
    ("IM-TENS-005 outside", lambda d: put(d, 504, "I", 60), "TENSORS_INVALID"),
    ("IM-TENS-005 overlap", lambda d: put(d, 504, "I", 12), "TENSORS_INVALID"),
    ("IM-GOLD-001 count", lambda d: put(d, 640, "H", 0), "GOLDEN_INVALID"),
    ("IM-GOLD-001 class", lambda d: put(d, 642, "B", 4), "GOLDEN_INVALID"),
    ("IM-GOLD-001 executor", lambda d: put(d, 643, "B", 3), "GOLDEN_INVALID"),
    ("IM-GOLD-001 reserved", lambda d: put(d, 671, "B", 1), "GOLDEN_INVALID"),
    ("IM-GOLD-002 lsb", lambda d: put(d, 644, "I", 256), "GOLDEN_INVALID"),
    ("IM-GOLD-002 exact with lsb", lambda d: put(d, 642, "B", 1), "GOLDEN_INVALID"),
    ("IM-GOLD-003 tolerance of integers", lambda d: put(d, 642, "BBIf", 3, 1, 0, 0.5), "GOLDEN_INVALID"),
    ("IM-GOLD-004 size", lambda d: put(d, 640, "H", 3), "GOLDEN_INVALID"),
    ("IM-GOLD-004 padding", lambda d: put(d, 672 + 7, "B", 1), "GOLDEN_INVALID"),
]


@pytest.mark.parametrize(("rule", "change", "reason"), CHANGES, ids=[rule for rule, _, _ in CHANGES])
def test_each_rule_has_bytes_that_break_it(rule: str, change: Callable[[bytes], bytes], reason: str) -> None:
    assert IMAGE[640:642] == struct.pack("<H", 2), "the golden section begins where these cases think"
    assert refused(change(IMAGE)) == reason


def test_payloads_whose_runtime_places_tensors_have_no_arena_offsets() -> None:
    """IM-TENS-006."""
    made = im_corpus.tflite_contents()
    placed = tuple(replace(tensor, arena_offset=64 * index) for index, tensor in enumerate(made.tensors))
    with pytest.raises(ModuleError) as caught:
        pack(replace(made, tensors=placed))
    assert caught.value.reason == "TENSORS_INVALID"


def test_optional_flags_and_later_droppable_sections_are_carried_over() -> None:
    """IM-HEAD-003, IM-SECT-003."""
    assert parse(put(IMAGE, 22, "H", 0xFFFF)).header.optional_flags == 0xFFFF
    later = parse(dict(im_corpus.samples())["later-section"])
    assert [section.name for section in later.sections][-1] == "SECTION_9"
    verify(later, im_corpus.TRUSTED)


@pytest.mark.parametrize("dropped", [DROPPABLE, DROPPABLE[:1], DROPPABLE[1:], []])
def test_sections_can_be_left_out_and_the_signature_still_holds(dropped: list[SectionType]) -> None:
    """IM-SECT-008, IM-FILE-006."""
    image = strip(IMAGE, dropped)
    module = parse(image)
    verify(module, im_corpus.TRUSTED)
    assert image[16:448] == IMAGE[16:448]
    assert identity(module) == identity(parse(IMAGE))
    assert {s.name for s in module.sections if s.data is None} == {kind.name for kind in dropped}
    assert (digest(image) == digest(IMAGE)) == (not dropped)
    if dropped:
        with pytest.raises(ModuleError) as caught:
            parse(image, require_all=True)
        assert caught.value.reason == "SECTION_MISSING"


def test_payload_and_tensors_stay() -> None:
    """IM-SECT-006."""
    for kind in (SectionType.PAYLOAD, SectionType.TENSORS):
        with pytest.raises(ModuleError) as caught:
            strip(IMAGE, [kind])
        assert caught.value.reason == "SECTION_MISSING"


def test_content_addresses_are_sha256() -> None:
    """IM-FILE-006."""
    assert digest(b"abc") == "sha256:" + hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": ""}, "NAME_INVALID"),
        ({"name": "n" * 32}, "NAME_INVALID"),
        ({"name": "größe"}, "NAME_INVALID"),
        ({"version": "v" * 16}, "NAME_INVALID"),
        ({"payload": b""}, "SECTION_TABLE_INVALID"),
        ({"tensors": (), "golden": None}, "TENSORS_INVALID"),
        ({"arena_bytes": 0}, "ARENA_INVALID"),
        ({"arena_bytes": 1 << 32}, "ARENA_INVALID"),
        ({"arena_bytes": 35}, "TENSORS_INVALID"),
        ({"stack_bytes": 0}, "STACK_INVALID"),
        ({"entry_offset": 3}, "ENTRY_INVALID"),
        ({"security_counter": -1}, "RESERVED_NOT_ZERO"),
        ({"isa": Isa.ANY}, "ISA_INVALID"),
        ({"tensors": (NATIVE.tensors[2], *NATIVE.tensors[:2]), "golden": None}, "TENSORS_INVALID"),
        ({"tensors": (replace(NATIVE.tensors[0], shape=(1,) * 7), *NATIVE.tensors[1:]), "golden": None}, "TENSORS_INVALID"),
        ({"tensors": (replace(NATIVE.tensors[0], arena_offset=None), *NATIVE.tensors[1:])}, "TENSORS_INVALID"),
        ({"golden": Golden(Numerics(NumericsClass.BIT_EXACT, Executor.TFLITE), ())}, "GOLDEN_INVALID"),
        ({"golden": replace(NATIVE.golden, vectors=(GoldenVector((bytes(6), bytes(6)), (bytes(4),)),))}, "GOLDEN_INVALID"),
        ({"golden": replace(NATIVE.golden, vectors=(GoldenVector((bytes(7),), (bytes(4),)),))}, "GOLDEN_INVALID"),
    ],
)  # fmt: skip
def test_pack_refuses_what_no_loader_would_take(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModuleError) as caught:
        pack(replace(NATIVE, **change))
    assert caught.value.reason == reason


def test_errors_say_code_reason_numbers_and_what_to_do() -> None:
    with pytest.raises(ModuleError) as caught:
        parse(IMAGE[:-1])
    error = caught.value
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "TRUNCATED")
    assert error.metadata == {"size": str(len(IMAGE) - 1), "expected": str(len(IMAGE))}
    assert error.help


def test_every_reason_has_help_and_is_reached_by_the_corpus() -> None:
    reached = {word for _, image in im_corpus.cases() for word in im_corpus.verdicts(image)}
    assert reached == {reason.name for reason in Reason}
    assert all(ModuleError(reason, "").help for reason in Reason if reason is not Reason.OK)


def test_isa_and_feature_names_are_those_of_targets() -> None:
    assert Isa.from_text("armv8-m.main") is Isa.ARMV8_M_MAIN
    assert [Isa.from_text(isa.text) for isa in Isa] == list(Isa)
    assert Feature.from_texts(["fpu-sp", "dsp"]) == Feature.FPU_SP | Feature.DSP
    assert Feature.from_texts(["fpu-sp", "dsp"]).texts == ("dsp", "fpu-sp")
    with pytest.raises(ValueError, match="unknown ISA"):
        Isa.from_text("z80")
    with pytest.raises(ValueError, match="unknown CPU feature"):
        Feature.from_texts(["warp"])


# --- signatures


def test_unsigned_stranger_and_old_modules_are_not_trusted() -> None:
    """IM-SIGN-003, IM-SIGN-004, IM-SIGN-006."""
    samples = dict(im_corpus.samples())
    for name, reason in (("unsigned", "SIGNATURE_MISSING"), ("stranger", "KEY_UNKNOWN"), ("older", "DOWNGRADE")):
        with pytest.raises(ModuleError) as caught:
            verify(parse(samples[name]), im_corpus.TRUSTED, im_corpus.MINIMUM_COUNTER)
        assert caught.value.reason == reason


def test_keys_can_be_rotated() -> None:
    """IM-SIGN-004: two signatures, each ring knows one of the keys."""
    both = parse(dict(im_corpus.samples())["two-keys"])
    for key in (im_corpus.SIGNER, im_corpus.STRANGER):
        assert verify(both, [raw_public_key(key)]) == key_id(raw_public_key(key))
    with pytest.raises(ModuleError):
        verify(both, KeyRing.of([]))


def test_signing_again_with_the_same_key_replaces_the_signature() -> None:
    assert sign(IMAGE, im_corpus.SIGNER) == IMAGE


def test_a_second_algorithm_does_not_disturb() -> None:
    """IM-SIGN-002: records of algorithms unknown here are kept and ignored."""
    module = parse(dict(im_corpus.samples())["second-algorithm"])
    assert [int(record.algorithm) for record in module.signatures] == [7, 1]
    verify(module, im_corpus.TRUSTED)


def test_five_signatures_are_too_many() -> None:
    """IM-SIGN-001."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    image = IMAGE
    for seed in range(10, 13):
        image = sign(image, Ed25519PrivateKey.from_private_bytes(bytes([seed] * 32)))
    with pytest.raises(ModuleError) as caught:
        sign(image, im_corpus.STRANGER)
    assert caught.value.reason == "SIGNATURE_BLOCK_INVALID"


def test_no_changed_byte_of_a_signed_module_is_trusted() -> None:
    """IM-SIGN-005, IM-SECT-009; in the 16 free bytes a change makes the image unreadable."""
    trusted = []
    for at in range(len(IMAGE)):
        changed = bytearray(IMAGE)
        changed[at] ^= 0x40
        if im_corpus.verdict(bytes(changed), im_corpus.TRUSTED) == "OK":
            trusted.append(at)
    assert trusted == []


def test_a_changed_section_is_found_by_its_digest() -> None:
    """IM-SECT-009."""
    changed = put(IMAGE, 450, "B", 0xEE)
    with pytest.raises(ModuleError) as caught:
        verify(parse(changed), im_corpus.TRUSTED)
    assert (caught.value.reason, caught.value.code) == ("DIGEST_MISMATCH", "DATA_LOSS")
    assert caught.value.metadata == {"section": "PAYLOAD"}


# --- property tests

_dtypes = st.sampled_from([DType.INT8, DType.UINT8, DType.INT16, DType.INT32, DType.FLOAT32, DType.INT64, DType.BOOL])


@st.composite
def _contents(draw: st.DrawFn) -> ModuleContents:
    native = draw(st.booleans())
    tensors: list[Tensor] = []
    offset = 0
    for kind in (TensorKind.INPUT, TensorKind.OUTPUT):
        for _ in range(draw(st.integers(1, 3))):
            dtype = draw(_dtypes)
            shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
            quantized = dtype in (DType.INT8, DType.UINT8, DType.INT16) and draw(st.booleans())
            tensor = Tensor(
                kind, dtype, shape,
                draw(st.sampled_from([0.5, 0.00390625, 3.0])) if quantized else 0.0,
                draw(st.integers(0, 127)) if quantized else 0,
                offset if native else None,
            )  # fmt: skip
            tensors.append(tensor)
            offset = layout.align_up(offset + tensor.size)
    vectors = tuple(
        GoldenVector(
            tuple(draw(st.binary(min_size=t.size, max_size=t.size)) for t in tensors if t.kind is TensorKind.INPUT),
            tuple(draw(st.binary(min_size=t.size, max_size=t.size)) for t in tensors if t.kind is TensorKind.OUTPUT),
        )
        for _ in range(draw(st.integers(0, 3)))
    )
    return ModuleContents(
        name=draw(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=31)),
        version=draw(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=15)),
        kind=PayloadKind.NATIVE if native else PayloadKind.TFLITE,
        payload=draw(st.binary(min_size=1, max_size=80)),
        tensors=tuple(tensors),
        arena_bytes=offset,
        isa=Isa.RV32IMC if native else Isa.ANY,
        stack_bytes=draw(st.integers(1, 1 << 20)),
        security_counter=draw(st.integers(0, 2**32 - 1)),
        golden=Golden(Numerics(NumericsClass.BIT_EXACT, Executor.ONNX), vectors) if vectors else None,
        manifest=draw(st.binary(max_size=40)),
        certificate=draw(st.binary(max_size=40)),
        stateful=draw(st.booleans()),
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(made=_contents())
def test_any_contents_survive_packing_signing_and_stripping(made: ModuleContents) -> None:
    image = sign(pack(made), im_corpus.SIGNER)
    module = parse(image, require_all=True)
    verify(module, im_corpus.TRUSTED)
    assert (module.payload, module.tensors, module.golden) == (made.payload, made.tensors, made.golden)
    assert (module.manifest or b"", module.certificate or b"") == (made.manifest, made.certificate)
    assert (CriticalFlag.STATEFUL in module.header.critical_flags) == made.stateful
    assert len(image) % 16 == 0
    bare = strip(image, DROPPABLE)
    verify(parse(bare), im_corpus.TRUSTED)
    assert strip(bare, DROPPABLE) == bare


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(data=st.binary(max_size=600), at=st.integers(0, 800))
def test_parse_raises_nothing_but_module_errors(data: bytes, at: int) -> None:
    """IM-PARS-002."""
    for image in (data, IMAGE[:at] + data, IMAGE[:at] + data + IMAGE[at + len(data) :]):
        assert im_corpus.verdict(image) in {reason.name for reason in Reason}
