"""LwM2M CBOR, CBOR of one value, and the formats that carry several objects at once."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymlaas_lwm2m import (
    COMPOSITE,
    CodecError,
    DeviceRes,
    Format,
    Limits,
    MlRes,
    ObjLink,
    Path,
    SoftwareRes,
    Values,
    decode,
    decode_composite,
    decode_paths,
    encode,
    encode_composite,
    encode_paths,
    format_discovery,
    ml,
    software,
)

VALUES: Values = {
    Path(3, 0, DeviceRes.MANUFACTURER): "Maker",
    Path(3, 0, DeviceRes.ERROR_CODE, 0): 0,
    software(1, SoftwareRes.ACTIVATION_STATE): True,
    ml(MlRes.MODULE_DIGEST, 1): b"\x01" * 32,
    Path(3303, 0, 5700): 21.5,
}


@pytest.mark.parametrize("spoken", [Format.SENML_CBOR, Format.SENML_JSON, Format.LWM2M_CBOR])
def test_values_of_several_objects_survive_each_composite_format(spoken: Format) -> None:
    assert decode_composite(spoken, encode_composite(spoken, VALUES)) == VALUES


@pytest.mark.parametrize("spoken", [Format.SENML_ETCH_CBOR, Format.SENML_ETCH_JSON])
def test_a_write_composite_in_senml_etch_is_read_as_senml(spoken: Format) -> None:
    assert decode_composite(spoken, encode_composite(spoken, VALUES)) == VALUES


@pytest.mark.parametrize("spoken", COMPOSITE)
def test_the_paths_of_a_read_composite_survive(spoken: Format) -> None:
    paths = (Path(3), Path(9, 1), Path(3, 0, 0), ml(MlRes.SLOT_STATE, 1))
    assert decode_paths(spoken, encode_paths(spoken, paths)) == paths


def test_lwm2m_cbor_is_nested_maps_of_ids() -> None:
    assert cbor2.loads(encode(Format.LWM2M_CBOR, {Path(3, 0, 9): 55}, Path(3, 0))) == {3: {0: {9: 55}}}


def test_lwm2m_cbor_with_keys_of_several_levels_is_read() -> None:
    payload = cbor2.dumps({(3, 0): {0: "Maker", (11, 0): 4}})
    assert decode(Format.LWM2M_CBOR, payload, Path(3, 0)) == {Path(3, 0, 0): "Maker", Path(3, 0, 11, 0): 4}


def test_one_value_travels_as_plain_cbor() -> None:
    path = ml(MlRes.CLOCK)
    assert encode(Format.CBOR, {path: 80_000_000}, path) == cbor2.dumps(80_000_000)
    assert decode(Format.CBOR, cbor2.dumps(80_000_000), path) == {path: 80_000_000}
    link = Path(4242, 0, 1)
    assert decode(Format.CBOR, encode(Format.CBOR, {link: ObjLink(3, 0)}, link), link) == {link: "3:0"}


@pytest.mark.parametrize(
    ("document", "detail"),
    [
        ([1], "not a map"),
        ({3: {0: 5}}, "above the resources"),
        ({3: {0: {0: {0: {0: 1}}}}}, "deeper"),
        ({3: {0: {0: 5}}}, "not expected"),
        ({3: {0: {9: True}}}, "not expected"),
        ({3: {"0": {9: 1}}}, "no id"),
        ({70_000: {0: {9: 1}}}, "no id"),
        ({3: {0: {9: 2**70}}}, "not expected"),
        ({9: {0: {7: 1}}}, "no value under"),
        ({3: {0: {9: 1}}, (3, 0): {9: 2}}, "twice"),
    ],
)
def test_lwm2m_cbor_that_breaks_the_rules_is_refused(document: object, detail: str) -> None:
    """DO-SEC-002."""
    with pytest.raises(CodecError, match=detail):
        decode(Format.LWM2M_CBOR, cbor2.dumps(document), Path(3))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_decode_or_are_refused(payload: bytes) -> None:
    """DO-SEC-002."""
    for spoken in (Format.LWM2M_CBOR, Format.SENML_CBOR, Format.SENML_JSON):
        for attempt in (
            lambda f: decode_composite(f, payload, limits=Limits(64, 8)),
            lambda f: decode_paths(f, payload, limits=Limits(64, 8)),
        ):
            try:
                attempt(spoken)
            except CodecError:
                continue


def test_paths_that_are_asked_twice_or_bring_values_are_refused() -> None:
    with pytest.raises(CodecError, match="twice"):
        decode_paths(Format.SENML_JSON, b'[{"n":"/3"},{"n":"/3"}]')
    with pytest.raises(CodecError, match="has a value"):
        decode_paths(Format.SENML_JSON, b'[{"n":"/3/0/0","vs":"x"}]')
    with pytest.raises(CodecError, match="more than"):
        decode_paths(Format.SENML_JSON, b'[{"n":"/3"},{"n":"/4"}]', limits=Limits(max_values=1))


def test_discover_tells_versions_and_counts_of_resource_instances() -> None:
    paths = [Path(5), Path(5, 0), Path(5, 0, 2), Path(5, 0, 8, 0), Path(5, 0, 8, 1)]
    assert format_discovery(paths, {5: "1.1"}) == b"</5>;ver=1.1,</5/0>,</5/0/2>,</5/0/8>;dim=2"
