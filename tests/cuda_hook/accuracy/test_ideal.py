from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuda_hook.accuracy.ideal import error_bar, ideal_deviation, ideal_error


@pytest.mark.parametrize(
    ("kernel_ms", "rate", "width_ms", "points"),
    [
        # 100 ms are one and a half periods of 66.7 ms: 20 ms of work and what the half period of 33.3 ms meets of the next
        # 20 ms. That is all or none of it in 13.3 + 13.3 of 66.7 phases (off by 10 ms), and runs evenly between in the other
        # 40 (off by 5 ms on average): 4 + 3 = 7 ms of 100.
        (20.0, 0.3, 100.0, 7.0),
        # Windows of whole periods have no error.
        (10.0, 0.1, 100.0, 0.0),
        (50.0, 0.5, 1000.0, 0.0),
    ],
)
def test_golden_values(kernel_ms: float, rate: float, width_ms: float, points: float) -> None:
    assert 100 * ideal_error(kernel_ms, rate, width_ms) == pytest.approx(points, abs=0.05)


@given(kernel_ms=st.floats(0.1, 50), rate=st.floats(0.05, 0.95))
def test_no_window_is_off_by_more_than_one_kernel(kernel_ms: float, rate: float) -> None:
    error = ideal_error(kernel_ms, rate, 1000)
    assert 0 <= error <= kernel_ms / 1000
    assert error <= ideal_deviation(kernel_ms, rate, 1000) <= kernel_ms / 1000 + 1e-12


def test_bars_are_fixed_for_short_kernels_and_follow_the_ideal_for_long_ones() -> None:
    assert error_bar(1.0, 0.3, 1000) == 0.01
    assert error_bar(5.0, 0.3, 100) == 0.03
    assert error_bar(50.0, 0.3, 1000) == pytest.approx(ideal_error(50.0, 0.3, 1000) + 0.01)
    assert error_bar(50.0, 0.3, 100) > 0.1
    # Just past the limit the bar does not drop below what shorter kernels are held to.
    assert error_bar(6.1, 0.8, 100) >= 0.03
