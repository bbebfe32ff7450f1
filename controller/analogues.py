"""Analogues: what arrivals did in the two minutes after situations like this one. They may add to a plan, never take away."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from controller.peak import Peaks

__all__ = ["GROWTH_LEAST", "Analogues", "expected_growth", "remember"]

GROWTH_LEAST: Final = 1.5
"""Growth that must be expected before anything is raised for it; ordinary growth is followed as it comes."""
_KEPT: Final = 512
_BANDWIDTHS: Final = (0.045, 0.12, 0.12)
"""Of level, tilt and phase: how far apart two moments are still alike."""
_IRREGULARITY_MOST: Final = 0.3
"""Coefficient of variation of the gaps between bursts from which on the phase says nothing."""
_SUPPORT_LEAST: Final = 1.5
_SHARE: Final = 0.5
"""Share of the analogues' weight that must have grown at least that much."""


@dataclass(frozen=True, slots=True)
class Analogues:
    """Past moments: when, what they looked like, the rate, and by which factor arrivals had grown at most 2 minutes later."""

    times_s: tuple[float, ...] = ()
    signatures: tuple[tuple[float, float, float], ...] = ()
    rates: tuple[float, ...] = ()
    growths: tuple[float, ...] = ()


def signature(peaks: Peaks, rate: float, slope: float, now: float) -> tuple[float, float, float] | None:
    """What a moment looks like, each part in about [0, 1]; None where it resembles nothing.

    Rate against the slow mean, relative slope, and how much of the usual gap between bursts has passed. A rate four times the mean or
    more, or a quarter of it, is off the scale: a load that has just begun, and has no mean yet, would resemble whatever else is.
    """
    highest = max(rate, peaks.recent[-1][1] if peaks.recent else 0.0)
    level = math.log2(max(highest, 1e-3) / max(peaks.base, 1e-3)) / 4.0 + 0.5
    if not 0.0 < level < 1.0:
        return None
    tilt = 0.5 + 10.0 * slope / max(rate, 1e-3)
    phase = 0.0
    if peaks.gaps and peaks.burst_s is not None:
        gap = float(np.median(peaks.gaps))
        phase = (now - peaks.burst_s) / max(gap, 1.0)
    # Rounded, because some hundred of them are stored every round.
    return round(level, 3), round(_bounded(tilt), 3), round(min(2.0, phase), 3)


def _regularity(peaks: Peaks) -> float:
    """1 for bursts at equal gaps, 0 for bursts at random times: what the phase since the last one is worth."""
    if len(peaks.gaps) < 2:
        return 0.0
    variation = float(np.std(peaks.gaps)) / max(float(np.mean(peaks.gaps)), 1.0)
    return max(0.0, 1.0 - variation / _IRREGULARITY_MOST)


def _bounded(value: float) -> float:
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.5


def remember(
    analogues: Analogues, peaks: Peaks, rate: float, slope: float, peak: float, now: float, ahead_s: float
) -> Analogues:
    """Append this moment if it may resemble others, and tell the moments of the last two minutes how far arrivals have grown since.

    ``peak`` is the round's peak without what chance adds to it: ``peaks.recent`` has it.
    """
    if not math.isfinite(rate) or rate <= 0:
        return analogues
    growths = tuple(
        max(growth, round(peak / then, 3)) if 0 < now - at <= ahead_s else growth
        for at, then, growth in zip(analogues.times_s, analogues.rates, analogues.growths, strict=True)
    )
    here = signature(peaks, rate, slope, now)
    if here is None:
        return replace(analogues, growths=growths)
    return replace(
        analogues,
        times_s=(*analogues.times_s, now)[-_KEPT:],
        signatures=(*analogues.signatures, here)[-_KEPT:],
        rates=(*analogues.rates, round(max(rate, 1e-3), 3))[-_KEPT:],
        growths=(*growths, 1.0)[-_KEPT:],
    )


def expected_growth(analogues: Analogues, peaks: Peaks, rate: float, slope: float, now: float, ahead_s: float) -> float:
    """The factor by which at least half of the analogues' weight had grown two minutes later; 1 without enough of them.

    Moments younger than two minutes have no outcome yet and do not count.
    """
    done = sum(now - at > ahead_s for at in analogues.times_s)
    here = signature(peaks, rate, slope, now) if done >= 2 and rate > 0 else None
    if here is None:
        return 1.0
    past = np.array(analogues.signatures[:done])
    growth = np.array(analogues.growths[:done])
    scale = np.array([1.0, 1.0, _regularity(peaks)]) / np.array(_BANDWIDTHS)
    weight = np.exp(-0.5 * (((past - np.array(here)) * scale) ** 2).sum(axis=1))
    if weight.sum() < _SUPPORT_LEAST:
        return 1.0
    order = np.argsort(-growth)
    reached = np.cumsum(weight[order]) >= _SHARE * weight.sum()
    return max(1.0, float(growth[order][int(np.argmax(reached))]))
