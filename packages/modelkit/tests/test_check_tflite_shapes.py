"""An operator of a TFLite file must declare the shape that its kernel writes, or the kernel writes past its tensor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymlaas_modelkit.check import ModelRejected, Problem
from tinymlaas_modelkit.check._tflite import TfliteOp, TfliteTensor
from tinymlaas_modelkit.check._tflite_shapes import check_tflite_shapes

QUICK = settings(max_examples=200, deadline=None, derandomize=True, database=None)
Shape = tuple[int, ...]
SAME, VALID = 0, 1


def activation(*shape: int) -> TfliteTensor:
    return TfliteTensor("t", "int8", shape, (), (), None, 0, False)


def integers(*values: int) -> TfliteTensor:
    return TfliteTensor("k", "int32", (len(values),), (), (), memoryview(np.array(values, "<i4").tobytes()), 1, False)


def check(name: str, inputs: list[TfliteTensor], outputs: list[Shape], **options: float) -> None:
    tensors = [*inputs, *(activation(*shape) for shape in outputs)]
    slots = {int(slot.removeprefix("s")): value for slot, value in options.items()}
    places = tuple(range(len(inputs))), tuple(range(len(inputs), len(tensors)))
    check_tflite_shapes(TfliteOp(name, f"operator 0 ({name})", *places, slots), tensors)


A = activation
ROWS = [
    ("CONV_2D", [A(1, 9, 8, 3), A(5, 3, 3, 3), A(5)], (1, 5, 4, 5), {"s0": SAME, "s1": 2, "s2": 2}),
    ("CONV_2D", [A(1, 9, 8, 3), A(5, 3, 3, 3)], (1, 4, 3, 5), {"s0": VALID, "s1": 2, "s2": 2}),
    ("CONV_2D", [A(1, 9, 8, 3), A(5, 3, 3, 3)], (1, 5, 6, 5), {"s0": VALID, "s1": 1, "s2": 1, "s5": 2}),
    ("CONV_2D", [A(1, 4, 4, 4), A(6, 1, 1, 2)], (1, 4, 4, 6), {"s1": 1, "s2": 1}),
    ("DEPTHWISE_CONV_2D", [A(1, 9, 8, 3), A(1, 3, 3, 6), A(6)], (1, 9, 8, 6), {"s1": 1, "s2": 1, "s3": 2}),
    ("AVERAGE_POOL_2D", [A(1, 9, 8, 3)], (1, 4, 4, 3), {"s0": VALID, "s1": 2, "s2": 2, "s3": 2, "s4": 3}),
    ("MAX_POOL_2D", [A(1, 9, 8, 3)], (1, 5, 4, 3), {"s0": SAME, "s1": 2, "s2": 2, "s3": 2, "s4": 3}),
    ("FULLY_CONNECTED", [A(2, 3, 4), A(5, 12), A(5)], (2, 5), {}),
    ("FULLY_CONNECTED", [A(2, 3, 4), A(5, 4)], (2, 3, 5), {"s2": 1}),
    ("ADD", [A(1, 4, 4, 3), A(3)], (1, 4, 4, 3), {}),
    ("MUL", [A(4, 1), A(1, 5)], (4, 5), {}),
    ("RESHAPE", [A(2, 6)], (3, 4), {}),
    ("SOFTMAX", [A(1, 12)], (1, 12), {"s0": 1.0}),
    ("CONCATENATION", [A(1, 2, 3), A(1, 5, 3)], (1, 7, 3), {"s0": 1}),
    ("CONCATENATION", [A(1, 2), A(1, 5)], (1, 7), {"s0": -1}),
    ("TRANSPOSE", [A(2, 3, 4), integers(2, 0, 1)], (4, 2, 3), {}),
    ("MEAN", [A(1, 4, 5, 3), integers(1, 2)], (1, 3), {"s0": 0}),
    ("MEAN", [A(1, 4, 5, 3), integers(-2, 1)], (1, 1, 1, 3), {"s0": 1}),
    ("PAD", [A(2, 3), integers(0, 1, 2, 3)], (3, 8), {}),
    ("SLICE", [A(5, 6), integers(1, 2), integers(3, -1)], (3, 4), {}),
    ("STRIDED_SLICE", [A(5, 6), integers(1, 0), integers(0, 6), integers(1, 2)], (4, 3), {"s1": 1}),
    ("STRIDED_SLICE", [A(5, 6), integers(2, 0), integers(3, 6), integers(1, 1)], (6,), {"s4": 1}),
    ("RESIZE_BILINEAR", [A(1, 4, 4, 3), integers(8, 9)], (1, 8, 9, 3), {}),
]


@pytest.mark.parametrize(("name", "inputs", "output", "options"), ROWS, ids=[f"{i}-{r[0]}" for i, r in enumerate(ROWS)])
def test_the_shape_that_the_kernel_writes_passes_and_any_other_is_refused(
    name: str, inputs: list[TfliteTensor], output: Shape, options: dict[str, float]
) -> None:
    check(name, inputs, [output], **options)
    for wrong in ((*output[:-1], output[-1] + 1), (*output, 2), output[:-1] or (1, 1)):
        with pytest.raises(ModelRejected) as caught:
            check(name, inputs, [wrong], **options)
        assert caught.value.problem is Problem.SHAPE_MISMATCH
        assert name in caught.value.metadata["where"]


def test_a_split_makes_equal_parts() -> None:
    check("SPLIT", [integers(1), A(2, 6)], [(2, 3), (2, 3)])
    for wrong in ([(2, 3), (2, 4)], [(2, 1)] * 4):
        with pytest.raises(ModelRejected, match="SHAPE_MISMATCH"):
            check("SPLIT", [integers(1), A(2, 6)], wrong)


@pytest.mark.parametrize(
    ("name", "inputs", "output", "options"),
    [
        ("CONV_2D", [A(1, 9, 8, 3), A(5, 3, 3, 2)], (1, 9, 8, 5), {"s1": 1, "s2": 1}),
        ("CONV_2D", [A(1, 9, 8, 3), A(5, 3, 3, 3), A(4)], (1, 9, 8, 5), {"s1": 1, "s2": 1}),
        ("DEPTHWISE_CONV_2D", [A(1, 9, 8, 3), A(1, 3, 3, 5)], (1, 9, 8, 5), {"s1": 1, "s2": 1}),
        ("FULLY_CONNECTED", [A(1, 7), A(5, 4)], (1, 5), {}),
        ("ADD", [A(1, 4), A(1, 5)], (1, 5), {}),
        ("CONCATENATION", [A(1, 2), A(2, 5)], (1, 7), {"s0": 1}),
        ("CONCATENATION", [A(1, 2), A(1, 5)], (1, 7), {"s0": 9}),
        ("TRANSPOSE", [A(2, 3), integers(0, 0)], (2, 2), {}),
        ("MEAN", [A(2, 3), integers(7)], (2, 3), {}),
        ("PAD", [A(2, 3), integers(-1, 0, 0, 0)], (1, 3), {}),
        ("SLICE", [A(5), integers(3), integers(4)], (4,), {}),
        ("STRIDED_SLICE", [A(5), integers(0), integers(5), integers(0)], (5,), {}),
    ],
)
def test_inputs_that_do_not_go_together_are_refused(
    name: str, inputs: list[TfliteTensor], output: Shape, options: dict[str, float]
) -> None:
    with pytest.raises(ModelRejected, match="SHAPE_MISMATCH"):
        check(name, inputs, [output], **options)


@pytest.mark.parametrize("options", [{"s1": 0, "s2": 1}, {"s1": 1, "s2": -1}, {"s1": 1, "s2": 1, "s4": 0}])
def test_a_stride_or_dilation_below_one_is_a_bad_value(options: dict[str, float]) -> None:
    with pytest.raises(ModelRejected, match="BAD_VALUE"):
        check("CONV_2D", [A(1, 9, 8, 3), A(5, 3, 3, 3)], [(1, 9, 8, 5)], **options)


@QUICK
@given(st.data())
def test_a_strided_slice_has_the_shape_that_numpy_gives(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    begin, end = ([data.draw(st.integers(-8, 8)) for _ in shape] for _ in range(2))
    strides = [data.draw(st.sampled_from([-2, -1, 1, 2, 3])) for _ in shape]
    masks = data.draw(st.integers(0, 7)), data.draw(st.integers(0, 7))
    cuts = tuple(
        slice(None if masks[0] >> k & 1 else begin[k], None if masks[1] >> k & 1 else end[k], strides[k])
        for k in range(len(shape))
    )
    expected = np.zeros(shape)[cuts].shape
    inputs = [activation(*shape), integers(*begin), integers(*end), integers(*strides)]
    check("STRIDED_SLICE", inputs, [expected], s0=masks[0], s1=masks[1])
