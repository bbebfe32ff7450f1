"""Histograms with cumulative buckets: sums, growth, quantiles and shares, as Prometheus' histogram_quantile computes them."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

__all__ = ["Histogram", "add", "increase", "is_open", "quantile", "scv", "share_below"]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Cumulative counts by upper bound, seconds; the last bound is +Inf. Empty where nothing was exported."""

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        """How many were counted."""
        return self.counts[-1] if self.counts else 0.0


def increase(before: Histogram, after: Histogram) -> Histogram:
    """What was added between two scrapes of one series. A bucket that shrank tells of a restart: all is new.

    Where the bounds differ, because an exporter leaves out empty buckets or was given others, growth is exact at the bounds that both
    have, +Inf among them; at others it is estimated, and no more than at the next that both have.
    """
    old, guessed = before.counts, list[int]()
    if before.bounds != after.bounds:
        if not before.bounds:
            return after
        known = set(before.bounds)
        guessed = [place for place, bound in enumerate(after.bounds) if bound not in known]
        old = tuple(
            _count(before, bound) if bound in known else min(count, _count(before, bound))
            for bound, count in zip(after.bounds, after.counts, strict=True)
        )
    if any(new < base for base, new in zip(old, after.counts, strict=True)):
        return after
    grown = [new - base for base, new in zip(old, after.counts, strict=True)]
    for place in reversed(guessed):
        grown[place] = min(grown[place], grown[place + 1])
    # Buckets are exported one after the other while requests end: a lower one may have been read a moment later than a higher one.
    for place in range(1, len(grown)):
        grown[place] = max(grown[place - 1], grown[place])
    return Histogram(after.bounds, tuple(grown))


def add(a: Histogram, b: Histogram) -> Histogram:
    """Sum of two histograms; of different bounds, both are read at the union of them."""
    if not a.bounds:
        return b
    if not b.bounds:
        return a
    if a.bounds == b.bounds:
        return Histogram(b.bounds, tuple(x + y for x, y in zip(a.counts, b.counts, strict=True)))
    bounds = tuple(sorted({*a.bounds, *b.bounds}))
    return Histogram(bounds, tuple(_count(a, bound) + _count(b, bound) for bound in bounds))


def quantile(histogram: Histogram, q: float) -> float | None:
    """The q-quantile in seconds, linear within its bucket.

    Args:
        histogram: Cumulative counts.
        q: In [0, 1].

    Returns:
        None if nothing was counted, or if there is no finite bound. A quantile in the +Inf bucket is the highest finite bound: a
        lower limit of the truth, see ``is_open``.
    """
    if histogram.total <= 0 or len(histogram.bounds) < 2:
        return None
    rank = q * histogram.total
    place = min(bisect.bisect_left(histogram.counts, rank), len(histogram.counts) - 1)
    high = histogram.bounds[place]
    if high == math.inf:
        return histogram.bounds[place - 1]
    low = histogram.bounds[place - 1] if place else min(0.0, high)
    below = histogram.counts[place - 1] if place else 0.0
    inside = histogram.counts[place] - below
    return low + (high - low) * (rank - below) / inside if inside > 0 else high


def is_open(histogram: Histogram, q: float) -> bool:
    """Say whether the q-quantile lies above the highest finite bound, so that nobody knows how large it is."""
    if histogram.total <= 0:
        return False
    return len(histogram.bounds) < 2 or histogram.counts[-2] < q * histogram.total


def share_below(histogram: Histogram, limit: float) -> float | None:
    """Share of what was counted that is at most ``limit`` seconds, linear within the bucket; None if nothing was counted."""
    return None if histogram.total <= 0 else _count(histogram, limit) / histogram.total


def scv(histogram: Histogram, least: float = 8.0) -> float | None:
    """Squared coefficient of variation Var/mean², each bucket's content spread evenly over it.

    For U(a, b): E[x] = (a + b)/2 and E[x²] = (a² + ab + b²)/3. What lies above the highest finite bound counts as lying there; a tail
    that the bounds do not reach makes the result too small.

    Args:
        histogram: Cumulative counts of times.
        least: Fewest times that say anything about their variation.

    Returns:
        None of fewer, or without a finite bound.
    """
    if histogram.total < least or len(histogram.bounds) < 2 or not histogram.bounds[0] > 0:
        return None
    first = second = below = 0.0
    low = 0.0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=True):
        high = low if bound == math.inf else bound
        inside, below = count - below, count
        first += inside * (low + high) / 2.0
        second += inside * (low * low + low * high + high * high) / 3.0
        low = high
    mean = first / histogram.total
    return max(0.0, second / histogram.total / mean**2 - 1.0)


def _count(histogram: Histogram, bound: float) -> float:
    """Cumulative count at a bound, linear within its bucket; what lies in the +Inf bucket is above every finite bound."""
    place = bisect.bisect_left(histogram.bounds, bound)
    if place == len(histogram.bounds):
        return histogram.counts[-1]
    high = histogram.bounds[place]
    below = histogram.counts[place - 1] if place else 0.0
    if high == bound:
        return histogram.counts[place]
    if high == math.inf:
        return below
    low = histogram.bounds[place - 1] if place else min(0.0, high)
    if high <= low:
        return below
    return below + (histogram.counts[place] - below) * max(0.0, bound - low) / (high - low)
