"""Property: whatever strides, pads, dilations and groups a window has, every format computes the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx.helper import make_node

from tinymlaas_modelkit.errors import UnsupportedOperator
from tinymlaas_modelkit.graph import Graph
from tinymlaas_modelkit.onnx_reader import read_onnx
from tinymlaas_modelkit.onnx_writer import write_onnx
from tinymlaas_modelkit.tflite_reader import read_tflite
from tinymlaas_modelkit.tflite_writer import write_tflite

Array = npt.NDArray[Any]
Runner = Callable[[bytes, Array], Array]


@dataclass(frozen=True)
class Window:
    """A convolution or pool in two dimensions."""

    op: str
    size: tuple[int, int]
    channels: int
    filters: int
    group: int
    attributes: dict[str, Any]

    @property
    def fits(self) -> bool:
        """Whether at least one window lies in the padded input, and padding is smaller than the window (ONNX)."""
        kernel, dilations = self.attributes["kernel_shape"], self.attributes.get("dilations", [1, 1])
        pads = self.attributes["pads"]
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        return all(self.size[i] + pads[i] + pads[i + 2] >= reach[i] for i in (0, 1)) and all(
            pads[i] < kernel[i % 2] for i in range(4)
        )


@st.composite
def windows(draw: st.DrawFn) -> Window:
    """Any window that ONNX allows, up to 9 x 9 pixels."""
    op = draw(st.sampled_from(["Conv", "Conv", "MaxPool", "AveragePool"]))
    pair = lambda top: [draw(st.integers(1, top)), draw(st.integers(1, top))]  # noqa: E731
    attributes: dict[str, Any] = {
        "kernel_shape": pair(4),
        "strides": pair(3),
        "pads": [draw(st.integers(0, 2)) for _ in range(4)],
    }
    group = draw(st.sampled_from([1, 2, 4]))
    channels = group * draw(st.integers(1, 2))
    filters = group * draw(st.integers(1, 3))
    if op == "Conv":
        attributes |= {"dilations": pair(2), "group": group}
    return Window(op, (draw(st.integers(3, 9)), draw(st.integers(3, 9))), channels, filters, group, attributes)


def written(graph: Graph) -> bytes | None:
    """The TFLite file, None when TFLite has no word for an operator of the graph."""
    try:
        return write_tflite(graph)
    except UnsupportedOperator:
        return None


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(window=windows(), seed=st.integers(0, 1000))
def test_window_computes_the_same_in_every_format(
    make_onnx: Callable[..., bytes], run_onnx: Runner, run_tflm: Runner, window: Window, seed: int
) -> None:
    assume(window.fits)
    random = np.random.default_rng(seed)
    constants: dict[str, Array] = {}
    if window.op == "Conv":
        shape = (window.filters, window.channels // window.group, *window.attributes["kernel_shape"])
        constants = {
            "w": random.normal(size=shape).astype(np.float32),
            "b": random.normal(size=window.filters).astype(np.float32),
        }
    source = make_onnx(
        [make_node(window.op, ["x", *constants], ["y"], **window.attributes)],
        (1, window.channels, *window.size),
        constants,
    )
    inputs = random.normal(size=(2, window.channels, *window.size)).astype(np.float32)
    expected = run_onnx(source, inputs)
    graph = read_onnx(source)
    np.testing.assert_allclose(run_onnx(write_onnx(graph), inputs), expected, rtol=1e-5, atol=2e-5)
    tflite = written(graph)
    if tflite is None:
        # TFLite has no average that leaves out padding other than SAME.
        assert window.op == "AveragePool"
        return
    np.testing.assert_allclose(run_tflm(tflite, inputs), expected, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(run_onnx(write_onnx(read_tflite(tflite)), inputs), expected, rtol=1e-5, atol=2e-5)


def test_padding_that_tflite_cannot_average_over_is_refused_not_approximated(make_onnx: Callable[..., bytes]) -> None:
    node = make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], strides=[1, 1], pads=[2, 0, 0, 0])
    with pytest.raises(UnsupportedOperator, match="pads"):
        write_tflite(read_onnx(make_onnx([node], (1, 1, 6, 6), {})))
