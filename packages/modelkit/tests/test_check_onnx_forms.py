"""Forms of ONNX files that are rare and legal, and are taken as ONNX's definition has them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from tinymlaas_modelkit.check import Limits, ModelRejected, check_model
from tinymlaas_modelkit.check._onnx_tensors import check_tensor
from tinymlaas_modelkit.check.testing import constant, onnx_model, value

PACKED = [0x8F, 0x73, 0x01]
UNPACKED = [[-1, -8, 3], [7, 1, 0]]


def int4(**data: object) -> TensorProto:
    """Six 4-bit integers, stored as the arguments say."""
    return TensorProto(dims=[2, 3], data_type=TensorProto.INT4, name="w", **data)


def test_4_bit_integers_are_read_from_raw_data_and_from_typed_data_alike() -> None:
    for tensor in (int4(raw_data=bytes(PACKED)), int4(int32_data=PACKED)):
        values = check_tensor(tensor, "w", Limits())
        assert values.astype(np.int8).tolist() == UNPACKED


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"int32_data": PACKED[:2]}, "DATA_SIZE_MISMATCH"),
        ({"int32_data": [*PACKED[:2], 256]}, "BAD_VALUE"),
        ({"int32_data": PACKED, "raw_data": bytes(PACKED)}, "MALFORMED"),
        ({"int64_data": PACKED}, "MALFORMED"),
    ],
)
def test_4_bit_integers_that_are_stored_otherwise_are_refused(data: dict[str, object], problem: str) -> None:
    with pytest.raises(ModelRejected) as refused:
        check_tensor(int4(**data), "w", Limits())
    assert refused.value.problem == problem


def test_a_spectrum_has_half_its_bins_where_the_operator_does_not_say_otherwise() -> None:
    """ONNX: `onesided` is 1 by default; the inference of the onnx package takes it for 0."""
    model = onnx_model(
        [helper.make_node("STFT", ["x", "step", "", "length"], ["y"])],
        [constant("step", 8, np.int64), constant("length", 16, np.int64)],
        [value("x", [1, 128, 1])],
        [value("y", [1, 15, 9, 2])],
    )
    assert check_model(model.SerializeToString(), "onnx").outputs[0].shape == (1, 15, 9, 2)
