"""Inputs for golden vectors and verification: from a samples file, or deterministic pseudo-random in the input's range.

Shapes and dtypes are those of the payload's input specs; bytes are in C order, little-endian.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tinymlaas.plugin.v1 import profiler_pb2
from tinymlaas.type.v1 import tensor_pb2

Array = npt.NDArray[np.generic]

DTYPES: dict[int, np.dtype[np.generic]] = {
    tensor_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_INT8: np.dtype("i1"),
    tensor_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
    tensor_pb2.DATA_TYPE_INT16: np.dtype("<i2"),
    tensor_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    tensor_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    tensor_pb2.DATA_TYPE_BOOL: np.dtype("?"),
}
MAX_ELEMENTS = 1 << 24
MAX_NPZ_BYTES = 64 << 20


class SampleError(Exception):
    """Samples or tensor specs that cannot be used; the text says why."""


def dtype_of(spec: tensor_pb2.TensorSpec) -> np.dtype[np.generic]:
    """Return numpy's dtype of a spec; raises SampleError for an unknown one."""
    try:
        return DTYPES[spec.dtype]
    except KeyError:
        raise SampleError(f"tensor {spec.name[:64]!r} has an unknown element type {int(spec.dtype)}") from None


def elements(spec: tensor_pb2.TensorSpec) -> int:
    """Count the elements of a tensor; raises SampleError beyond 2**24 or for an empty one."""
    count = math.prod(spec.shape)
    if not 0 < count <= MAX_ELEMENTS or len(spec.shape) > 8:
        raise SampleError(f"tensor {spec.name[:64]!r} has a shape that cannot be served: {list(spec.shape)[:8]}")
    return count


def size_bytes(spec: tensor_pb2.TensorSpec) -> int:
    """Bytes of a tensor."""
    return elements(spec) * dtype_of(spec).itemsize


def pseudo_random(specs: Sequence[tensor_pb2.TensorSpec], count: int, seed: bytes) -> profiler_pb2.InputSet:
    """Make ``count`` samples from ``seed``: whole range for integers, -1..1 for floats. Same arguments, same bytes."""
    result = profiler_pb2.InputSet()
    for index in range(count):
        values = result.samples.add()
        for position, spec in enumerate(specs):
            label = hashlib.sha256(seed + index.to_bytes(4, "big") + position.to_bytes(4, "big")).digest()
            values.tensors.append(_stream(spec, label))
    return result


def _stream(spec: tensor_pb2.TensorSpec, label: bytes) -> bytes:
    dtype, number = dtype_of(spec), elements(spec)
    raw = hashlib.shake_256(label).digest(number * 4)
    words = np.frombuffer(raw, dtype="<u4")
    if dtype.kind == "f":
        return (words.astype(np.float64) / 2**31 - 1.0).astype(dtype).tobytes()
    if dtype.kind == "b":
        return (words & 1).astype(dtype).tobytes()
    if dtype.itemsize >= 4:  # whole-range int32 inputs are indices in practice: small values stay valid
        return (words & 0x7F).astype(dtype).tobytes()
    return words.astype(f"<u{dtype.itemsize}").view(dtype).tobytes()


def from_npz(
    data: bytes, specs: Sequence[tensor_pb2.TensorSpec], count: int, *, requantize: bool = False
) -> profiler_pb2.InputSet:
    """Read the first ``count`` samples of a samples file for a model with one input.

    The array is ``input``, or ``input_int8``/``input_float``, whichever has the input's dtype; sample first, the other
    dimensions those of the input without its batch of 1. A float array is quantized when the input is quantized and
    nothing else is there, or with `requantize`: integers in the file belong to another quantization of the model then.
    Pickles are never loaded. Raises SampleError.
    """
    if len(specs) != 1:
        raise SampleError("a samples file serves models with one input only")
    spec = specs[0]
    dtype, number = dtype_of(spec), elements(spec)
    arrays = _load(data)
    exact = [array for array in arrays if array.dtype == dtype]
    floats = [array for array in arrays if array.dtype.kind == "f"]
    quantizable = bool(floats) and spec.scale > 0 and dtype.kind in "iu"
    if quantizable and (requantize or not exact):
        chosen = quantize(floats[0], spec)
    elif exact:
        chosen = exact[0]
    else:
        raise SampleError(f"the samples file has no array that fits the input's element type {dtype.name}")
    if chosen.ndim < 1 or len(chosen) == 0 or chosen[0].size != number:
        raise SampleError(f"a sample has {0 if len(chosen) == 0 else chosen[0].size} elements, the input {number}")
    result = profiler_pb2.InputSet()
    for sample in chosen[:count]:
        result.samples.add().tensors.append(np.ascontiguousarray(sample, dtype=dtype).tobytes())
    return result


def with_scales(
    specs: Sequence[tensor_pb2.TensorSpec], model: Sequence[tensor_pb2.TensorSpec]
) -> list[tensor_pb2.TensorSpec]:
    """Return the specs of a payload's inputs, integers that tell no scale with that of the model's input, paired by position.

    Samples in reals become integers of any type by it; a payload that computes on reals need not tell it.
    """
    found = []
    for index, spec in enumerate(specs):
        made = tensor_pb2.TensorSpec()
        made.CopyFrom(spec)
        known = model[index] if len(model) == len(specs) else spec
        if spec.scale == 0 and known.scale > 0 and (known.dtype, list(known.shape)) == (spec.dtype, list(spec.shape)):
            made.scale, made.zero_point = known.scale, known.zero_point
        found.append(made)
    return found


def labels_of(data: bytes) -> list[int]:
    """Read the classes of a samples file, array ``label`` with one integer a sample; -1: none. Empty without such an array.

    Raises SampleError for a file that is no readable npz.
    """
    try:
        _check_unpacked(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as store:
            labels = store["label"] if "label" in store.files else np.zeros(0, dtype=np.int64)
    except SampleError:
        raise
    except Exception as error:  # numpy raises many kinds for hostile bytes
        raise SampleError(f"the samples file is no readable npz: {type(error).__name__}") from None
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.size > MAX_ELEMENTS:
        return []
    return [int(label) for label in labels]


def quantize(values: Array, spec: tensor_pb2.TensorSpec) -> Array:
    """Quantize real values to the spec's integers: rounded half to even, saturated; NaN becomes the zero point."""
    dtype = dtype_of(spec)
    bits = 8 * dtype.itemsize
    least, most = (0, 2**bits - 1) if dtype.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    steps = np.nan_to_num(np.rint(values.astype(np.float64) / spec.scale))
    quantized: Array = np.clip(steps + spec.zero_point, least, most).astype(dtype)
    return quantized


def _check_unpacked(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(item.file_size for item in archive.infolist()) > MAX_NPZ_BYTES:
            raise SampleError(f"the samples file unpacks to more than {MAX_NPZ_BYTES:,} B")


def _load(data: bytes) -> list[Array]:
    try:
        _check_unpacked(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as store:
            names = [name for name in ("input", "input_int8", "input_float") if name in store.files]
            arrays = [store[name] for name in names]
    except SampleError:
        raise
    except Exception as error:  # zipfile and numpy raise many kinds for hostile bytes
        raise SampleError(f"the samples file is no readable npz: {type(error).__name__}") from None
    if not arrays:
        raise SampleError("the samples file has none of the arrays input, input_int8, input_float")
    return arrays


def convert(
    values: profiler_pb2.InputSet,
    source: Sequence[tensor_pb2.TensorSpec],
    wanted: Sequence[tensor_pb2.TensorSpec],
) -> profiler_pb2.InputSet:
    """Convert samples between a quantized and a float form of the same tensors; raises SampleError when it cannot be.

    Specs are paired by position. A quantized tensor becomes real values by its scale and zero point, and back with
    rounding half to even.
    """
    if len(source) != len(wanted):
        raise SampleError(f"{len(source)} tensors in one form, {len(wanted)} in the other")
    result = profiler_pb2.InputSet()
    for sample in values.samples:
        if len(sample.tensors) != len(source):
            raise SampleError(f"a sample has {len(sample.tensors)} tensors instead of {len(source)}")
        converted = result.samples.add()
        for data, have, want in zip(sample.tensors, source, wanted, strict=True):
            converted.tensors.append(_convert(decode(data, have), have, want))
    return result


def decode(data: bytes, spec: tensor_pb2.TensorSpec) -> Array:
    """Read a tensor's bytes as a flat array; raises SampleError when the size is not the spec's."""
    if len(data) != size_bytes(spec):
        raise SampleError(f"tensor {spec.name[:64]!r} has {len(data)} B instead of {size_bytes(spec)}")
    return np.frombuffer(data, dtype=dtype_of(spec))


def _convert(values: Array, have: tensor_pb2.TensorSpec, want: tensor_pb2.TensorSpec) -> bytes:
    if elements(have) != elements(want):
        raise SampleError(
            f"tensor {have.name[:64]!r} has {elements(have)} elements in one form, {elements(want)} in the other"
        )
    source, target = dtype_of(have), dtype_of(want)
    if source == target:
        return values.tobytes()
    if target.kind == "f" and have.scale > 0:
        real: Array = ((values.astype(np.float64) - have.zero_point) * have.scale).astype(target)
        return real.tobytes()
    if source.kind == "f" and want.scale > 0 and target.kind in "iu":
        return quantize(values, want).tobytes()
    raise SampleError(f"no conversion of tensor {have.name[:64]!r} from {source.name} to {target.name}")
