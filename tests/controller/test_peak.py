import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.peak import Peaks, half_life_s, recent_peak, record, remembered_peak, reserve_rate, usual_rate
from controller.tuning import Tuning

TUNING = Tuning()


def watch(
    rates: list[float], every_s: float = 30.0, peaks: Peaks | None = None, begin_s: float = 0.0
) -> tuple[Peaks, float]:
    """Rounds of steady rates; returns the peaks and the last moment."""
    peaks, now = peaks or Peaks(), begin_s
    for number, rate in enumerate(rates):
        now = begin_s + every_s * number
        peaks = record(peaks, rate, rate, now, TUNING)
    return peaks, now


def bursts(gap_rounds: int, count: int) -> list[float]:
    return ([50.0] * (gap_rounds - 2) + [200.0] * 2) * count


def test_chance_alone_makes_no_peak() -> None:
    peaks = record(Peaks(), 20.0, 20.0 + 1.5 * math.sqrt(20 / 5), 30.0, TUNING)
    assert recent_peak(peaks, 30.0, 90.0) == pytest.approx(20.0)


def test_the_recent_peak_forgets_what_lies_outside_its_window() -> None:
    peaks, now = watch([200.0, 50.0, 50.0, 50.0, 50.0])
    assert recent_peak(peaks, now, 90.0) == 50.0
    assert recent_peak(peaks, now, 150.0) == 200.0


def test_a_remembered_peak_is_held_until_the_next_burst_is_overdue_and_then_halves_per_half_life() -> None:
    peaks, now = watch([200.0, 50.0])
    assert remembered_peak(peaks, now + 300, TUNING) == 200.0
    one = remembered_peak(peaks, 600.0 + TUNING.peak_half_life_s, TUNING)
    assert one == pytest.approx(100.0)


def test_the_half_life_is_at_least_three_gaps_between_bursts() -> None:
    peaks, _ = watch(bursts(40, 4))
    assert peaks.gaps == (1200.0,) * 3
    assert half_life_s(peaks, TUNING) >= 3 * 1200.0
    assert half_life_s(Peaks(), TUNING) == TUNING.peak_half_life_s


@given(st.lists(st.floats(0.0, 500.0), min_size=1, max_size=60))
def test_the_reserve_covers_the_current_rate_and_what_was_just_seen(rates: list[float]) -> None:
    peaks, now = watch(rates)
    assert reserve_rate(peaks, now, TUNING) >= TUNING.covered_factor * usual_rate(peaks)
    assert reserve_rate(peaks, now, TUNING) >= recent_peak(peaks, now, 90.0) - 1e-9


def test_until_memory_covers_the_pattern_the_reserve_is_larger() -> None:
    early, now = watch([50.0] * 10)
    late, then = watch([50.0] * 60)
    assert reserve_rate(early, now, TUNING) == pytest.approx(TUNING.uncovered_factor * 50.0)
    assert reserve_rate(late, then, TUNING) == pytest.approx(TUNING.covered_factor * 50.0)


def test_a_burst_seen_before_stays_in_reserve() -> None:
    peaks, now = watch(bursts(12, 4) + [50.0] * 10)
    assert reserve_rate(peaks, now, TUNING) == pytest.approx(1.2 * 200.0)


def test_without_remembering_the_last_quarter_of_an_hour_counts() -> None:
    forgetful = Tuning(remember_peaks=False)
    peaks, now = watch([200.0] + [50.0] * 25)
    assert reserve_rate(peaks, now, forgetful) == pytest.approx(240.0)
    peaks, now = watch([50.0] * 15, peaks=peaks, begin_s=now + 30)
    assert reserve_rate(peaks, now, forgetful) == pytest.approx(forgetful.covered_factor * 50.0)


@given(st.lists(st.floats(1.0, 500.0), min_size=2, max_size=40), st.floats(0.0, 86400.0))
def test_a_remembered_peak_only_fades(rates: list[float], later_s: float) -> None:
    peaks, now = watch(rates)
    assert 0.0 <= remembered_peak(peaks, now + later_s, TUNING) <= remembered_peak(peaks, now, TUNING) + 1e-9


@pytest.mark.parametrize(("rate", "peak"), [(math.nan, 1.0), (1.0, math.inf), (-1.0, 1.0)])
def test_rates_that_are_none_teach_nothing(rate: float, peak: float) -> None:
    assert record(Peaks(), rate, peak, 30.0, TUNING) == Peaks()


def test_only_a_bounded_past_is_kept() -> None:
    peaks, _ = watch(bursts(12, 60))
    assert len(peaks.recent) <= 32
    assert len(peaks.gaps) <= 8
