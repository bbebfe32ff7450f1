"""Rewards as of today's frontiers, of all experiences at once: R_pareto depends on the frontier it was taken against. Pure.

Each experience's (ℓ, c), its reward without R_pareto and its load bucket are kept as columns, and how far it lies behind its frontier. A
round adds one row. A frontier that has moved by a point costs its bucket's rows one comparison with that point, and those alone are judged
anew whose nearest point has gone. All of it is ``reward.pareto_term`` for many outcomes at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from controller.experience import Experience
from controller.frontier import GLOBAL, REFERENCE, Frontier, Frontiers, Point, dominates
from controller.points import Places, Vector
from controller.tuning import Tuning

__all__ = ["Standings", "median", "pareto_terms"]

_CHUNK: Final = 16_384
"""Rows, or pairs of a row and a point, that are looked at in one pass: what fits into a core's cache."""
_FEW: Final = 64
_FRESH_MOST: Final = 1_024
_ANEW_FROM: Final = 0.25
"""A frontier of which so large a part is new has its bucket judged as a whole."""
_AROUND: Final = 64
"""The median is looked for among one in so many of the values on either side of where it was."""
_NOTHING: Final = Frontier()
_COLUMNS: Final = ("_latency", "_scaled", "_cost", "_rest", "_bucket", "_behind", "_accepted", "_reward")

_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _News:
    """What a frontier has gained and lost; between its neighbours, which it has kept."""

    gone: tuple[Point, ...]
    come: tuple[Point, ...]
    left: Point
    """The last point before all of that."""
    right: Point
    """The first one after it."""
    large: bool
    """Too much to be looked at for itself."""

    def nearer(self) -> tuple[Point, ...]:
        """What something may be nearer to than to all there was, by ``igd+``: nothing is nearer to a point than to one it dominates."""
        return tuple(point for point in self.come if not any(dominates(point, each) for each in self.gone))

    def about(self, latency: Vector, cost: Vector) -> _Flags:
        """Of outcomes that no point dominated, those that one may dominate now, or whose area it may cut: an area ends at the next point
        that costs less, and is no higher than the point before."""
        return (latency <= self.right[0]) & ((latency >= self.left[0]) | (cost < self.left[1]))


def _news(before: Frontier, now: Frontier) -> _News:
    old, new = before.points, now.points
    most = min(len(old), len(new))
    first = next((place for place in range(most) if old[place] != new[place]), most)
    last = next((place for place in range(most - first) if old[-1 - place] != new[-1 - place]), most - first)
    then, today = old[first : len(old) - last], new[first : len(new) - last]
    gone, come = tuple(set(then) - set(today)), tuple(set(today) - set(then))
    return _News(
        gone,
        come,
        new[first - 1] if first else (-math.inf, math.inf),
        new[-last] if last else (math.inf, -math.inf),
        not old or len(gone) + len(come) > max(2, _ANEW_FROM * len(new)),
    )


class Standings:
    """The columns, in the order of the experiences. Mutable; forgets by moving the last row into the gap."""

    def __init__(self) -> None:
        self._count = 0
        self._latency = np.zeros(0)
        self._scaled = np.zeros(0)
        """min(ℓ, 2)/2."""
        self._cost = np.zeros(0)
        self._rest = np.zeros(0)
        self._bucket = np.zeros(0, dtype=np.int32)
        self._behind = np.zeros(0)
        """Squared distance from the frontier."""
        self._accepted = np.zeros(0, dtype=bool)
        """No point of the frontier dominates it."""
        self._reward = np.zeros(0)
        self._fresh: set[int] = set()
        """Rows that were not judged yet, while they are few."""
        self._stale = False
        """None of the rows is judged."""
        self._judged: dict[int, Frontier] = {}
        self._points: dict[int, Vector] = {}
        """Of those frontiers, (points, 2)."""
        self._measure: tuple[str, str] | None = None

    def append(self, experiences: Sequence[Experience]) -> None:
        """Take experiences in."""
        first, self._count = self._count, self._count + len(experiences)
        if self._count > len(self._rest):
            self._grow()
        inside = slice(first, self._count)
        terms = [each.reward for each in experiences]
        self._latency[inside] = [each.outcome.latency_ratio for each in experiences]
        self._scaled[inside] = _scaled(self._latency[inside])
        self._cost[inside] = [each.outcome.cost_ratio for each in experiences]
        self._rest[inside] = [each.total - each.pareto for each in terms]
        self._bucket[inside] = [each.load_bucket for each in experiences]
        self._accepted[inside] = False
        self._stale = self._stale or len(self._fresh) + len(experiences) > _FRESH_MOST
        if self._stale:
            self._fresh.clear()
        else:
            self._fresh.update(range(first, self._count))

    def remove(self, place: int) -> None:
        """Forget a row; the last one takes its place."""
        last = self._count - 1
        for name in _COLUMNS:
            column = getattr(self, name)
            column[place] = column[last]
        self._fresh.discard(place)
        if last in self._fresh:
            self._fresh.discard(last)
            if place != last:
                self._fresh.add(place)
        self._count = last

    def rewards(self, frontiers: Frontiers, tuning: Tuning) -> tuple[Vector, int]:
        """The reward of each experience with the Pareto term of today, or without any, and of how many it was taken anew."""
        if not tuning.pareto:
            return self._rest[: self._count], 0
        measure = (tuning.frontier_scope, tuning.distance)
        whole, anew = tuning.frontier_scope == "global", 0
        if self._measure != measure or self._stale:
            self._measure, fresh = measure, np.arange(self._count)
            self._judged = {key: frontiers.at(key) for key in self._wanted(frontiers, whole)}
            self._points = {key: _array(frontier.points) for key, frontier in self._judged.items()}
        else:
            fresh = np.array(sorted(self._fresh), dtype=np.intp)
            for key in self._wanted(frontiers, whole):
                anew += self._move(key, frontiers.at(key), tuning.distance)
        keys = np.full(len(fresh), GLOBAL) if whole else self._bucket[fresh]
        for key in np.unique(keys).tolist():
            frontier = frontiers.at(key)
            points = self._points[key] if frontier.points else _array(())
            for rows in _chunks(fresh[keys == key]):
                anew += self._judge(rows, frontier, points, tuning.distance)
        self._fresh.clear()
        self._stale = False
        return self._reward[: self._count], anew

    def _wanted(self, frontiers: Frontiers, whole: bool) -> set[int]:
        keys = {*frontiers.by_bucket, *self._judged}
        return {GLOBAL} & keys if whole else keys - {GLOBAL}

    def _move(self, key: int, frontier: Frontier, distance: str) -> int:
        """Take a bucket's frontier as it is now; gives how many rewards were taken anew for it."""
        before = self._judged.get(key, _NOTHING)
        if frontier == before:
            return 0
        news, points = _news(before, frontier), _array(frontier.points)
        self._judged[key], self._points[key] = frontier, points
        rows = np.arange(self._count) if key == GLOBAL else np.flatnonzero(self._bucket[: self._count] == key)
        # What was dominated by a point that has gone still is where that point is dominated itself.
        if news.large or any(map(frontier.accepts, news.gone)):
            return sum(self._judge(some, frontier, points, distance) for some in _chunks(rows))
        gone, come = _array(news.gone), _array(news.nearer() if distance == "igd+" else news.come)
        moved = sum(self._compare(some, points, gone, come, distance) for some in _chunks(rows))
        held = rows[np.flatnonzero(self._accepted.take(rows))]
        return moved + self._hold(held[news.about(self._latency[held], self._cost[held])], frontier, points)

    def _judge(self, rows: Places, frontier: Frontier, points: Vector, distance: str) -> int:
        """Judge rows by all points of their frontier."""
        latency, cost = self._latency[rows], self._cost[rows]
        self._behind[rows] = _nearest(self._scaled[rows], cost, points, distance)
        self._accepted[rows] = accepted = _accepted(latency, cost, points)
        self._reward[rows] = self._rest[rows] + _terms(self._behind[rows])
        self._stand(rows[accepted], frontier)
        return len(rows)

    def _compare(self, rows: Places, points: Vector, gone: Vector, come: Vector, distance: str) -> int:
        """Judge rows by what has changed of their frontier: the least of all distances is the least of what it was and the distances to
        what has come, unless its point is one that has gone."""
        x, y, before = self._scaled.take(rows), self._cost.take(rows), self._behind.take(rows)
        behind = np.minimum(before, _nearest(x, y, come, distance)) if len(come) else before.copy()
        if len(gone):
            lost = np.flatnonzero(_nearest(x, y, gone, distance) <= before)
            behind[lost] = _nearest(x[lost], y[lost], points, distance)
        changed = np.flatnonzero(behind != before)
        moved = rows[changed]
        self._behind[moved] = behind[changed]
        moved = moved[~self._accepted.take(moved)]
        self._reward[moved] = self._rest[moved] + _terms(self._behind[moved])
        return len(moved)

    def _hold(self, rows: Places, frontier: Frontier, points: Vector) -> int:
        """Judge those that no point dominated so far."""
        still = _accepted(self._latency[rows], self._cost[rows], points)
        self._accepted[rows] = still
        dominated = rows[~still]
        self._reward[dominated] = self._rest[dominated] + _terms(self._behind[dominated])
        self._stand(rows[still], frontier)
        return len(rows)

    def _stand(self, rows: Places, frontier: Frontier) -> None:
        """Rows that no point dominates."""
        self._reward[rows] = self._rest[rows] + 1.0 + _contributions(self._latency[rows], self._cost[rows], frontier)

    def _grow(self) -> None:
        size = max(64, 2 * len(self._rest), self._count)
        for name in _COLUMNS:
            old = getattr(self, name)
            new = np.zeros(size, dtype=old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)


def pareto_terms(outcomes: Vector, frontier: Frontier, distance: str) -> Vector:
    """``reward.pareto_term`` of many outcomes.

    Args:
        outcomes: (ℓ, c) of each, (n, 2).
        frontier: What they are compared with.
        distance: As in the tuning.
    """
    latency, cost, points = outcomes[:, 0], outcomes[:, 1], _array(frontier.points)
    accepted = _accepted(latency, cost, points)
    terms = _terms(_nearest(_scaled(latency), cost, points, distance))
    terms[accepted] = 1.0 + _contributions(latency[accepted], cost[accepted], frontier)
    return terms


def median(values: Vector, between: tuple[float, float]) -> tuple[float, tuple[float, float]]:
    """The median, and two values not far from it.

    Args:
        values: At least one, all finite.
        between: Those two of last time, (∞, −∞) at first: while the median still lies between them, only what does is ordered.
    """
    count, (low, high) = len(values), between
    middle = np.array([(count - 1) // 2, count // 2])
    below, inside = int(np.count_nonzero(values < low)), values[(values >= low) & (values <= high)]
    if below <= middle[0] and middle[1] < below + len(inside):
        inside.partition(middle - below)
        return float(inside[middle - below].mean()), between
    ends = np.array([max(0, middle[0] - count // _AROUND), min(count - 1, middle[1] + count // _AROUND)])
    ordered = np.partition(values, np.concatenate([middle, ends]))
    return float(ordered[middle].mean()), (float(ordered[ends[0]]), float(ordered[ends[1]]))


def _array(points: Sequence[Point]) -> Vector:
    return np.array(points, dtype=float).reshape(-1, 2)


def _chunks(rows: Places) -> Iterator[Places]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


def _scaled(latency: Vector) -> Vector:
    return np.asarray(np.minimum(latency, 2.0) / 2.0)


def _terms(behind: Vector) -> Vector:
    """R_pareto of what is dominated, by its squared distance."""
    return np.asarray(0.8 / (1.0 + np.sqrt(behind)))


def _nearest(x: Vector, y: Vector, points: Vector, distance: str) -> Vector:
    """Squared distance of outcomes (x scaled) from the nearest point; infinite where there is none."""
    nearest = np.empty(len(x))
    step = max(1, _CHUNK // max(1, len(points)))
    px, py = _scaled(points[:, :1]), points[:, 1:]
    for start in range(0, len(x), step):
        some = slice(start, start + step)
        dx, dy = x[some] - px, y[some] - py
        if distance == "igd+":
            np.maximum(dx, 0.0, out=dx)
            np.maximum(dy, 0.0, out=dy)
        dx *= dx
        dy *= dy
        dx += dy
        dx.min(axis=0, initial=np.inf, out=nearest[some])
    return nearest


def _accepted(latency: Vector, cost: Vector, points: Vector) -> _Flags:
    """``Frontier.accepts`` of many."""
    if not len(points):
        return np.ones(len(latency), dtype=bool)
    place = np.searchsorted(points[:, 0], latency, side="right") - 1
    best = points[place]
    equal = (best[:, 1] == cost) & (best[:, 0] == latency)
    return np.asarray((place < 0) | (best[:, 1] > cost) | equal)


def _contributions(latency: Vector, cost: Vector, frontier: Frontier) -> Vector:
    """``Frontier.contribution`` of many that no point dominates: often the same few, and of each but once."""
    if not frontier.points:
        return np.asarray(np.maximum(REFERENCE[0] - _scaled(latency), 0.0) * np.maximum(REFERENCE[1] - cost, 0.0))
    if len(latency) <= _FEW:
        return np.array([*map(frontier.contribution, zip(latency.tolist(), cost.tolist(), strict=True))])
    each, which = np.unique(latency + 1j * cost, return_inverse=True)
    shares = [frontier.contribution((outcome.real, outcome.imag)) for outcome in each.tolist()]
    return np.asarray(np.array(shares)[which])
