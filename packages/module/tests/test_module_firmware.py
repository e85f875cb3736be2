"""Firmware packages: each rule of spec/inference-module.md section 14 that can be proved without a device."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from tinymlaas_module import (
    Application,
    Feature,
    Isa,
    KeyRing,
    ModuleContents,
    ModuleError,
    PayloadKind,
    SectionType,
    application_of,
    base_firmware,
    corpus,
    link_firmware,
    linked_module,
    pack,
    parse,
    raw_public_key,
    sign,
    strip,
    verify,
)

MODULE = sign(pack(corpus.native_contents()), corpus.SIGNER)
APPLICATION = Application("board-1", Isa.ARMV7E_M, Feature.THUMB2, bytes(range(1, 200)), 4)
PACKAGE = link_firmware(APPLICATION, MODULE, corpus.SIGNER)


def with_payload(payload: bytes) -> bytes:
    """The package with another payload, as sound as any otherwise."""
    package = parse(PACKAGE)
    contents = ModuleContents(
        name="board-1",
        version="1",
        kind=PayloadKind.FIRMWARE,
        payload=payload,
        tensors=package.tensors,
        arena_bytes=package.header.arena_bytes,
        isa=Isa.ARMV7E_M,
    )
    return sign(pack(contents), corpus.SIGNER)


def with_head(magic: bytes, entry: int, place: int, size: int) -> bytes:
    return with_payload(struct.pack("<4sIII", magic, entry, place, size) + parse(PACKAGE).payload[16:])


def test_a_package_holds_the_module_byte_for_byte_and_says_what_it_needs() -> None:
    """IM-LINK-001, IM-LINK-004."""
    package = parse(PACKAGE)
    header, inside = package.header, linked_module(package)
    assert inside == parse(MODULE)
    assert package.payload.endswith(MODULE)
    assert (header.name, header.kind, header.isa, header.features) == (
        "board-1",
        PayloadKind.FIRMWARE,
        Isa.ARMV7E_M,
        Feature.THUMB2,
    )
    needs = (
        "version",
        "arena_bytes",
        "arena_alignment",
        "stack_bytes",
        "security_counter",
        "input_count",
        "output_count",
    )
    assert {name: getattr(header, name) for name in needs} == {name: getattr(inside.header, name) for name in needs}
    assert {tensor.arena_offset for tensor in package.tensors} == {None}
    assert link_firmware(APPLICATION, MODULE, corpus.SIGNER) == PACKAGE
    ring = KeyRing.of([raw_public_key(corpus.SIGNER)])
    verify(package, ring)
    verify(inside, ring)


def test_a_stripped_module_is_linked_as_it_is() -> None:
    """IM-LINK-004."""
    image = strip(MODULE, (SectionType.MANIFEST,))
    assert linked_module(parse(link_firmware(APPLICATION, image, corpus.SIGNER))) == parse(image)


PLACE, SIZE = struct.unpack_from("<II", parse(PACKAGE).payload, 8)


@pytest.mark.parametrize(
    ("rule", "image", "reason"),
    [
        ("IM-LINK-002", with_head(b"TFW1", 20, PLACE + 8, SIZE - 8), "SIZE_MISMATCH"),
        ("IM-LINK-002", with_head(b"TFW1", 20, PLACE, SIZE - 16), "SIZE_MISMATCH"),
        ("IM-LINK-002", with_head(b"TFW1", 20, 1 << 31, SIZE), "SIZE_MISMATCH"),
        ("IM-LINK-003", with_head(b"TFW2", 20, PLACE, SIZE), "ENTRY_INVALID"),
        ("IM-LINK-003", with_head(b"TFW1", 21, PLACE, SIZE), "ENTRY_INVALID"),
        ("IM-LINK-003", with_head(b"TFW1", 8, PLACE, SIZE), "ENTRY_INVALID"),
        ("IM-LINK-003", with_head(b"TFW1", PLACE, PLACE, SIZE), "ENTRY_INVALID"),
        ("IM-LINK-004", with_head(b"TFW1", 20, PLACE + 16, SIZE - 16), "BAD_MAGIC"),
        ("IM-LINK-003", with_payload(b"TFW1"), "KIND_UNKNOWN"),
        ("IM-LINK-001", MODULE, "KIND_UNKNOWN"),
    ],
)
def test_a_malformed_package_is_refused(rule: str, image: bytes, reason: str) -> None:
    with pytest.raises(ModuleError) as caught:
        linked_module(parse(image))
    assert caught.value.reason == reason, rule


def test_only_native_modules_are_linked() -> None:
    """IM-LINK-004: neither an interpreter's model nor a package in a package."""
    for image in (sign(pack(corpus.tflite_contents()), corpus.SIGNER), PACKAGE):
        with pytest.raises(ModuleError) as caught:
            link_firmware(APPLICATION, image, corpus.SIGNER)
        assert caught.value.reason == "KIND_UNKNOWN"
    nested = replace(APPLICATION, code=APPLICATION.code)
    payload = parse(link_firmware(nested, MODULE, corpus.SIGNER)).payload
    place = struct.unpack_from("<I", payload, 8)[0]
    tflite = sign(pack(corpus.tflite_contents()), corpus.SIGNER)
    head = payload[:12] + struct.pack("<I", len(tflite)) + payload[16:place]
    with pytest.raises(ModuleError) as caught:
        linked_module(parse(with_payload(head + tflite)))
    assert caught.value.reason == "KIND_UNKNOWN"


@pytest.mark.parametrize("image", [base_firmware(APPLICATION, corpus.SIGNER), PACKAGE], ids=["base", "package"])
def test_the_application_of_a_package_links_to_the_same_package_again(image: bytes) -> None:
    """IM-LINK-001, IM-LINK-006: from a base, and from a package with another module in it."""
    verify(parse(image), KeyRing.of([raw_public_key(corpus.SIGNER)]))
    assert link_firmware(application_of(parse(image)), MODULE, corpus.SIGNER) == PACKAGE


def test_a_base_package_holds_no_module_and_is_a_function_of_its_application_and_key() -> None:
    """IM-LINK-006: nothing that looks for a module in it finds one."""
    base = base_firmware(APPLICATION, corpus.SIGNER)
    assert base == base_firmware(APPLICATION, corpus.SIGNER)
    assert (parse(base).header.name, parse(base).header.kind) == ("board-1", PayloadKind.FIRMWARE)
    with pytest.raises(ModuleError):
        linked_module(parse(base))
    with pytest.raises(ModuleError) as caught:
        application_of(parse(MODULE))
    assert caught.value.reason == "KIND_UNKNOWN"
