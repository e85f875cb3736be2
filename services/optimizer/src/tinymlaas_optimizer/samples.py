"""Calibration samples: real inputs of a model, and labels if there are any."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tinymlaas_modelkit.check import ModelReport
from tinymlaas_optimizer.errors import LimitExceeded, SamplesInvalid

MAX_SAMPLES: Final = 4096
MAX_BYTES: Final = 512 << 20
MAX_ARRAYS: Final = 64
# Names under which the only input of a model, and its labels, are looked for in a file.
_ONLY_INPUT: Final = ("input_float", "input", "x")
_LABELS: Final = ("label", "labels", "y")


@dataclass(frozen=True)
class Samples:
    """Inputs by name, float32 or the type of the model's input, each [samples, *shape without the batch dimension].

    `labels` is int64 [samples]: the class of each, -1 where there is none; None if the samples have none at all.
    """

    inputs: Mapping[str, npt.NDArray[Any]]
    labels: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def only(self, places: npt.NDArray[np.int64]) -> Samples:
        """The samples at these places."""
        labels = None if self.labels is None else self.labels[places]
        return Samples({name: values[places] for name, values in self.inputs.items()}, labels)

    def feeds(self) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """One inference's inputs after the other, with batch dimension 1."""
        for index in range(len(self)):
            yield {name: values[index : index + 1] for name, values in self.inputs.items()}


def read_npz(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz file by name, or {"input": array} of an .npy file; SamplesInvalid or LimitExceeded.

    Nothing is unpickled, and sizes are looked at before anything is unpacked.
    """
    try:
        if data[:6] == b"\x93NUMPY":
            return {"input": _npy(data)}
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > MAX_ARRAYS:
                raise LimitExceeded("arrays", len(members), MAX_ARRAYS)
            total = sum(member.file_size for member in members)
            if total > MAX_BYTES:
                raise LimitExceeded("sample bytes", total, MAX_BYTES)
            # A member can hold more than it says; reading one byte past what it says would show that.
            return {m.filename.removesuffix(".npy"): _npy(_member(archive, m)) for m in members}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise SamplesInvalid(f"the file is no .npz or .npy file that can be read: {error}") from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with archive.open(member) as stream:
        return stream.read(member.file_size)


def _npy(data: bytes) -> npt.NDArray[Any]:
    """One array; its header may not claim more than there are bytes, since numpy allocates by the header."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds objects")
    need = int(dtype.itemsize)
    for dim in shape:
        need *= int(dim)
    if need > len(data):
        raise ValueError("it is shorter than its header says")
    array: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def match_samples(arrays: Mapping[str, npt.NDArray[Any]], report: ModelReport) -> Samples:
    """The arrays that are the model's inputs, in its types, and the labels; SamplesInvalid or LimitExceeded.

    Arrays go by the inputs' names; the only input of a model may also be called `input_float`, `input` or `x`.
    """
    inputs: dict[str, npt.NDArray[Any]] = {}
    for tensor in report.inputs:
        names = (tensor.name, *(_ONLY_INPUT if len(report.inputs) == 1 else ()))
        found = next((name for name in names if name in arrays), None)
        if found is None:
            raise SamplesInvalid(f"there is no array for input {tensor.name}", where=tensor.name)
        inputs[tensor.name] = _matching(arrays[found], tensor.shape, tensor.dtype, tensor.name)
    counts = {len(values) for values in inputs.values()}
    if len(counts) != 1 or counts == {0}:
        raise SamplesInvalid(f"the arrays hold {sorted(counts)} samples")
    count = counts.pop()
    if count > MAX_SAMPLES:
        raise LimitExceeded("samples", count, MAX_SAMPLES)
    label = next((arrays[name] for name in _LABELS if name in arrays and name not in inputs), None)
    if label is None:
        return Samples(inputs)
    if label.shape != (count,) or label.dtype.kind not in "iu":
        raise SamplesInvalid(
            f"labels are {label.dtype} of shape {list(label.shape)}, needed are {count} integers", "label"
        )
    return Samples(inputs, label.astype(np.int64))


def _matching(values: npt.NDArray[Any], shape: tuple[int, ...], dtype: str, name: str) -> npt.NDArray[Any]:
    rest = shape[1:]
    if not shape or shape[0] != 1:
        raise SamplesInvalid(f"input {name} of shape {list(shape)} has no batch dimension of 1", where=name)
    if values.ndim < 1 or values.shape[1:] not in (rest, shape):
        raise SamplesInvalid(f"input {name} needs shape [samples, {', '.join(map(str, rest))}]", where=name)
    if values.dtype.kind not in "fiu" or (dtype != "float32" and values.dtype != dtype):
        raise SamplesInvalid(f"input {name} needs {dtype}, the samples are {values.dtype}", where=name)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise SamplesInvalid(f"samples of input {name} hold NaN or infinity", where=name)
    return np.ascontiguousarray(values.reshape(len(values), *rest), dtype)
