"""What the converters refuse, and how they say so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.helper import make_node

from tinymlaas_modelkit.errors import MalformedModel, ModelKitError, UnsupportedOperator
from tinymlaas_modelkit.onnx_reader import read_onnx
from tinymlaas_modelkit.summary import summarize
from tinymlaas_modelkit.tflite_reader import read_tflite
from tinymlaas_modelkit.tflite_writer import write_tflite

ZOO = Path(__file__).parents[3] / "zoo"
KWS = (ZOO / "kws" / "kws_int8.tflite").read_bytes()
# The smallest file of the kit itself, so that a random byte hits something that matters.
SMALL = write_tflite(read_onnx((ZOO / "kws" / "kws_int8_qdq.onnx").read_bytes()))


def test_every_offending_node_is_listed_not_only_the_first(make_onnx: Callable[..., bytes]) -> None:
    nodes = [
        make_node("Erf", ["x"], ["a"], name="first"),
        make_node("Relu", ["a"], ["b"]),
        make_node("Erf", ["b"], ["c"], name="second"),
        make_node("Conv", ["c", "w"], ["d"], name="computed", group=3),
        make_node("Det", ["d"], ["y"], name="third"),
    ]
    with pytest.raises(UnsupportedOperator) as caught:
        read_onnx(make_onnx(nodes, (1, 3, 8, 8), {"w": np.zeros((4, 3, 8, 8), np.float32)}))
    found = {(o.op, o.node, o.count) for o in caught.value.operators}
    assert found == {("Erf", "first", 2), ("Conv", "computed", 1), ("Det", "third", 1)}
    assert caught.value.code == "FAILED_PRECONDITION"
    assert caught.value.metadata["ops"] == "Conv,Det,Erf"
    assert all(o.dtype == "float32" and o.detail for o in caught.value.operators)


def test_hybrid_convolution_is_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedOperator, match="hybrid: int8 filter with float32 activations") as caught:
        read_tflite((ZOO / "kws" / "kws_hybrid.tflite").read_bytes())
    assert [(o.op, o.count) for o in caught.value.operators] == [("CONV_2D", 5)]


def test_open_batch_is_refused_unless_a_batch_is_given(make_onnx: Callable[..., bytes]) -> None:
    import onnx

    model = onnx.load_model_from_string(make_onnx([make_node("Relu", ["x"], ["y"])], (1, 4), {}))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    data = model.SerializeToString()
    with pytest.raises(MalformedModel) as caught:
        read_onnx(data)
    assert caught.value.problem == "SHAPE_NOT_STATIC"
    assert read_onnx(data, batch=1).tensor("x").shape == (1, 4)


def test_names_from_the_file_reach_messages_escaped_and_cut() -> None:
    error = MalformedModel("BAD_VALUE", "x" * 10_000, "a\nb\x1b[31m")
    assert "\n" not in str(error)
    assert "\x1b" not in str(error)
    assert len(str(error)) < 1000


def test_large_constant_is_not_computed(make_onnx: Callable[..., bytes]) -> None:
    nodes = [make_node("Expand", ["c", "s"], ["big"]), make_node("Add", ["x", "big"], ["y"])]
    constants = {"c": np.ones(1, np.float32), "s": np.asarray([1 << 16, 1 << 16], np.int64)}
    with pytest.raises(ModelKitError):
        read_onnx(make_onnx(nodes, (1, 1), constants))


@given(st.binary(max_size=300))
def test_random_bytes_end_in_an_error_of_the_kit(data: bytes) -> None:
    for read in (read_tflite, summarize):
        with pytest.raises(ModelKitError):
            read(b"\x1c\x00\x00\x00TFL3" + data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_tflite_is_read_or_refused_never_anything_else(data: st.DataObject) -> None:
    damaged = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        # Tables and vectors lie apart from the weights, mostly in the first and last kilobytes.
        near = data.draw(st.booleans())
        at = data.draw(st.integers(0, 4095 if near else len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged))) if data.draw(st.booleans()) else len(damaged)
    for read in (read_tflite, summarize):
        with contextlib.suppress(ModelKitError):
            read(bytes(damaged[:cut]))


@pytest.mark.parametrize("size", [0, 7, 8, 100, 1622, 20_000])
def test_truncated_tflite_is_malformed(size: int) -> None:
    with pytest.raises(MalformedModel):
        read_tflite(KWS[:size])
