import math

from hypothesis import given
from hypothesis import strategies as st

from controller.analogues import Analogues, expected_growth, remember
from controller.peak import Peaks, record
from controller.tuning import Tuning

TUNING = Tuning()
AHEAD_S = TUNING.analogues_ahead_s


def live(rates: list[float], slopes: list[float] | None = None) -> tuple[Analogues, Peaks, float]:
    analogues, peaks, now = Analogues(), Peaks(), 0.0
    for number, rate in enumerate(rates):
        now = 30.0 * number
        peaks = record(peaks, rate, rate, now, TUNING)
        slope = slopes[number] if slopes else 0.0
        analogues = remember(analogues, peaks, rate, slope, peaks.recent[-1][1], now, AHEAD_S)
    return analogues, peaks, now


REGULAR = ([50.0] * 11 + [200.0] * 2) * 5


def test_before_a_burst_that_comes_regularly_growth_is_expected() -> None:
    analogues, peaks, now = live([*REGULAR, *[50.0] * 11])
    assert expected_growth(analogues, peaks, 50.0, 0.0, now, AHEAD_S) > 2.0


def test_right_after_a_burst_none_is_expected() -> None:
    analogues, peaks, now = live([*REGULAR, *[50.0] * 4])
    assert expected_growth(analogues, peaks, 50.0, 0.0, now, AHEAD_S) < 1.5


def test_a_precursor_announces_a_burst_that_comes_at_odd_times() -> None:
    rates: list[float] = []
    for gap in (14, 9, 17, 11, 15, 8):
        rates += [50.0] * gap + [75.0, 50.0, 200.0]
    analogues, peaks, now = live([*rates, *[50.0] * 10, 75.0])
    assert expected_growth(analogues, peaks, 75.0, 0.0, now, AHEAD_S) > 1.5


def test_without_a_past_nothing_is_expected() -> None:
    assert expected_growth(Analogues(), Peaks(), 50.0, 0.0, 0.0, AHEAD_S) == 1.0


@given(st.lists(st.floats(0.5, 500.0), min_size=1, max_size=50))
def test_analogues_only_ever_add(rates: list[float]) -> None:
    analogues, peaks, now = live(rates)
    growth = expected_growth(analogues, peaks, rates[-1], 0.0, now, AHEAD_S)
    assert growth >= 1.0
    assert math.isfinite(growth)


def test_the_past_is_bounded() -> None:
    analogues, _, _ = live([50.0] * 700)
    assert len(analogues.times_s) == len(analogues.signatures) == len(analogues.rates) == len(analogues.growths) == 512


def test_the_beginning_of_a_load_resembles_nothing() -> None:
    # From nothing to 5 requests a second, and on to 20: no mean is known yet, and what has grown once does not grow on and on.
    analogues, peaks, now, rate = Analogues(), Peaks(), 0.0, 0.0
    for number in range(60):
        now, rate = 5.0 * number, [0.0, 0.0, 1.5][number] if number < 3 else min(20.0, 5.0 + 1.2 * max(0, number - 5))
        peaks = record(peaks, rate, rate, now, TUNING)
        assert expected_growth(analogues, peaks, rate, 1.0, now, AHEAD_S) == 1.0, number
        analogues = remember(analogues, peaks, rate, 1.0, peaks.recent[-1][1], now, AHEAD_S)


def test_a_rate_that_is_none_is_not_remembered() -> None:
    assert remember(Analogues(), Peaks(), math.nan, 0.0, 0.0, 30.0, AHEAD_S) == Analogues()
