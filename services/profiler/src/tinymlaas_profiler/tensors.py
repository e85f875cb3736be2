"""Tensors as bytes: sizes, checks, and conversion between specs as JSON and as contract messages."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_profiler.errors import ProfilerError

NUMPY_DTYPES: dict[int, str] = {
    tensor_pb2.DATA_TYPE_FLOAT32: "float32",
    tensor_pb2.DATA_TYPE_INT8: "int8",
    tensor_pb2.DATA_TYPE_UINT8: "uint8",
    tensor_pb2.DATA_TYPE_INT16: "int16",
    tensor_pb2.DATA_TYPE_INT32: "int32",
    tensor_pb2.DATA_TYPE_INT64: "int64",
    tensor_pb2.DATA_TYPE_BOOL: "bool",
}
_BY_NAME = {name: number for number, name in NUMPY_DTYPES.items()}

Sample = Sequence[bytes]
"""The tensors of one inference, in the order of the specs, C order, little-endian."""


def numpy_dtype(spec: tensor_pb2.TensorSpec) -> np.dtype[Any]:
    """Give the numpy dtype of a spec, or raise ProfilerError (PAYLOAD_INVALID)."""
    name = NUMPY_DTYPES.get(spec.dtype)
    if name is None:
        raise ProfilerError(
            "PAYLOAD_INVALID",
            f"tensor {spec.name!r} has no known dtype",
            metadata={"where": spec.name, "detail": str(spec.dtype)},
        )
    return np.dtype(name).newbyteorder("<")


def tensor_bytes(spec: tensor_pb2.TensorSpec) -> int:
    """Give the size in bytes of a tensor."""
    count = 1
    for size in spec.shape:
        count *= size
    return count * numpy_dtype(spec).itemsize


def spec_from_json(value: Mapping[str, Any]) -> tensor_pb2.TensorSpec:
    """Make a TensorSpec from a job's report."""
    return tensor_pb2.TensorSpec(
        name=str(value["name"]),
        dtype=_BY_NAME[str(value["dtype"])],  # type: ignore[arg-type]
        shape=[int(n) for n in value["shape"]],
        scale=float(value["scale"]),
        zero_point=int(value["zero_point"]),
    )


def check_samples(samples: Sequence[Sample], specs: Sequence[tensor_pb2.TensorSpec]) -> None:
    """Raise ProfilerError (INPUT_INVALID) unless each sample has one tensor of the right size for each spec."""
    for number, sample in enumerate(samples):
        if len(sample) != len(specs):
            raise ProfilerError(
                "INPUT_INVALID",
                f"sample {number} has {len(sample)} tensors instead of {len(specs)}",
                metadata={"sample": str(number), "need": str(len(specs)), "have": str(len(sample))},
            )
        for index, (tensor, spec) in enumerate(zip(sample, specs, strict=True)):
            if len(tensor) != tensor_bytes(spec):
                raise ProfilerError(
                    "INPUT_INVALID",
                    f"sample {number}: input {index} has {len(tensor)} bytes, not {tensor_bytes(spec)}",
                    metadata={
                        "sample": str(number),
                        "input": str(index),
                        "need": str(tensor_bytes(spec)),
                        "have": str(len(tensor)),
                    },
                )


def as_array(data: bytes, spec: tensor_pb2.TensorSpec) -> npt.NDArray[Any]:
    """Give the flat array of a tensor's elements, or raise ProfilerError (INPUT_INVALID) when its size is wrong."""
    if len(data) != tensor_bytes(spec):
        raise ProfilerError("INPUT_INVALID", f"tensor {spec.name!r} has {len(data)} bytes, not {tensor_bytes(spec)}")
    return np.frombuffer(data, dtype=numpy_dtype(spec))


def real_values(data: bytes, spec: tensor_pb2.TensorSpec) -> npt.NDArray[np.float64]:
    """Give a tensor's values as reals: dequantized when it has a scale."""
    values = as_array(data, spec).astype(np.float64)
    return values if spec.scale == 0 else spec.scale * (values - spec.zero_point)


def grouped(blobs: Sequence[bytes], size: int) -> list[list[bytes]]:
    """Cut a flat list of tensors into samples of `size` tensors."""
    return [list(blobs[i : i + size]) for i in range(0, len(blobs), size)]
