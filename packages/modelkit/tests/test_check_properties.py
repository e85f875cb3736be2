"""Whatever the bytes are, a check ends in a clear verdict and in nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinymlaas_modelkit.check import (
    Format,
    Limits,
    ModelRejected,
    check_model_isolated,
    check_structure,
)
from tinymlaas_modelkit.check._dataflow import Step, check_dataflow, find_cycle
from tinymlaas_modelkit.check.testing import good_onnx, good_qdq_onnx, good_tflite

MANY = settings(max_examples=300, deadline=None, derandomize=True, database=None)
FEW = settings(
    max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
LIMITS = Limits()
FORMATS = st.sampled_from(["onnx", "tflite"])
FILES: dict[str, Callable[[], bytes]] = {"onnx": good_onnx, "qdq": good_qdq_onnx, "tflite": good_tflite}


def verdict(data: bytes, format: Format, check: Callable[[bytes, Format, Limits], object] = check_structure) -> bool:
    """Whether the file is accepted; any exception but ModelRejected fails the test."""
    rejected: ModelRejected | None = None
    try:
        check(data, format, LIMITS)
    except ModelRejected as error:
        rejected = error
    if rejected is None:
        return True
    assert rejected.metadata["problem"] == rejected.problem
    assert all(text.isascii() and text.isprintable() for text in rejected.metadata.values())
    return False


@st.composite
def mutated(draw: st.DrawFn, original: bytes) -> bytes:
    """The file with a few bytes overwritten, cut out, doubled or inserted."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        size = draw(st.integers(1, 8))
        action = draw(st.sampled_from(["overwrite", "cut", "double", "insert", "extreme"]))
        if action == "overwrite":
            data[at : at + size] = draw(st.binary(min_size=size, max_size=size))
        elif action == "cut":
            del data[at : at + size]
        elif action == "double":
            data[at:at] = data[at : at + size]
        elif action == "insert":
            data[at:at] = draw(st.binary(min_size=size, max_size=size))
        else:
            data[at : at + 4] = draw(
                st.sampled_from([b"\xff\xff\xff\x7f", b"\xff" * 4, b"\x00" * 4, b"\x00\x00\x00\x80"])
            )
    return bytes(data)


@MANY
@given(data=st.binary(max_size=400), format=FORMATS)
def test_random_bytes_get_a_verdict(data: bytes, format: Format) -> None:
    verdict(data, format)


@MANY
@given(data=st.binary(max_size=300))
def test_random_bytes_after_a_true_beginning_get_a_verdict(data: bytes) -> None:
    verdict(good_onnx()[:10] + data, "onnx")
    verdict(good_tflite()[:24] + data, "tflite")


@pytest.mark.parametrize("name", FILES)
def test_every_prefix_of_a_good_file_gets_a_verdict_and_is_refused(name: str) -> None:
    whole = FILES[name]()
    format: Format = "tflite" if name == "tflite" else "onnx"
    assert verdict(whole, format)
    # The ONNX opset import comes last, so no prefix is a model; the same holds for the tables of a flatbuffer.
    assert not any(verdict(whole[:size], format) for size in range(len(whole) - 4))


@pytest.mark.parametrize("name", FILES)
def test_every_single_byte_change_of_a_good_file_gets_a_verdict(name: str) -> None:
    whole = FILES[name]()
    for at in range(len(whole)):
        for byte in (0x00, 0x7F, 0x80, 0xFF, whole[at] ^ 1):
            verdict(whole[:at] + bytes([byte]) + whole[at + 1 :], "tflite" if name == "tflite" else "onnx")


@pytest.mark.parametrize("name", FILES)
def test_random_changes_of_a_good_file_get_a_verdict(name: str) -> None:
    @MANY
    @given(data=mutated(FILES[name]()))
    def check(data: bytes) -> None:
        verdict(data, "tflite" if name == "tflite" else "onnx")

    check()


@FEW
@given(data=mutated(good_qdq_onnx()))
def test_the_isolated_check_gives_a_verdict_on_random_changes(data: bytes) -> None:
    verdict(data, "onnx", check_model_isolated)


@MANY
@given(st.dictionaries(st.integers(0, 12), st.sets(st.integers(0, 12), max_size=3), max_size=13))
def test_a_cycle_is_found_exactly_where_repeated_removal_of_sources_leaves_something(
    edges: dict[int, set[int]],
) -> None:
    graph = {node: {source for source in sources if source in edges} for node, sources in edges.items()}
    left = dict(graph)
    while free := [node for node, sources in left.items() if not sources & left.keys()]:
        for node in free:
            del left[node]
    assert (find_cycle(graph) is not None) == bool(left)


def test_a_chain_of_a_hundred_thousand_steps_is_ordered_without_recursion() -> None:
    steps = [Step(str(index), [index], [index + 1]) for index in range(100_000)]
    check_dataflow(steps, [0], [100_000])
