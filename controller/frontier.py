"""Pareto frontiers of (latency ratio, cost ratio): dominance, distance, hypervolume contribution; one per bucket of load."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from controller.experience import Outcome

__all__ = [
    "GLOBAL",
    "LEAST_RATIO",
    "REFERENCE",
    "Frontier",
    "Frontiers",
    "Holders",
    "Point",
    "compares",
    "dominates",
    "load_bucket",
    "point_of",
]

Point = tuple[float, float]
"""(ℓ, c): P99/SLO and cost/budget; less is better in both."""

REFERENCE: Final[Point] = (1.1, 1.1)
"""Reference point of hypervolumes, in the scaled space (min(ℓ, 2)/2, c)."""

LEAST_RATIO: Final = 1e-9
"""A P99 or a cost of no more than this part of the SLO or of the budget is none: nothing finished, or nothing ran that has a price."""

GLOBAL: Final = -1_000_000
"""Key of the frontier over all loads."""

_BUCKET_RATIO: Final = 1.5
"""Neighbouring buckets of the arrival rate differ by this factor."""


def point_of(outcome: Outcome) -> Point:
    """(ℓ, c) of an outcome."""
    return outcome.latency_ratio, outcome.cost_ratio


def compares(point: Point) -> bool:
    """Whether a point may be compared with others: finite, and something took time and cost something.

    A round without requests has no P99 and one without replicas no cost: either would dominate the rounds that served somebody.
    """
    return all(LEAST_RATIO < ratio < math.inf for ratio in point)


def dominates(a: Point, b: Point) -> bool:
    """Whether a is at least as good in both and better in one."""
    return a[0] <= b[0] and a[1] <= b[1] and a != b


def load_bucket(arrivals_per_s: float) -> int:
    """Bucket of an arrival rate: ⌊log(1 + λ)/log 1.5⌋; rates that differ by less than 50 % share one or sit in neighbours."""
    if not arrivals_per_s > 0 or not math.isfinite(arrivals_per_s):
        return 0
    return math.floor(math.log1p(arrivals_per_s) / math.log(_BUCKET_RATIO))


def _scaled(point: Point) -> Point:
    return min(point[0], 2.0) / 2.0, point[1]


@dataclass(frozen=True, slots=True)
class Frontier:
    """Mutually non-dominated points, ascending in ℓ and therefore descending in c; no point occurs twice."""

    points: tuple[Point, ...] = ()

    @classmethod
    def of(cls, points: Iterable[Point]) -> Frontier:
        """The non-dominated points among ``points``; those that are not finite are left out."""
        kept: list[Point] = []
        for point in sorted(set(points)):
            if math.isfinite(point[0]) and math.isfinite(point[1]) and (not kept or point[1] < kept[-1][1]):
                kept.append(point)
        return cls(tuple(kept))

    def add(self, point: Point) -> Frontier:
        """The frontier with one more outcome; itself if the point is dominated, already there, or not finite."""
        if not self.accepts(point) or not all(map(math.isfinite, point)):
            return self
        # Costs fall from point to point: what it dominates stands together, where it will stand itself.
        first = last = bisect.bisect_left(self.points, (point[0], -math.inf))
        while last < len(self.points) and self.points[last][1] >= point[1]:
            last += 1
        if point in self.points[first:last]:
            return self
        return Frontier((*self.points[:first], point, *self.points[last:]))

    def accepts(self, point: Point) -> bool:
        """Whether no point of the frontier dominates ``point``; a point equal to one of them is accepted."""
        place = bisect.bisect_right(self.points, (point[0], math.inf))
        if place == 0:
            return True
        best = self.points[place - 1]
        return best[1] > point[1] or best == point

    def distance(self, point: Point, kind: str = "igd+") -> float:
        """How far behind the frontier a point lies, in the scaled space (min(ℓ, 2)/2, c); 0 for an empty frontier.

        ``igd+``: d⁺(y) = min over f of ‖max(y − f, 0)‖ (Ishibuchi et al. 2015): never mis-orders two dominated points.
        ``euclidean``: min over f of ‖y − f‖.
        """
        if not self.points:
            return 0.0
        x, y = _scaled(point)
        best = math.inf
        for each in self.points:
            fx, fy = _scaled(each)
            dx, dy = x - fx, y - fy
            if kind == "igd+":
                dx, dy = max(dx, 0.0), max(dy, 0.0)
            best = min(best, math.hypot(dx, dy))
        return best

    def contribution(self, point: Point) -> float:
        """Hypervolume that only ``point`` covers: HV(F ∪ {y}) − HV(F \\ {y}) against the reference point (1.1, 1.1).

        Both in the scaled space (min(ℓ, 2)/2, c). 0 for a dominated point and beyond the reference point.
        """
        if not self.accepts(point):
            return 0.0
        x, y = _scaled(point)
        place = bisect.bisect_left(self.points, point)
        area, left, ceiling = 0.0, x, min(REFERENCE[1], self.points[place - 1][1]) if place else REFERENCE[1]
        # The region right of x and above y, minus what points further right and lower in cost cover of it.
        for each in self.points[place + (point in self.points[place : place + 1]) :]:
            right, below = _scaled(each)
            area += (right - left) * max(0.0, ceiling - y)
            left, ceiling = right, min(ceiling, below)
            if ceiling <= y:
                return area
        return area + (REFERENCE[0] - left) * max(0.0, ceiling - y)


@dataclass(frozen=True, slots=True)
class Frontiers:
    """The frontiers of one pipeline: one per load bucket, and one over all loads under ``GLOBAL``."""

    by_bucket: dict[int, Frontier]

    def at(self, bucket: int) -> Frontier:
        """The frontier of a bucket, empty if nothing was seen there."""
        return self.by_bucket.get(bucket, Frontier())

    def add(self, bucket: int, point: Point) -> Frontiers:
        """With one more outcome, in its bucket's frontier and in the global one; itself if the outcome compares with none."""
        if not compares(point):
            return self
        changed = {key: self.at(key).add(point) for key in (bucket, GLOBAL)}
        return Frontiers({**self.by_bucket, **changed})


@dataclass(frozen=True, slots=True)
class Holders:
    """Which experiences stand on the frontier of their own load bucket, one for each point: what memory writes and never evicts.

    Grows by one experience at a time: a round costs as much as its bucket's frontier is long, not as memory is.
    """

    by_bucket: Mapping[int, Mapping[str, Outcome]] = field(default_factory=dict)

    def add(self, identifier: str, bucket: int, outcome: Outcome) -> Holders:
        """With one more experience, in place of an older one with the same outcome; itself if another one dominates it or it compares with
        none."""
        point, held = point_of(outcome), self.by_bucket.get(bucket, {})
        if not compares(point) or any(dominates(point_of(each), point) for each in held.values()):
            return self
        kept = {name: each for name, each in held.items() if not dominates(point, at := point_of(each)) and at != point}
        return Holders({**self.by_bucket, bucket: {**kept, identifier: outcome}})

    def __iter__(self) -> Iterator[tuple[str, int, Outcome]]:
        """Id, bucket and outcome of each."""
        for bucket, held in self.by_bucket.items():
            for identifier, outcome in held.items():
                yield identifier, bucket, outcome
