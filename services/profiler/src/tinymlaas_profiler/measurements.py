"""Figures with their origin."""

import hashlib
import importlib.metadata
from collections.abc import Iterable, Mapping

from tinymlaas.type.v1 import measurement_pb2

TOOL = "tinymlaas-profiler"

_UNITS: dict[int, str] = {
    measurement_pb2.METRIC_FLASH_BYTES: "B",
    measurement_pb2.METRIC_ARENA_BYTES: "B",
    measurement_pb2.METRIC_STACK_BYTES: "B",
    measurement_pb2.METRIC_INSTRUCTIONS: "instructions",
    measurement_pb2.METRIC_CYCLES: "cycles",
    measurement_pb2.METRIC_LATENCY_SECONDS: "s",
    measurement_pb2.METRIC_ENERGY_JOULES: "J",
    measurement_pb2.METRIC_ACCURACY: "1",
    measurement_pb2.METRIC_OUTPUTS_EQUAL: "1",
    measurement_pb2.METRIC_MAX_LSB: "LSB",
    measurement_pb2.METRIC_MAX_ABS_ERROR: "1",
    measurement_pb2.METRIC_MACS: "MAC",
    measurement_pb2.METRIC_WEIGHT_BYTES: "B",
}


def tool_version() -> str:
    """Give the version of this profiler and of the simulator it runs."""
    versions = [importlib.metadata.version("tinymlaas-profiler")]
    versions.append("unicorn " + importlib.metadata.version("unicorn"))
    return " / ".join(versions)


def sha256(data: bytes) -> str:
    """Give the sha256 of bytes as hex."""
    return hashlib.sha256(data).hexdigest()


def measure(
    metric: "measurement_pb2.Metric.ValueType",
    value: float,
    method: "measurement_pb2.Method.ValueType",
    *,
    subjects: Iterable[str],
    conditions: Mapping[str, str],
) -> measurement_pb2.Measurement:
    """Make a Measurement of this profiler; `subjects` are sha256 (hex) of what was measured."""
    return measurement_pb2.Measurement(
        metric=metric,
        value=value,
        unit=_UNITS[metric],
        method=method,
        tool=TOOL,
        tool_version=tool_version(),
        subject_sha256s=list(subjects),
        conditions=dict(conditions),
    )
