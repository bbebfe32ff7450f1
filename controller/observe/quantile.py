"""Quantiles and shares from histograms with cumulative buckets, as Prometheus' histogram_quantile computes them."""

from __future__ import annotations

import bisect
import math

from controller.observe.exposition import Histogram

__all__ = ["add", "increase", "quantile", "share_below"]


def increase(before: Histogram, after: Histogram) -> Histogram:
    """What was added between two scrapes of one pod. Buckets that shrank, or whose bounds changed, tell of a restart: all is new."""
    if before.bounds != after.bounds or any(new < old for old, new in zip(before.counts, after.counts, strict=True)):
        return after
    return Histogram(after.bounds, tuple(new - old for old, new in zip(before.counts, after.counts, strict=True)))


def add(a: Histogram, b: Histogram) -> Histogram:
    """Sum of two histograms; of different bounds, both are read at the union of them."""
    if not a.bounds or a.bounds == b.bounds:
        return Histogram(b.bounds, tuple(x + y for x, y in zip(a.counts, b.counts, strict=True))) if a.bounds else b
    if not b.bounds:
        return a
    bounds = tuple(sorted({*a.bounds, *b.bounds}))
    return Histogram(bounds, tuple(_count(a, bound) + _count(b, bound) for bound in bounds))


def quantile(histogram: Histogram, q: float) -> float | None:
    """The q-quantile in seconds, linear within its bucket.

    Args:
        histogram: Cumulative counts.
        q: In [0, 1].

    Returns:
        None if nothing was counted. A quantile in the +Inf bucket is the highest finite bound: a lower limit of the truth.
    """
    total = histogram.counts[-1] if histogram.counts else 0.0
    if total <= 0:
        return None
    rank = q * total
    place = bisect.bisect_left(histogram.counts, rank)
    place = min(place, len(histogram.counts) - 1)
    high = histogram.bounds[place]
    low = histogram.bounds[place - 1] if place else 0.0
    if high == math.inf:
        return low
    below = histogram.counts[place - 1] if place else 0.0
    inside = histogram.counts[place] - below
    low = min(low, high) if place else min(0.0, high)
    return low + (high - low) * (rank - below) / inside if inside > 0 else high


def share_below(histogram: Histogram, limit: float) -> float | None:
    """Share of what was counted that is at most ``limit`` seconds, linear within the bucket; None if nothing was counted."""
    total = histogram.counts[-1] if histogram.counts else 0.0
    return None if total <= 0 else _count(histogram, limit) / total


def _count(histogram: Histogram, bound: float) -> float:
    """Cumulative count at a bound, linear within its bucket; what lies in the +Inf bucket is above every finite bound."""
    place = bisect.bisect_left(histogram.bounds, bound)
    if place == len(histogram.bounds):
        return histogram.counts[-1]
    high = histogram.bounds[place]
    low = histogram.bounds[place - 1] if place else 0.0
    below = histogram.counts[place - 1] if place else 0.0
    if high == bound:
        return histogram.counts[place]
    if high == math.inf:
        return below
    return below + (histogram.counts[place] - below) * max(0.0, bound - low) / (high - low)
