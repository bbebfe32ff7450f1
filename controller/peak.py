"""Peaks of the arrival rate: the recent one that the knobs are set for, and the remembered one that the reserve rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import Final

from controller.tuning import Tuning

__all__ = [
    "Peaks",
    "awaited_peak",
    "expected_rate",
    "kept_rate",
    "lasting_rate",
    "peak_to_serve",
    "recent_peak",
    "record",
    "remembered_peak",
    "reserve_rate",
    "usual_rate",
]

_HISTORY_S: Final = 900.0
_BURST_RATIO: Final = 1.6
_BASE_TIME_CONSTANT_S: Final = 300.0
_ALIVE_FROM: Final = 0.5
"""Part of the remembered peak that a burst must reach to keep it from fading."""
_GAPS_KEPT: Final = 8
_USUAL_ROUNDS: Final = 5
_MOVED: Final = 1.3
_KNOWN_ROUNDS: Final = 3
_STARTS_S: Final = 180.0
"""A replica with a GPU takes 30 to 440 s to start."""
_RISE_SIGNIFICANCE: Final = 3.0
_GAPS_WAITED: Final = 3.0
_GAPS_LEAST: Final = 3
_UNEVEN: Final = 0.3
"""Coefficient of variation of so many gaps or more from which on bursts come at random times."""
_HOLD_S: Final = 600.0
_HOLDS_PER_GAP: Final = 1.5
_PEAK_WINDOW_S: Final = 5.0
_CHANCE_IN_PEAKS: Final = 2.5
_CHANCE_IN_RATES: Final = 1.0
"""Standard deviations by which the highest of two minutes' 5 s peaks, and of four rounds' rates, lie above a steady Poisson rate."""
_CHANCE_EVER: Final = 3.0
"""The same of the highest of ever so many rounds, beyond what was taken off already: less is no peak to remember."""
_HALF_LIVES_PER_GAP: Final = 4.0
"""At least 3 are needed for a remembered burst to be still worth 80 % when the next one comes."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """What arrivals did, as plain numbers. Times in seconds, rates in requests per second."""

    recent: tuple[tuple[float, float], ...] = ()
    """(end of the round, highest rate in it) of the last 15 minutes."""
    remembered: float = 0.0
    remembered_s: float = 0.0
    """When the remembered peak was seen last."""
    base: float = 0.0
    """Slow mean of the rate; bursts do not move it much."""
    first_s: float | None = None
    updated_s: float = 0.0
    burst_s: float | None = None
    """When the last burst began."""
    in_burst: bool = False
    gaps: tuple[float, ...] = ()
    """Seconds between the starts of the last bursts."""


def record(peaks: Peaks, rate: float, peak: float, now: float, tuning: Tuning) -> Peaks:
    """Fold one round in.

    Args:
        peaks: So far.
        rate: Arrival rate of the window.
        peak: Highest arrival rate since the round before.
        now: End of the window.
        tuning: Half-lives.
    """
    if not (math.isfinite(rate) and math.isfinite(peak)) or min(rate, peak) < 0:
        return peaks
    # What chance adds to the highest of several windows is no peak: the model knows of Poisson arrivals.
    peak = max(
        0.0,
        rate - _CHANCE_IN_RATES * math.sqrt(rate / tuning.window_s),
        peak - _CHANCE_IN_PEAKS * math.sqrt(rate / _PEAK_WINDOW_S),
    )
    first = peaks.first_s is None
    step = max(0.0, now - peaks.updated_s)
    weight = 1.0 if first else 1.0 - math.exp(-step / _BASE_TIME_CONSTANT_S)
    # A burst lifts the base by no more than a tenth of its height, so that the next burst is still one.
    pull = rate if first else min(rate, _BURST_RATIO * peaks.base + 1.0)
    base = peaks.base + weight * (pull - peaks.base)
    bursting = not first and peak > _BURST_RATIO * peaks.base and peak > peaks.base + 3.0 * math.sqrt(peaks.base + 1.0)
    begins = bursting and not peaks.in_burst
    gaps, burst_s = peaks.gaps, peaks.burst_s
    if begins:
        if burst_s is not None:
            gaps = (*gaps, now - burst_s)[-_GAPS_KEPT:]
        burst_s = now
    faded = remembered_peak(peaks, now, tuning)
    high = _beyond_chance(peak, base, tuning)
    higher = high >= faded
    # A pattern that goes on does not fade because its highest burst was some bursts ago.
    alive = higher or (bursting and peak >= _ALIVE_FROM * faded)
    kept = high if higher else faded
    return replace(
        peaks,
        recent=(*((at, value) for at, value in peaks.recent if now - at <= _HISTORY_S), (now, peak)),
        remembered=kept if alive else peaks.remembered,
        remembered_s=now if alive else peaks.remembered_s,
        base=base,
        first_s=now if peaks.first_s is None else peaks.first_s,
        updated_s=now,
        burst_s=burst_s,
        in_burst=bursting,
        gaps=gaps,
    )


def _beyond_chance(peak: float, base: float, tuning: Tuning) -> float:
    """A peak; where chance alone brings one so high in an hour, the slow mean."""
    return peak if peak > base + _CHANCE_EVER * math.sqrt(base / tuning.window_s) else min(peak, base)


def half_life_s(peaks: Peaks, tuning: Tuning) -> float:
    """Half-life of the remembered peak: four times the longest gap between the last bursts, within the tuning's bounds."""
    longest = max(peaks.gaps, default=0.0)
    return min(tuning.peak_half_life_max_s, max(tuning.peak_half_life_s, _HALF_LIVES_PER_GAP * longest))


def remembered_peak(peaks: Peaks, now: float, tuning: Tuning) -> float:
    """The remembered peak as it has faded until now: peak · 2^(−(age − hold)/half-life), unfaded while age < hold.

    It is held for ten minutes, or one and a half times the longest gap between bursts: until the next one is overdue.
    """
    hold = max(_HOLD_S, _HOLDS_PER_GAP * max(peaks.gaps, default=0.0))
    age = max(0.0, now - peaks.remembered_s - hold)
    return peaks.remembered * math.pow(0.5, age / half_life_s(peaks, tuning))


def recent_peak(peaks: Peaks, now: float, window_s: float) -> float:
    """Highest rate of the last ``window_s`` seconds; the last one known if none is that young; 0 if nothing is known."""
    young = [value for at, value in peaks.recent if now - at <= window_s]
    return max(young, default=peaks.recent[-1][1] if peaks.recent else 0.0)


def peak_to_serve(peaks: Peaks, now: float, tuning: Tuning) -> float:
    """What the knobs are set for: the recent peak. Once arrivals are back at the usual, bursts that memory waits for are left out of it:
    the reflex meets the next one as it begins."""
    young_s = now - tuning.recent_peak_window_s
    usual = tuning.burst_ratio * usual_rate(peaks)
    waits = tuning.reflex and tuning.remember_peaks and awaited_peak(peaks, now, tuning) > usual
    if not waits or not peaks.recent or peaks.recent[-1][1] > usual:
        return recent_peak(peaks, now, tuning.recent_peak_window_s)
    return max(value for at, value in peaks.recent if value <= usual and at >= min(young_s, peaks.recent[-1][0]))


def lasting_rate(peaks: Peaks, now: float, tuning: Tuning) -> float:
    """What at least two of the last rounds reached: for a replica that takes minutes to start one window is no reason."""
    young = sorted(value for at, value in peaks.recent if now - at <= tuning.recent_peak_window_s)
    return young[-2] if len(young) > 1 else recent_peak(peaks, now, tuning.recent_peak_window_s)


def usual_rate(peaks: Peaks) -> float:
    """Median of the last rounds' peaks: the current rate, which a burst of a minute does not move. Where bursts recur, of the last rounds
    without one: two in as many minutes would be the usual otherwise, and a third no burst."""
    values = [value for _, value in peaks.recent]
    if peaks.gaps:
        values = [value for value in values if value <= _BURST_RATIO * peaks.base] or values
    last = sorted(values[-_USUAL_ROUNDS:])
    return last[len(last) // 2] if last else 0.0


def expected_rate(peaks: Peaks) -> float:
    """The usual rate; where the load rises from round to round, what it will be in the next, for the median lies two rounds back."""
    last, usual = [value for _, value in peaks.recent[-_USUAL_ROUNDS:]], usual_rate(peaks)
    rises = sorted(after - before for before, after in pairwise(last))
    if len(last) < _USUAL_ROUNDS or rises[1] <= 0:
        return usual
    # More than two windows of a steady Poisson rate differ by.
    if last[-1] - last[0] <= _RISE_SIGNIFICANCE * math.sqrt(2.0 * max(last) / _PEAK_WINDOW_S):
        return usual
    # The middle of the rises: a burst is one.
    return usual + (_USUAL_ROUNDS // 2 + 1) * (rises[1] + rises[2]) / 2


def _risen(peaks: Peaks, tuning: Tuning) -> float:
    """Where the load of the last quarter of an hour has risen for good: the usual rate as it will be, at that pace, by the time that a
    replica added now has started. What was enough at its beginning says nothing of then. 0 where it has not."""
    first, usual = peaks.recent[:_USUAL_ROUNDS], usual_rate(peaks)
    before = sorted(value for _, value in first)[len(first) // 2] if first else 0.0
    if len(first) < _USUAL_ROUNDS or usual <= _MOVED * before:
        return 0.0
    elapsed_s = peaks.recent[-1][0] - first[-1][0]
    # What was taken off for chance belongs to the rate.
    chance = _CHANCE_IN_RATES * math.sqrt(usual / tuning.window_s)
    return usual + chance + (usual - before) / max(elapsed_s, _STARTS_S) * _STARTS_S


def _expected(peaks: Peaks, now: float, tuning: Tuning) -> bool:
    """Bursts may still come. One that is overdue is history, remembered but not waited for: by three of the longest gaps, or where the
    gaps are few or uneven by the half-life, for those that come at random may leave out as much."""
    known = len(peaks.gaps) >= _GAPS_LEAST and _variation(peaks.gaps) <= _UNEVEN
    patience_s = max(_HOLD_S, _GAPS_WAITED * max(peaks.gaps)) if known else half_life_s(peaks, tuning)
    return now - peaks.remembered_s <= patience_s


def _variation(gaps: Sequence[float]) -> float:
    """Coefficient of variation."""
    mean = fmean(gaps)
    return math.dist(gaps, [mean] * len(gaps)) / math.sqrt(len(gaps)) / max(mean, 1e-9)


def awaited_peak(peaks: Peaks, now: float, tuning: Tuning) -> float:
    """The remembered peak while bursts may still come, unfaded where more than one has; 0 if none is waited for."""
    if not _expected(peaks, now, tuning):
        return 0.0
    return peaks.remembered if peaks.gaps else remembered_peak(peaks, now, tuning)


def reserve_rate(peaks: Peaks, now: float, tuning: Tuning) -> float:
    """What the replicas at their highest knobs must be able to serve: max(1.2 · remembered peak, 1.25 · current or next rate).

    While the load rises, of what it will be once a replica added now has started, and three times that until memory covers the pattern.
    With ``remember_peaks`` off the peak of the last 15 minutes takes the place of the remembered one.
    """
    if tuning.remember_peaks:
        peak = awaited_peak(peaks, now, tuning)
    else:
        peak = _beyond_chance(recent_peak(peaks, now, _HISTORY_S), peaks.base, tuning)
    factor = tuning.uncovered_factor if _watched_s(peaks, now) < tuning.covered_after_s else tuning.covered_factor
    return max(
        factor * _risen(peaks, tuning), tuning.covered_factor * expected_rate(peaks), tuning.remembered_factor * peak
    )


def kept_rate(peaks: Peaks, now: float, tuning: Tuning) -> float:
    """What replicas that are there are kept for until memory covers the pattern: 3 · current rate; 0 afterwards. None are added
    for it at a steady load. Infinite for the first rounds: what one or two windows say is no reason to give up what takes minutes
    to start."""
    if _watched_s(peaks, now) >= tuning.covered_after_s:
        return 0.0
    return tuning.uncovered_factor * usual_rate(peaks) if len(peaks.recent) >= _KNOWN_ROUNDS else math.inf


def _watched_s(peaks: Peaks, now: float) -> float:
    return now - peaks.first_s if peaks.first_s is not None else 0.0
