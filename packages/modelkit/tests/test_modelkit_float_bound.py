"""The scale of float outputs: a power of two that the last bits of another processor's sums do not change."""

from __future__ import annotations

import numpy as np
import pytest

from tinymlaas_modelkit.float_bound import largest_magnitude, output_scale


@pytest.mark.parametrize(("largest", "scale"), [(0.0, 1.0), (1.0, 1.0), (57.3, 32.0), (0.3, 0.25), (1e-20, 2.0**-67)])
def test_the_scale_is_the_power_of_two_below(largest: float, scale: float) -> None:
    assert output_scale(largest) == scale


@pytest.mark.parametrize("power", [2.0**-10, 1.0, 2.0**20])
def test_last_bits_around_a_power_of_two_do_not_change_the_scale(power: float) -> None:
    assert {output_scale(power * (1 + error)) for error in (-1e-6, 0.0, 1e-6)} == {power}


def test_only_finite_floats_count() -> None:
    arrays = [np.array([1.0, -3.0, np.inf, np.nan], np.float32), np.array([900], np.int32), np.zeros(0, np.float32)]
    assert largest_magnitude(arrays) == 3.0
    assert largest_magnitude([np.array([7], np.int8)]) == 0.0
