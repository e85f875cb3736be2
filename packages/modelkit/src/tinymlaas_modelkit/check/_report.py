"""What a check tells about a model that it accepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Precision(StrEnum):
    """The arithmetic of a model: `HYBRID` has quantized weights with float activations."""

    FLOAT = "float"
    QUANTIZED = "quantized"
    HYBRID = "hybrid"


@dataclass(frozen=True)
class TensorReport:
    """An input or output: static shape, numpy's name of the type, and scale and zero point if quantized (else None)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class ModelReport:
    """An accepted model.

    `version` is the opset of the default domain (ONNX) or the schema version (TFLite). `operators` counts operators by
    name, in alphabetical order. `parameter_bytes` are the constants that operators read, without scales and zero
    points.
    """

    format: str
    version: int
    ir_version: int
    inputs: tuple[TensorReport, ...]
    outputs: tuple[TensorReport, ...]
    operators: Mapping[str, int]
    nodes: int
    parameter_bytes: int
    precision: Precision

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelReport:
        """The report that `to_dict` described; KeyError, TypeError or ValueError if it is none."""
        tensors = {
            side: tuple(TensorReport(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in fields[side])
            for side in ("inputs", "outputs")
        }
        return cls(**{**fields, **tensors, "precision": Precision(fields["precision"])})
