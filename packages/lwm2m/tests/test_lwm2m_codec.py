"""Content formats, link format, arguments, definitions: what they read and write, and that nothing hostile gets further."""

from __future__ import annotations

import json
from pathlib import Path as FilePath

import cbor2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinymlaas_lwm2m import (
    CodecError,
    Format,
    Kind,
    Limits,
    MlRes,
    ObjectLink,
    ObjLink,
    Path,
    Value,
    Values,
    decode,
    encode,
    format_arguments,
    format_registration,
    ml,
    multiple,
    parse_arguments,
    parse_registration,
)
from tinymlaas_lwm2m.definition import from_xml, to_xml
from tinymlaas_lwm2m.objects import ML_DEF, ML_DESCRIPTION, ML_URN

KINDS: dict[int, Kind] = dict(enumerate(Kind))
STRUCTURED = [Format.TLV, Format.SENML_JSON, Format.SENML_CBOR]


def types(object_id: int, resource_id: int) -> Kind | None:
    return KINDS.get(resource_id % 16)


def value_of(kind: Kind) -> st.SearchStrategy[Value]:
    strategies: dict[Kind, st.SearchStrategy[Value]] = {
        Kind.STRING: st.text(max_size=40),
        Kind.CORELNK: st.text(max_size=40),
        Kind.INTEGER: st.integers(-(2**63), 2**63 - 1),
        Kind.TIME: st.integers(-(2**63), 2**63 - 1),
        Kind.UNSIGNED: st.integers(0, 2**64 - 1),
        Kind.FLOAT: st.floats(allow_nan=False, allow_infinity=False),
        Kind.BOOLEAN: st.booleans(),
        Kind.OPAQUE: st.binary(max_size=300),
        Kind.OBJLNK: st.builds(ObjLink, st.integers(0, 65535), st.integers(0, 65535)),
    }
    return strategies[kind]


@st.composite
def contents(draw: st.DrawFn) -> Values:
    """Values of one object: instances with single and multiple resources of all kinds."""
    values: Values = {}
    for instance in draw(st.sets(st.integers(0, 65534), min_size=1, max_size=3)):
        for resource in draw(st.sets(st.integers(0, 65534).filter(lambda r: r % 16 in KINDS), min_size=1, max_size=5)):
            kind = KINDS[resource % 16]
            if draw(st.booleans()):
                values[Path(7, instance, resource)] = draw(value_of(kind))
            else:
                for index in draw(st.sets(st.integers(0, 65534), min_size=1, max_size=3)):
                    values[Path(7, instance, resource, index)] = draw(value_of(kind))
    return values


@pytest.mark.parametrize("content_format", STRUCTURED)
@given(values=contents())
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read_back(content_format: Format, values: Values) -> None:
    assert decode(content_format, encode(content_format, values, Path(7), types=types), Path(7), types=types) == values


@pytest.mark.parametrize("content_format", [*STRUCTURED, Format.TEXT, Format.OPAQUE, Format.LINK, 60, 11543, None])
@given(payload=st.binary(max_size=200), path=st.sampled_from(["/7", "/7/0", "/7/0/1", "/7/0/1/0", "/7/0/7"]))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused_and_nothing_else(content_format: int | None, payload: bytes, path: str) -> None:
    base = Path.parse(path)
    try:
        values = decode(content_format, payload, base, types=types)
    except CodecError:
        return
    assert all(base.covers(at) and at.depth >= 3 for at in values)


@given(values=contents(), position=st.integers(0, 400), byte=st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_tlv_with_one_byte_changed_is_read_or_refused(values: Values, position: int, byte: int) -> None:
    payload = bytearray(encode(Format.TLV, values, Path(7), types=types))
    payload[position % len(payload)] = byte
    try:
        assert len(decode(Format.TLV, bytes(payload), Path(7), types=types)) <= 2048
    except CodecError:
        return


@given(values=contents(), keep=st.floats(0, 0.999))
@settings(max_examples=100, deadline=None)
def test_tlv_that_is_cut_off_is_never_read_as_the_whole(values: Values, keep: float) -> None:
    payload = encode(Format.TLV, values, Path(7), types=types)
    try:
        assert decode(Format.TLV, payload[: int(len(payload) * keep)], Path(7), types=types) != values
    except CodecError:
        return


@pytest.mark.parametrize(
    ("payload", "base", "values"),
    [
        # LwM2M TS 1.1 clause 7.4.3.1: single instance of object 3, its first resources and a multiple one.
        (
            "C8 00 14 4F 70 65 6E 20 4D 6F 62 69 6C 65 20 41 6C 6C 69 61 6E 63 65",
            "/3/0",
            {"/3/0/0": "Open Mobile Alliance"},
        ),
        ("C1 09 64 C1 0A 0F", "/3/0", {"/3/0/9": 100, "/3/0/10": 15}),
        ("83 0B 41 00 00", "/3/0", {"/3/0/11/0": 0}),
        ("08 00 03 C1 09 64", "/3", {"/3/0/9": 100}),
    ],
)
def test_examples_of_the_standard_are_read(payload: str, base: str, values: dict[str, Value]) -> None:
    got = decode(Format.TLV, bytes.fromhex(payload), Path.parse(base))
    assert got == {Path.parse(path): value for path, value in values.items()}


@pytest.mark.parametrize(
    ("payload", "detail"),
    [
        ("C1", "cut off"),
        ("C2 09 64", "needs 2 bytes"),
        ("C1 09 64 C1 09 65", "twice"),
        ("CF 00 01 64", "reserved length bits"),
        ("C3 09 01 02 03", "can't have 3 bytes"),
        ("41 00 64", "can't stand here"),
        ("C1 10 FF", "UTF-8"),
    ],
)
def test_malformed_tlv_is_refused_and_says_where(payload: str, detail: str) -> None:
    with pytest.raises(CodecError, match=detail):
        decode(Format.TLV, bytes.fromhex(payload), Path(3, 0))


@pytest.mark.parametrize(
    ("pack", "detail"),
    [
        ({}, "not an array"),
        ([1], "not a map"),
        ([{"n": "/3/0/9"}], "exactly one value"),
        ([{"n": "/3/0/9", "v": 1, "vs": "1"}], "exactly one value"),
        ([{"n": "/3/0/9", "v": 1.5}], "not an integer"),
        ([{"n": "/3/0/9", "vs": "1"}], "not expected"),
        ([{"n": "/4/0/9", "v": 1}], "no value under"),
        ([{"n": "/3/0/9", "v": 1}, {"n": "/3/0/9", "v": 1}], "twice"),
        ([{"n": "/3/0/9", "v": 1, "x_": 1}], "must be understood"),
        ([{"n": "/3/0/99999", "v": 1}], "outside"),
        ([{"n": "3/0/9", "v": 1}], "slash"),
    ],
)
def test_malformed_senml_is_refused_and_says_why(pack: object, detail: str) -> None:
    for content_format, payload in (
        (Format.SENML_JSON, json.dumps(pack).encode()),
        (Format.SENML_CBOR, cbor2.dumps(pack)),
    ):
        with pytest.raises(CodecError, match=detail):
            decode(content_format, payload, Path(3, 0))


def test_senml_base_names_hold_until_the_next_one() -> None:
    pack = [{"bn": "/3/0/", "n": "9", "v": 5}, {"n": "10", "v": 6}, {"bn": "/3/0/11/", "n": "0", "v": 7}]
    values = decode(Format.SENML_JSON, json.dumps(pack).encode(), Path(3))
    assert values == {Path(3, 0, 9): 5, Path(3, 0, 10): 6, Path(3, 0, 11, 0): 7}


def test_limits_hold_for_bytes_and_values() -> None:
    many = {Path(7, 0, 1, index): 1 for index in range(20)}
    for content_format in STRUCTURED:
        payload = encode(content_format, many, Path(7), types=types)
        with pytest.raises(CodecError, match="more than 10"):
            decode(content_format, payload, Path(7), types=types, limits=Limits(max_values=10))
        with pytest.raises(CodecError, match="more than 5"):
            decode(content_format, payload, Path(7), types=types, limits=Limits(max_bytes=5))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(CodecError):
        decode(Format.SENML_JSON, b"[" * 60_000, Path(3))
    with pytest.raises(CodecError):
        decode(Format.SENML_CBOR, b"\x81" * 60_000, Path(3))


@given(kind=st.sampled_from(list(Kind)), data=st.data())
def test_text_of_a_value_is_read_back(kind: Kind, data: st.DataObject) -> None:
    value = data.draw(value_of(kind))
    path = Path(7, 0, list(KINDS.values()).index(kind))
    assert decode(Format.TEXT, encode(Format.TEXT, {path: value}, path), path, types=types) == {path: value}


@given(
    payload=st.one_of(st.binary(max_size=200), st.text(alphabet='</0123456789>;,="vert ', max_size=80).map(str.encode))
)
@settings(max_examples=500, deadline=None)
@example(b'</>;rt="oma.lwm2m"' + b";a" * 5000)
@example(b"</1/0>" + b";" * 8000)
def test_any_link_payload_is_read_or_refused(payload: bytes) -> None:
    try:
        links = parse_registration(payload)
    except CodecError:
        return
    assert list(links) == sorted(
        links, key=lambda link: (link.object_id, -1 if link.instance_id is None else link.instance_id)
    )


def test_a_registration_payload_is_read_back() -> None:
    links = (ObjectLink(1, 0), ObjectLink(3, 0), ObjectLink(9, None, "1.1"), ObjectLink(9, 0), ObjectLink(42769, 0))
    assert parse_registration(format_registration(links)) == links


@pytest.mark.parametrize(
    "payload",
    [b"</3/0", b"</3/0>,", b"</3/0>,</3/0>", b"</x>", b"</3/0/1>", b"</70000>", b"</3>;ver=x", b"\xff", b"</3/0>" * 2],
)
def test_malformed_link_payloads_are_refused(payload: bytes) -> None:
    with pytest.raises(CodecError):
        parse_registration(payload)


def test_execute_arguments_are_read_back_and_malformed_ones_refused() -> None:
    assert parse_arguments(format_arguments({0: "7", 3: ""})) == {0: "7", 3: ""}
    for payload in (b"0='", b"a", b"0,0", b"0=7", b"10", b"0=''',", b"\xff", b"0" * 300):
        with pytest.raises(CodecError):
            parse_arguments(payload)


@given(payload=st.binary(max_size=60))
def test_any_arguments_are_read_or_refused(payload: bytes) -> None:
    try:
        assert all(0 <= digit <= 9 for digit in parse_arguments(payload))
    except CodecError:
        return


def test_paths_know_their_children_and_what_they_cover() -> None:
    assert str(Path(3, 0).child(1)) == "/3/0/1"
    assert Path(3).covers(Path(3, 0, 1))
    assert not Path(3, 0, 1).covers(Path(3))
    assert multiple({ml(MlRes.SLOT_SIZE, 1): 5, ml(MlRes.SLOT_SIZE, 0): 4}, ml(MlRes.SLOT_SIZE)) == {0: 4, 1: 5}
    for text in ("3", "/", "/3/", "/03", "/3/0/1/2/3", "/-1", "/65535"):
        with pytest.raises(CodecError):
            Path.parse(text)


def test_the_definition_file_of_the_ml_object_says_what_the_code_says() -> None:
    """DO-ML-001."""
    file = FilePath(__file__).parents[3] / "spec" / "objects" / "42769.xml"
    text = file.read_text(encoding="utf-8")
    assert text == to_xml(ML_DEF, description=ML_DESCRIPTION, urn=ML_URN)
    assert from_xml(text) == [ML_DEF]


@pytest.mark.parametrize(
    "text",
    [
        "<a",
        "<!DOCTYPE a><a/>",
        "<L><Object><ObjectID>x</ObjectID></Object></L>",
        '<L><Object><ObjectID>1</ObjectID><Item ID="1"><Operations>Q</Operations></Item></Object></L>',
    ],
)
def test_malformed_definition_files_are_refused(text: str) -> None:
    with pytest.raises(CodecError):
        from_xml(text)
