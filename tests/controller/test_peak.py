import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.peak import (
    Peaks,
    awaited_peak,
    expected_rate,
    half_life_s,
    kept_rate,
    lasting_rate,
    peak_to_serve,
    recent_peak,
    record,
    remembered_peak,
    reserve_rate,
    usual_rate,
)
from controller.tuning import Tuning

TUNING = Tuning()
NEARLY = 0.08
"""Exact rates lie a standard deviation of chance above what they are taken for."""


def watch(
    rates: list[float], every_s: float = 30.0, peaks: Peaks | None = None, begin_s: float = 0.0
) -> tuple[Peaks, float]:
    """Rounds of steady rates; returns the peaks and the last moment."""
    peaks, now = peaks or Peaks(), begin_s
    for number, rate in enumerate(rates):
        now = begin_s + every_s * number
        peaks = record(peaks, rate, rate, now, TUNING)
    return peaks, now


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        pytest.param([50.0, 80.0, 110.0, 140.0, 170.0], 110.0 + 3 * 30.0, id="a ramp: its next round"),
        pytest.param([50.0, 50.0, 50.0, 50.0, 50.0], 50.0, id="steady"),
        pytest.param([50.0, 51.0, 52.0, 53.0, 54.0], 52.0, id="no more than chance"),
        pytest.param([50.0, 50.0, 50.0, 200.0, 200.0], 50.0, id="a burst"),
        pytest.param([50.0, 80.0, 110.0, 100.0, 70.0], 80.0, id="down again"),
        pytest.param([50.0, 80.0, 110.0, 140.0], 110.0, id="too few rounds to say"),
    ],
)
def test_a_load_that_rises_from_round_to_round_is_expected_to_go_on(rates: list[float], expected: float) -> None:
    peaks, _ = watch(rates)
    assert expected_rate(peaks) == pytest.approx(expected, rel=NEARLY)
    assert expected_rate(peaks) >= usual_rate(peaks)


def bursts(gap_rounds: int, count: int) -> list[float]:
    return ([50.0] * (gap_rounds - 2) + [200.0] * 2) * count


def test_chance_alone_makes_no_peak() -> None:
    generator, peaks, now = np.random.default_rng(3), Peaks(), 0.0
    found = []
    for _ in range(400):
        now += 30.0
        counts = generator.poisson(20.0, 30)
        fives = np.convolve(counts, np.ones(5), "valid") / 5
        peaks = record(peaks, float(counts[15:].mean()), float(fives.max()), now, TUNING)
        found.append(recent_peak(peaks, now, TUNING.recent_peak_window_s))
    assert np.mean(found[10:]) == pytest.approx(20.0, rel=0.05)


@pytest.mark.parametrize("rate", [8.0, 50.0])
def test_the_highest_of_many_rounds_of_a_steady_load_is_no_peak_to_remember(rate: float) -> None:
    generator = np.random.default_rng(5)
    steady = [float(generator.poisson(15 * rate)) / 15 for _ in range(200)]
    peaks, now = watch(steady)
    of_chance = 1.2 * max(value for _, value in peaks.recent)
    calm = max(1.25 * usual_rate(peaks), 1.2 * peaks.base)
    assert calm < of_chance
    for tuning in (TUNING, Tuning(remember_peaks=False)):
        assert reserve_rate(peaks, now, tuning) == pytest.approx(calm, rel=0.02)
    peaks, now = watch([2 * rate], peaks=peaks, begin_s=now + 30)
    assert reserve_rate(peaks, now, TUNING) > 2 * rate


def test_what_lasts_is_what_two_rounds_reached() -> None:
    peaks, now = watch([50.0] * 10 + [100.0])
    assert lasting_rate(peaks, now, TUNING) == pytest.approx(50.0, rel=NEARLY)
    peaks, now = watch([100.0], peaks=peaks, begin_s=now + 30)
    assert lasting_rate(peaks, now, TUNING) == pytest.approx(100.0, rel=NEARLY)
    assert lasting_rate(*watch([50.0]), TUNING) == pytest.approx(50.0, rel=NEARLY)
    assert lasting_rate(Peaks(), 0.0, TUNING) == 0.0


def test_the_recent_peak_forgets_what_lies_outside_its_window() -> None:
    peaks, now = watch([200.0, 50.0, 50.0, 50.0, 50.0])
    assert recent_peak(peaks, now, 90.0) == pytest.approx(50.0, rel=NEARLY)
    assert recent_peak(peaks, now, 150.0) == pytest.approx(200.0, rel=NEARLY)


def test_a_remembered_peak_is_held_until_the_next_burst_is_overdue_and_then_halves_per_half_life() -> None:
    peaks, now = watch([200.0, 50.0])
    held = remembered_peak(peaks, now + 300, TUNING)
    assert held == pytest.approx(200.0, rel=NEARLY)
    assert remembered_peak(peaks, 600.0 + TUNING.peak_half_life_s, TUNING) == pytest.approx(held / 2)


def test_lower_bursts_keep_a_remembered_peak_from_fading() -> None:
    peaks, now = watch([*[50.0] * 10, 250.0, 250.0, *([50.0] * 11 + [150.0] * 2) * 6])
    assert remembered_peak(peaks, now, TUNING) > 0.9 * 250.0
    alone, then = watch([*[50.0] * 10, 250.0, 250.0, *[50.0] * 78])
    assert remembered_peak(alone, then, TUNING) < 0.7 * 250.0


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


def test_until_memory_covers_the_pattern_more_of_what_is_there_is_kept() -> None:
    early, now = watch([50.0] * 10)
    late, then = watch([50.0] * 60)
    assert kept_rate(early, now, TUNING) == pytest.approx(TUNING.uncovered_factor * 50.0, rel=NEARLY)
    assert kept_rate(late, then, TUNING) == 0.0
    for peaks, at in ((early, now), (late, then)):
        assert reserve_rate(peaks, at, TUNING) == pytest.approx(TUNING.covered_factor * 50.0, rel=NEARLY)


def test_nothing_that_is_there_is_given_up_by_what_one_or_two_windows_say() -> None:
    peaks, now = watch([50.0] * 2)
    assert kept_rate(peaks, now, TUNING) == math.inf
    peaks, now = watch([50.0] * 3)
    assert kept_rate(peaks, now, TUNING) < math.inf


def test_bursts_close_to_each_other_do_not_become_the_usual() -> None:
    # Twice in two and a half minutes: most of the last five rounds are bursts.
    peaks, _ = watch([*bursts(12, 2), 50.0, 200.0, 200.0, 50.0, 200.0, 200.0])
    assert usual_rate(peaks) == pytest.approx(50.0, rel=NEARLY)
    stays, _ = watch([*bursts(12, 2), *[120.0] * 12])
    assert usual_rate(stays) == pytest.approx(120.0, rel=NEARLY), "a load that stays is no burst"
    fresh, _ = watch([50.0] * 8 + [120.0] * 3)
    assert usual_rate(fresh) == pytest.approx(120.0, rel=NEARLY), "nothing is known of bursts yet"


def test_while_the_load_moves_what_may_come_by_the_time_a_replica_has_started_is_added_for() -> None:
    # By 30 in the nine rounds since the first five; a replica takes three minutes.
    risen, now = watch([30.0] * 6 + [60.0] * 8)
    then = 60.0 + 30.0 / 270.0 * 180.0
    assert reserve_rate(risen, now, TUNING) == pytest.approx(TUNING.uncovered_factor * then, rel=NEARLY)
    level, now = watch([50.0] * 6 + [60.0] * 8)
    assert reserve_rate(level, now, TUNING) == pytest.approx(TUNING.covered_factor * 60.0, rel=NEARLY)
    known, now = watch([30.0] * 20 + [60.0] * 8)
    assert reserve_rate(known, now, TUNING) < TUNING.uncovered_factor * 60.0, "after that memory covers the pattern"


def test_a_rising_load_is_reserved_for_as_it_will_be_once_memory_covers_the_pattern_too() -> None:
    rising, now = watch([30.0 + number for number in range(40)])
    usual, pace_per_s = usual_rate(rising), 1.0 / 30.0
    then = usual + math.sqrt(usual / TUNING.window_s) + 180.0 * pace_per_s
    assert now > TUNING.covered_after_s
    assert reserve_rate(rising, now, TUNING) == pytest.approx(TUNING.covered_factor * then, rel=0.02)
    assert then > 1.05 * expected_rate(rising)


def test_bursts_that_are_long_overdue_are_remembered_but_not_waited_for() -> None:
    peaks, now = watch(bursts(12, 5) + [50.0] * 50)
    assert remembered_peak(peaks, now, TUNING) > 100.0
    assert reserve_rate(peaks, now, TUNING) == pytest.approx(TUNING.covered_factor * 50.0, rel=NEARLY)


@pytest.mark.parametrize(("seen", "gap_rounds", "waited"), [(2, 30, True), (3, 40, True), (5, 40, False)])
def test_the_fewer_gaps_are_known_the_longer_the_next_burst_is_waited_for(
    seen: int, gap_rounds: int, waited: bool
) -> None:
    # One gap of 300 s says little of the next; after four of them none of 1,200 s is to be expected.
    peaks, now = watch(bursts(10, seen) + [50.0] * gap_rounds)
    assert len(peaks.gaps) == seen - 1
    assert (awaited_peak(peaks, now, TUNING) > 100.0) is waited
    assert remembered_peak(peaks, now, TUNING) > 100.0


def test_bursts_at_uneven_gaps_are_waited_for_as_long_as_chance_may_take() -> None:
    uneven = bursts(3, 2) + bursts(14, 1) + bursts(16, 2)
    for gap_rounds, waited in ((52, True), (66, False)):
        peaks, now = watch(uneven + [50.0] * gap_rounds)
        assert len(peaks.gaps) == 4
        assert now - peaks.remembered_s > 3 * max(peaks.gaps)
        assert (awaited_peak(peaks, now, TUNING) > 100.0) is waited


@pytest.mark.parametrize(("rounds_later", "waited"), [(55, True), (62, False)])
def test_after_bursts_close_to_each_other_the_next_is_waited_for_a_half_life_and_unfaded(
    rounds_later: int, waited: bool
) -> None:
    # Gaps of 90 s by chance say nothing of the next, which may be half an hour.
    peaks, now = watch([50.0] * 10 + bursts(3, 3) + [50.0] * rounds_later)
    assert peaks.gaps == (90.0, 90.0)
    awaited = awaited_peak(peaks, now, TUNING)
    assert awaited == (peaks.remembered if waited else 0.0)
    assert remembered_peak(peaks, now, TUNING) < 0.75 * peaks.remembered


def test_knobs_are_set_for_a_known_burst_only_while_it_lasts() -> None:
    during, now = watch(bursts(12, 3))
    assert peak_to_serve(during, now, TUNING) == pytest.approx(200.0, rel=NEARLY)
    after, now = watch([50.0], peaks=during, begin_s=now + 30)
    assert recent_peak(after, now, TUNING.recent_peak_window_s) == pytest.approx(200.0, rel=NEARLY)
    assert peak_to_serve(after, now, TUNING) == pytest.approx(50.0, rel=NEARLY)
    for without in (Tuning(remember_peaks=False), Tuning(reflex=False)):
        assert peak_to_serve(after, now, without) == pytest.approx(200.0, rel=NEARLY)


def test_a_peak_that_is_no_burst_is_still_served_for_a_while() -> None:
    peaks, now = watch([*bursts(12, 3), 50.0, 70.0, 50.0])
    assert peak_to_serve(peaks, now, TUNING) == pytest.approx(70.0, rel=NEARLY)


def test_a_burst_seen_before_stays_in_reserve() -> None:
    peaks, now = watch(bursts(12, 4) + [50.0] * 10)
    assert reserve_rate(peaks, now, TUNING) == pytest.approx(1.2 * 200.0, rel=NEARLY)


def test_without_remembering_the_last_quarter_of_an_hour_counts() -> None:
    forgetful = Tuning(remember_peaks=False)
    peaks, now = watch([200.0] + [50.0] * 25)
    assert reserve_rate(peaks, now, forgetful) == pytest.approx(240.0, rel=NEARLY)
    peaks, now = watch([50.0] * 15, peaks=peaks, begin_s=now + 30)
    assert reserve_rate(peaks, now, forgetful) == pytest.approx(forgetful.covered_factor * 50.0, rel=NEARLY)


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
