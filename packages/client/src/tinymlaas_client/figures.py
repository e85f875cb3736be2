"""Figures for people: each with the way it was obtained."""

from __future__ import annotations

from collections.abc import Iterable

from tinymlaas.type.v1 import measurement_pb2, tensor_pb2

METHOD_LABELS = {
    measurement_pb2.METHOD_ESTIMATED: "est",
    measurement_pb2.METHOD_LINKED: "linked",
    measurement_pb2.METHOD_SIMULATED: "sim",
    measurement_pb2.METHOD_HARDWARE: "hw",
}
METHOD_NAMES = {
    measurement_pb2.Method.Name(method).removeprefix("METHOD_").lower(): label
    for method, label in METHOD_LABELS.items()
}


def find(
    measurements: Iterable[measurement_pb2.Measurement], metric: measurement_pb2.Metric.ValueType
) -> measurement_pb2.Measurement | None:
    """The measurement of a metric with the strongest method, None when there is none."""
    matching = [measurement for measurement in measurements if measurement.metric == metric]
    return max(matching, key=lambda measurement: measurement.method, default=None)


def show(measurement: measurement_pb2.Measurement | None) -> str:
    """Value, unit and method: "35,210 B linked"; a dash when there is none."""
    if measurement is None:
        return "–"
    value = f"{measurement.value:,.0f}" if measurement.value == int(measurement.value) else f"{measurement.value:,.4g}"
    unit = "" if measurement.unit in {"1", "instructions", "cycles"} else f" {measurement.unit}"
    return f"{value}{unit} [dim]{METHOD_LABELS.get(measurement.method, '?')}[/]"


def show_metric(measurements: Iterable[measurement_pb2.Measurement], metric: measurement_pb2.Metric.ValueType) -> str:
    """`show` of `find`."""
    return show(find(measurements, metric))


def numerics(value: tensor_pb2.Numerics) -> str:
    """A numerics class in words: "bit-exact to tflite"."""
    reference = tensor_pb2.Reference.Name(value.reference).removeprefix("REFERENCE_").lower()
    if getattr(value, "class") == tensor_pb2.Numerics.CLASS_BIT_EXACT:
        return f"bit-exact to {reference}"
    if getattr(value, "class") == tensor_pb2.Numerics.CLASS_WITHIN_LSB:
        return f"within {value.lsb} LSB of {reference}"
    if getattr(value, "class") == tensor_pb2.Numerics.CLASS_WITHIN_TOLERANCE:
        return f"within rtol {value.rtol:g}, atol {value.atol:g} of {reference}"
    return "–"


def size(count: int) -> str:
    """Bytes with thousands separators."""
    return f"{count:,} B"


def shape(spec: tensor_pb2.TensorSpec) -> str:
    """A tensor in short: "int8 [1, 49, 10, 1]"."""
    dtype = tensor_pb2.DataType.Name(spec.dtype).removeprefix("DATA_TYPE_").lower()
    return f"{dtype} {list(spec.shape)}"
