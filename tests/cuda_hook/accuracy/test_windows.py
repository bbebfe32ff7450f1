from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from cuda_hook.accuracy.windows import HostDelay, settling_ms, share_error, window_shares


def _periodic(busy_ms: int, period_ms: int, length_ms: int) -> NDArray[np.int64]:
    return np.where(np.arange(length_ms) % period_ms < busy_ms, 1_000_000, 0).astype(np.int64)


def test_a_window_of_whole_periods_shows_the_exact_share() -> None:
    shares = window_shares(_periodic(3, 10, 1000), 100, 7)
    assert shares == pytest.approx(0.3)
    assert len(shares) == (1000 - 100) // 7 + 1


def test_error_is_the_mean_distance_from_what_was_due() -> None:
    busy = np.concatenate((_periodic(2, 10, 500), _periodic(4, 10, 500)))
    error = share_error(busy, 0.3, 100, step_ms=100)
    assert error.mean_absolute == pytest.approx(0.1)
    assert error.mean == pytest.approx(0.3)
    assert (error.windows, error.starved) == (10, 0)


def _delayed(length_ms: int, *spans: tuple[int, int]) -> HostDelay:
    waited = np.zeros(length_ms, dtype=np.int64)
    for start, end in spans:
        waited[start:end] = 1_000_000
    return HostDelay(waited, 10.0)


def test_windows_in_which_the_host_starved_the_application_do_not_count() -> None:
    busy = _periodic(3, 10, 1000)
    busy[200:300] = 0
    error = share_error(busy, 0.3, 100, step_ms=100, delay=_delayed(1000, (200, 300)))
    assert error.mean_absolute == pytest.approx(0.0)
    # The starved window and the one after it, in which the shortfall may be made up for.
    assert (error.windows, error.starved) == (8, 2)


def test_what_was_saved_up_while_starved_may_be_spent_afterwards() -> None:
    busy = _periodic(3, 10, 1000)
    busy[200:220] = 0
    busy[300:306] = 1_000_000
    error = share_error(busy, 0.3, 100, step_ms=100, delay=_delayed(1000, (200, 220)))
    assert (error.windows, error.starved) == (8, 2)


def test_an_excess_beyond_the_burst_counts_whatever_the_host_did() -> None:
    busy = _periodic(5, 10, 200)
    error = share_error(busy, 0.3, 100, step_ms=50, delay=_delayed(200, (0, 200)))
    assert error.mean_absolute == pytest.approx(0.2)
    assert (error.windows, error.starved) == (3, 0)


def test_without_a_window_that_counts_there_is_no_error_to_pass() -> None:
    error = share_error(_periodic(3, 10, 200), 0.4, 100, step_ms=50, delay=_delayed(200, (0, 200)))
    assert math.isnan(error.mean_absolute)
    assert (error.windows, error.starved) == (0, 3)


def test_settling_ends_with_the_last_wrong_window() -> None:
    busy = np.concatenate((_periodic(10, 10, 200), _periodic(3, 10, 2000)))
    # Windows that reach less than 2 % (of 500 ms) into the wrong part are right: 0.7 x/500 < 0.02 at x = 14 ms.
    assert settling_ms(busy, 0.3, 0.02) == pytest.approx(200 - 14, abs=8)
    assert settling_ms(_periodic(3, 10, 1000), 0.3, 0.02) == 0
    assert settling_ms(_periodic(9, 10, 1000), 0.3, 0.02) is None


def test_a_starved_window_says_nothing_about_settling() -> None:
    busy = _periodic(3, 10, 2000)
    busy[1000:1100] = 0
    assert settling_ms(busy, 0.3, 0.02) not in (0, None)
    assert settling_ms(busy, 0.3, 0.02, delay=_delayed(2000, (1000, 1100))) == 0
