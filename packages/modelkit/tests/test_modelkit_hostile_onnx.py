"""Property: a node with any attributes, inputs and constants is read or refused, and nothing else happens."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tinymlaas_modelkit.errors import ModelKitError
from tinymlaas_modelkit.onnx_reader import SUPPORTED_OPERATORS, read_onnx
from tinymlaas_modelkit.onnx_writer import write_onnx
from tinymlaas_modelkit.summary import ModelFormat, summarize
from tinymlaas_modelkit.tflite_writer import write_tflite

NAMES = ("axis", "axes", "kernel_shape", "pads", "strides", "dilations", "group", "perm", "transA", "transB", "keepdims",
         "ceil_mode", "count_include_pad", "split", "mode", "alpha", "auto_pad", "starts", "ends")  # fmt: skip

integers = st.integers(-3, 9)
attribute_values: st.SearchStrategy[Any] = st.one_of(
    integers,
    st.lists(integers, min_size=1, max_size=8),
    st.floats(-2, 2, width=32),
    st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET", "constant", "reflect", "nearest", "linear", "?"]),
)


@st.composite
def constants(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    shape = draw(st.lists(st.integers(1, 4), max_size=4))
    dtype = draw(st.sampled_from([np.float32, np.int64, np.int32, np.int8, np.uint8]))
    values = np.arange(int(np.prod(shape)), dtype=np.int64) % draw(st.integers(1, 5))
    return values.reshape(shape).astype(dtype)


@st.composite
def models(draw: st.DrawFn) -> bytes:
    """One to three nodes in a row, each with whatever inputs, constants and attributes come."""
    nodes, initializers, last = [], [], "x"
    for index in range(draw(st.integers(1, 3))):
        inputs = [last]
        for number, array in enumerate(draw(st.lists(constants(), max_size=3))):
            name = f"c{index}_{number}"
            initializers.append(numpy_helper.from_array(array, name))
            inputs.append(name)
        attributes = draw(st.dictionaries(st.sampled_from(NAMES), attribute_values, max_size=4))
        last = f"t{index}"
        nodes.append(helper.make_node(draw(st.sampled_from(SUPPORTED_OPERATORS)), inputs, [last], **attributes))
    shape = draw(st.lists(st.integers(1, 5), max_size=4))
    graph = helper.make_graph(
        nodes,
        "hostile",
        [helper.make_tensor_value_info("x", draw(st.sampled_from([TensorProto.FLOAT, TensorProto.INT8])), shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", draw(st.sampled_from([9, 12, 13, 18])))])
    return bytes(model.SerializeToString())


@settings(max_examples=300, deadline=None)
@given(models())
def test_any_node_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ModelKitError):
        summarize(data, ModelFormat.ONNX)
    with contextlib.suppress(ModelKitError):
        graph = read_onnx(data)
        for write in (write_tflite, write_onnx):
            with contextlib.suppress(ModelKitError):
                write(graph)
