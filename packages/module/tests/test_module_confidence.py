"""DO-OBS-003: the confidence of a run, and of which outputs there is one."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymlaas_module import TENTHS, DType, Tensor, TensorKind, confidence, tenth


def output(dtype: DType, count: int = 4, scale: float = 0.0, zero_point: int = 0) -> Tensor:
    return Tensor(TensorKind.OUTPUT, dtype, (1, count), scale, zero_point)


SOFTMAX = output(DType.INT8, 4, 1 / 256, -128)


@pytest.mark.parametrize(
    ("tensor", "data", "expected"),
    [
        (SOFTMAX, struct.pack("<4b", -128, -128, 127, -127), 255 / 256),
        (output(DType.UINT8, 2, 1 / 256), bytes([128, 64]), 0.5),
        (output(DType.FLOAT32, 3), struct.pack("<3f", 0.1, 0.7, 0.2), pytest.approx(0.7)),
        (output(DType.FLOAT32, 3), struct.pack("<3f", 4.0, -2.0, 0.2), None),  # logits
        (output(DType.FLOAT32, 2), struct.pack("<2f", float("nan"), 0.5), None),
        (output(DType.INT8, 4, 0.1, 3), bytes(4), None),  # values beyond 0 to 1 are possible
        (output(DType.INT8, 4), bytes(4), None),  # not quantized
        (output(DType.INT8, 1, 1 / 256, -128), bytes(1), None),  # one value is no choice
        (output(DType.INT32, 4, 1 / 256, -128), bytes(16), None),
        (SOFTMAX, bytes(3), None),
    ],
)
def test_only_scores_have_a_confidence(tensor: Tensor, data: bytes, expected: float | None) -> None:
    assert confidence([tensor], data) == expected


def test_a_module_without_outputs_has_none() -> None:
    assert confidence([], b"") is None


@given(st.binary(min_size=4, max_size=4))
def test_every_confidence_lies_in_a_tenth(data: bytes) -> None:
    value = confidence([SOFTMAX], data)
    assert value is not None
    assert 0 <= tenth(value) < TENTHS
    assert tenth(value) / TENTHS <= max(value, 0) < (tenth(value) + 1) / TENTHS + 1e-9
