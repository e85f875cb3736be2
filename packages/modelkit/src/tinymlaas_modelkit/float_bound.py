"""The bound that compilers claim of float outputs: |out - ref| <= 1e-5 * |ref| + 1e-5 * scale.

Rounding is relative to what is summed, so an output near zero, whose terms cancel, keeps the noise of its neighbours: hence the
second term, whose scale is the largest magnitude of the model's outputs. Sums in another order alone differ by about 2**-24 times
the root of their length (Higham and Mary, "A New Approach to Probabilistic Rounding Error Analysis", 2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FLOAT_TOLERANCE: Final = 1e-5


def output_scale(largest: float) -> float:
    """The power of two below the largest magnitude that was seen, so that another processor's last bits do not change it.

    1 where nothing but zeros was seen. A thousandth more than a power of two counts as that power.
    """
    return 2.0 ** math.floor(math.log2(largest) + 1e-3) if largest else 1.0


def largest_magnitude(arrays: Iterable[npt.NDArray[Any]]) -> float:
    """The largest finite magnitude among the floats of some arrays; 0 where there is none."""
    found = (np.abs(a[np.isfinite(a)].astype(np.float64)) for a in arrays if a.dtype.kind == "f")
    return max((float(magnitudes.max(initial=0.0)) for magnitudes in found), default=0.0)
