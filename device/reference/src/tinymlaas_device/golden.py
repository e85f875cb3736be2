"""Compare outputs of a run with a module's golden vector, in its numerics class."""

from collections.abc import Sequence

import numpy as np

from tinymlaas_module import DType, Module, NumericsClass

_NUMPY = {
    DType.INT8: "i1", DType.UINT8: "u1", DType.INT16: "<i2", DType.UINT16: "<u2", DType.INT32: "<i4", DType.UINT32: "<u4",
    DType.FLOAT32: "<f4",
}  # fmt: skip


def outputs_match(module: Module, expected: Sequence[bytes], outputs: bytes) -> bool:
    """Tell whether `outputs` (tensors in a row) are the expected ones in the module's numerics class."""
    if module.golden is None or len(outputs) != sum(len(tensor) for tensor in expected):
        return False
    numerics = module.golden.numerics
    place = 0
    for tensor, want in zip(module.outputs, expected, strict=True):
        got = outputs[place : place + len(want)]
        place += len(want)
        if got == want:
            continue
        if tensor.dtype not in _NUMPY:
            return False
        a = np.frombuffer(got, dtype=_NUMPY[tensor.dtype]).astype(np.float64)
        b = np.frombuffer(want, dtype=_NUMPY[tensor.dtype]).astype(np.float64)
        if numerics.numerics_class is NumericsClass.WITHIN_LSB and tensor.dtype is not DType.FLOAT32:
            if np.abs(a - b).max() > numerics.lsb:
                return False
        elif numerics.numerics_class is NumericsClass.WITHIN_TOLERANCE and tensor.dtype is DType.FLOAT32:
            if not bool(np.all(np.abs(a - b) <= numerics.atol + numerics.rtol * np.abs(b))):
                return False
        else:
            return False
    return True
