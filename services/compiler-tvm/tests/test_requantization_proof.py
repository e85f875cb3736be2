"""Requantization: what `fit` proves is what the reference computes, for every accumulator tried."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymlaas_compiler_tvm import arithmetic, narrow, requant


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    exponent=st.floats(-12, -4),
    spread=st.floats(0, 9),
    zero=st.integers(-128, 127),
    low=st.integers(-128, 0),
)
def test_fitted_parameters_equal_the_reference(seed: int, exponent: float, spread: float, zero: int, low: int) -> None:
    rng = np.random.default_rng(seed)
    channels = 8
    reals = 2.0 ** (exponent - rng.uniform(0, spread, channels))
    pairs = [arithmetic.quantize_multiplier(float(real)) for real in reals]
    multipliers = np.array([p[0] for p in pairs], np.int64)[:, None]
    shifts = np.array([p[1] for p in pairs], np.int64)[:, None]

    def reference(acc: np.ndarray) -> np.ndarray:
        return arithmetic.requantize(acc, multipliers, shifts, zero, low, 127)

    acc_low = -rng.integers(1, 400_000, channels)
    acc_high = rng.integers(1, 400_000, channels)
    slope = multipliers[:, 0] * 2.0 ** (shifts[:, 0] - 31)
    steps = requant.find_steps(reference, slope, acc_low, acc_high, low, 127)
    fitted = requant.fit_best(steps, acc_low, acc_high)
    assert fitted is not None
    tried = np.concatenate(
        [
            rng.integers(acc_low[:, None], acc_high[:, None] + 1, (channels, 3000)),
            np.clip(steps.at, acc_low[:, None], acc_high[:, None]),
        ],
        axis=1,
    )  # fmt: skip
    np.testing.assert_array_equal(requant.apply(fitted, tried, low, 127), reference(tried))
    small = narrow.fit(steps, acc_low, acc_high)
    # Wide spans leave too few bits for some channels; such a layer takes another kernel.
    assert small is not None or spread > 3
    if small is not None:
        np.testing.assert_array_equal(narrow.apply(small, tried), reference(tried))
        assert int((small.spans * small.lows).max()) < 2**32


def test_the_kernel_formula_stays_in_32_bits() -> None:
    fitted = requant.Fit(np.array([20]), np.array([2**31 - 65]), np.array([0]), None)
    extreme = np.array([[2**23 - 1, -(2**23) + 1]])
    word = (extreme * 256 * fitted.multipliers[:, None]) >> 32
    assert np.all(np.abs(word) < 2**31)


def test_multipliers_are_normalized_and_exact_to_the_double() -> None:
    for real in (0.5, 0.25, 0.75, 1e-6, 0.9999999999, 1.5, 3.0):
        multiplier, shift = arithmetic.quantize_multiplier(real)
        assert 2**30 <= multiplier < 2**31
        assert abs(multiplier * 2.0 ** (shift - 31) - real) <= real * 2.0**-30


def test_a_clamp_to_a_single_value_is_fitted() -> None:
    low, high = np.array([-100]), np.array([100])
    steps = requant.find_steps(lambda acc: np.full_like(acc, 7), np.array([0.1]), low, high, 7, 7)
    fitted = requant.fit_best(steps, low, high)
    assert fitted is not None
    assert set(requant.apply(fitted, np.array([[-100, 0, 100]]), 7, 7).ravel()) == {7}
