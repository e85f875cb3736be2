"""Inputs for verification: from samples files, pseudo-random, and between forms of a model."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_gateway.core import samples

INT8 = tensor_pb2.TensorSpec(name="i", dtype=tensor_pb2.DATA_TYPE_INT8, shape=[1, 2, 3], scale=0.5, zero_point=-1)
FLOAT = tensor_pb2.TensorSpec(name="i", dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[1, 2, 3])


def npz(**arrays: Any) -> bytes:
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    return data.getvalue()


def test_the_array_with_the_inputs_own_type_is_taken() -> None:
    ints = np.arange(12, dtype=np.int8).reshape(2, 2, 3)
    data = npz(input_int8=ints, input_float=np.zeros((2, 2, 3), np.float32), label=np.zeros(2))
    assert [s.tensors[0] for s in samples.from_npz(data, [INT8], 8).samples] == [row.tobytes() for row in ints]
    assert samples.from_npz(data, [FLOAT], 1).samples[0].tensors[0] == bytes(24)


def test_floats_are_quantized_for_a_quantized_input_when_there_is_nothing_else() -> None:
    floats = np.asarray([[[0.0, 0.5, 100.0], [-100.0, 0.25, 0.75]]], np.float32)
    got = samples.from_npz(npz(input=floats), [INT8], 8).samples[0].tensors[0]
    assert np.frombuffer(got, np.int8).tolist() == [-1, 0, 127, -128, -1, 1]


@pytest.mark.parametrize(
    ("code", "dtype", "scale", "zero", "expected"),
    [
        (tensor_pb2.DATA_TYPE_INT16, np.int16, 2**-12, 0, [0, 2048, 32767, -32768, 1024, -3072]),
        (tensor_pb2.DATA_TYPE_UINT8, np.uint8, 0.5, 128, [128, 129, 255, 0, 128, 126]),
        (tensor_pb2.DATA_TYPE_INT32, np.int32, 2**-16, 0, [0, 32768, 6553600, -6553600, 16384, -49152]),
    ],
)
def test_floats_become_integers_of_whatever_type_the_input_has_by_its_own_scale(
    code: tensor_pb2.DataType.ValueType, dtype: type[np.integer[Any]], scale: float, zero: int, expected: list[int]
) -> None:
    spec = tensor_pb2.TensorSpec(name="i", dtype=code, shape=[1, 2, 3], scale=scale, zero_point=zero)
    floats = np.asarray([[[0.0, 0.5, 100.0], [-100.0, 0.25, -0.75]]], np.float32)
    data = npz(input_int8=np.zeros((1, 2, 3), np.int8), input_float=floats)
    got = samples.from_npz(data, [spec], 8).samples[0].tensors[0]
    assert np.frombuffer(got, dtype).tolist() == expected


def test_an_input_that_tells_no_scale_has_that_of_the_model() -> None:
    bare = tensor_pb2.TensorSpec(name="i", dtype=tensor_pb2.DATA_TYPE_INT16, shape=[1, 2, 3])
    known = tensor_pb2.TensorSpec(name="x", dtype=tensor_pb2.DATA_TYPE_INT16, shape=[1, 2, 3], scale=0.25, zero_point=0)
    (made,) = samples.with_scales([bare], [known])
    assert (made.name, made.scale) == ("i", 0.25)
    data = npz(input_float=np.full((1, 2, 3), 2.0, np.float32))
    assert np.frombuffer(samples.from_npz(data, [made], 8).samples[0].tensors[0], np.int16).tolist() == [8] * 6
    assert samples.with_scales([INT8], [known]) == [INT8], "its own scale stands"
    for other in (FLOAT, tensor_pb2.TensorSpec(dtype=known.dtype, shape=[1, 6], scale=0.25)):
        assert samples.with_scales([bare], [other]) == [bare]
    assert samples.with_scales([bare], [known, known]) == [bare]


def test_integers_of_another_quantization_are_made_anew_from_the_floats() -> None:
    data = npz(input_int8=np.full((1, 2, 3), 9, np.int8), input_float=np.full((1, 2, 3), 2.0, np.float32))
    got = samples.from_npz(data, [INT8], 8, requantize=True).samples[0].tensors[0]
    assert np.frombuffer(got, np.int8).tolist() == [3] * 6, "2.0 / 0.5 - 1"
    alone = npz(input_int8=np.full((1, 2, 3), 9, np.int8))
    assert samples.from_npz(alone, [INT8], 8, requantize=True).samples[0].tensors[0] == bytes([9] * 6)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a zip",
        npz(other=np.zeros(3)),
        npz(input=np.zeros((2, 5), np.int8)),
        npz(input=np.zeros((0, 2, 3), np.int8)),
        npz(input=np.zeros((2, 2, 3), np.int32)),
        npz(input=np.asarray([object()], dtype=object)),
    ],
    ids=["empty", "text", "no input", "wrong shape", "no sample", "wrong type", "pickle"],
)
def test_files_that_hold_no_usable_sample_are_refused(data: bytes) -> None:
    with pytest.raises(samples.SampleError):
        samples.from_npz(data, [INT8], 8)


def test_a_file_that_unpacks_to_too_much_is_refused_before_it_is_unpacked() -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("input.npy", bytes(samples.MAX_NPZ_BYTES + 1))
    with pytest.raises(samples.SampleError, match="unpacks"):
        samples.from_npz(data.getvalue(), [INT8], 8)


def test_pseudo_random_inputs_are_the_same_every_time_and_span_the_range() -> None:
    big = tensor_pb2.TensorSpec(name="i", dtype=tensor_pb2.DATA_TYPE_INT8, shape=[4096])
    one = samples.pseudo_random([big, FLOAT], 2, b"seed")
    assert one == samples.pseudo_random([big, FLOAT], 2, b"seed")
    assert one != samples.pseudo_random([big, FLOAT], 2, b"other")
    ints = np.frombuffer(one.samples[0].tensors[0], np.int8)
    floats = np.frombuffer(one.samples[0].tensors[1], "<f4")
    assert (ints.min(), ints.max()) == (-128, 127)
    assert np.all(np.abs(floats) <= 1)


@given(st.lists(st.integers(-128, 127), min_size=6, max_size=6))
def test_quantized_values_survive_the_way_to_floats_and_back(numbers: list[int]) -> None:
    values = samples.profiler_pb2.InputSet()
    values.samples.add().tensors.append(np.asarray(numbers, np.int8).tobytes())
    there = samples.convert(values, [INT8], [FLOAT])
    assert samples.convert(there, [FLOAT], [INT8]) == values


def test_forms_that_do_not_match_are_refused() -> None:
    values = samples.pseudo_random([INT8], 1, b"")
    other = tensor_pb2.TensorSpec(name="i", dtype=tensor_pb2.DATA_TYPE_INT8, shape=[7])
    plain = tensor_pb2.TensorSpec(name="i", dtype=tensor_pb2.DATA_TYPE_INT32, shape=[6])
    for wanted in ([other], [plain], []):
        with pytest.raises(samples.SampleError):
            samples.convert(values, [INT8], wanted)


@pytest.mark.parametrize("shape", [[0], [1 << 13, 1 << 13], [1] * 9])
def test_shapes_that_nobody_can_serve_are_refused(shape: list[int]) -> None:
    with pytest.raises(samples.SampleError):
        samples.elements(tensor_pb2.TensorSpec(name="x", dtype=tensor_pb2.DATA_TYPE_INT8, shape=shape))


def test_labels_are_read_where_there_are_any() -> None:
    assert samples.labels_of(npz(input=np.zeros((3, 2), np.int8), label=np.array([2, -1, 0], np.int32))) == [2, -1, 0]
    assert samples.labels_of(npz(input=np.zeros((3, 2), np.int8))) == []
    assert samples.labels_of(npz(input=np.zeros((3, 2), np.int8), label=np.array(["a", "b", "c"]))) == []
    with pytest.raises(samples.SampleError):
        samples.labels_of(b"not an npz")
