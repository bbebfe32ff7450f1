"""Rewards as of today's frontiers, of all experiences at once: R_pareto depends on the frontier it was taken against. Pure.

Each experience's (ℓ, c), its reward without R_pareto and its load bucket are kept as columns. A round adds one row; a frontier that has
moved has the rows of its bucket judged anew, in passes over them. Both are ``reward.pareto_term`` for many outcomes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from controller.experience import Experience, Outcome
from controller.frontier import GLOBAL, REFERENCE, Frontier, Frontiers
from controller.points import Places, Vector
from controller.reward import pareto_term
from controller.tuning import Tuning

__all__ = ["Standings", "pareto_terms"]

_CHUNK: Final = 65_536
_FEW: Final = 4
"""Rows up to which one by one is faster than passes over them."""
_FRESH_MOST: Final = 1_024
_NOTHING: Final = Frontier()


class Standings:
    """The columns, in the order of the experiences. Mutable; forgets by moving the last row into the gap."""

    def __init__(self) -> None:
        self._count = 0
        self._outcome = np.zeros((0, 2))
        self._rest = np.zeros(0)
        self._bucket = np.zeros(0, dtype=np.int32)
        self._reward = np.zeros(0)
        self._fresh: set[int] = set()
        """Rows that were not judged yet, while they are few."""
        self._stale = False
        """None of the rows is judged."""
        self._judged: dict[int, Frontier] = {}
        self._measure: tuple[str, str] | None = None

    def append(self, experiences: Sequence[Experience]) -> None:
        """Take experiences in."""
        first, self._count = self._count, self._count + len(experiences)
        if self._count > len(self._rest):
            self._grow()
        inside = slice(first, self._count)
        terms = [each.reward for each in experiences]
        self._outcome[inside] = [(each.outcome.latency_ratio, each.outcome.cost_ratio) for each in experiences]
        self._rest[inside] = [each.total - each.pareto for each in terms]
        self._bucket[inside] = [each.load_bucket for each in experiences]
        self._stale = self._stale or len(experiences) > _FRESH_MOST
        if not self._stale:
            self._fresh.update(range(first, self._count))

    def remove(self, place: int) -> None:
        """Forget a row; the last one takes its place."""
        last = self._count - 1
        for column in (self._outcome, self._rest, self._bucket, self._reward):
            column[place] = column[last]
        self._fresh.discard(place)
        if last in self._fresh:
            self._fresh.discard(last)
            if place != last:
                self._fresh.add(place)
        self._count = last

    def rewards(self, frontiers: Frontiers, tuning: Tuning) -> tuple[Vector, int]:
        """The reward of each experience with the Pareto term of today, and how many were judged for it."""
        measure = (tuning.frontier_scope, tuning.distance)
        if self._measure != measure or self._stale or len(self._fresh) > _FRESH_MOST:
            self._measure, self._judged, fresh = measure, {}, np.arange(self._count)
        else:
            fresh = np.array(sorted(self._fresh), dtype=np.intp)
        whole, judged = tuning.frontier_scope == "global", 0
        moved = self._moved(frontiers, tuning)
        for key in moved:
            rows = np.arange(self._count) if whole else np.flatnonzero(self._bucket[: self._count] == key)
            judged += self._judge(rows, frontiers.at(key), tuning)
            self._judged[key] = frontiers.at(key)
        keys = np.full(len(fresh), GLOBAL) if whole else self._bucket[fresh]
        for key in np.unique(keys).tolist():
            if key not in moved:
                judged += self._judge(fresh[keys == key], frontiers.at(key), tuning)
        self._fresh.clear()
        self._stale = False
        return self._reward[: self._count], judged

    def _moved(self, frontiers: Frontiers, tuning: Tuning) -> list[int]:
        keys = {*frontiers.by_bucket, *self._judged}
        wanted = {GLOBAL} & keys if tuning.frontier_scope == "global" else keys - {GLOBAL}
        return [key for key in wanted if frontiers.at(key) != self._judged.get(key, _NOTHING)]

    def _judge(self, rows: Places, frontier: Frontier, tuning: Tuning) -> int:
        if len(rows) <= _FEW:
            for row in rows.tolist():
                outcome = Outcome(*self._outcome[row].tolist())
                self._reward[row] = self._rest[row] + pareto_term(outcome, frontier, tuning.distance)
            return len(rows)
        for start in range(0, len(rows), _CHUNK):
            some = rows[start : start + _CHUNK]
            self._reward[some] = self._rest[some] + pareto_terms(self._outcome[some], frontier, tuning.distance)
        return len(rows)

    def _grow(self) -> None:
        size = max(64, 2 * len(self._rest), self._count)
        for name in ("_outcome", "_rest", "_bucket", "_reward"):
            old = getattr(self, name)
            new = np.zeros((size, *old.shape[1:]), dtype=old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)


def pareto_terms(outcomes: Vector, frontier: Frontier, distance: str) -> Vector:
    """``reward.pareto_term`` of many outcomes.

    Args:
        outcomes: (ℓ, c) of each, (n, 2).
        frontier: What they are compared with.
        distance: As in the tuning.
    """
    x, y = np.minimum(outcomes[:, 0], 2.0) / 2.0, outcomes[:, 1]
    if not frontier.points:
        return 1.0 + np.maximum(REFERENCE[0] - x, 0.0) * np.maximum(REFERENCE[1] - y, 0.0)
    points = np.array(frontier.points)
    place = np.searchsorted(points[:, 0], outcomes[:, 0], side="right") - 1
    best = points[place]
    accepted = (place < 0) | (best[:, 1] > y) | (best == outcomes).all(axis=1)
    nearest = np.full(len(outcomes), np.inf)
    for latency, cost in frontier.points:
        dx, dy = x - min(latency, 2.0) / 2.0, y - cost
        if distance == "igd+":
            dx, dy = np.maximum(dx, 0.0), np.maximum(dy, 0.0)
        np.minimum(nearest, dx * dx + dy * dy, out=nearest)
    terms = 0.8 / (1.0 + np.sqrt(nearest))
    # Those on the frontier are few: outcomes that stand on it themselves, or equal one that does.
    standing, which = np.unique(outcomes[accepted], axis=0, return_inverse=True)
    shares = np.array([frontier.contribution((each[0], each[1])) for each in standing.tolist()])
    terms[accepted] = 1.0 + shares[which.reshape(-1)] if len(standing) else terms[accepted]
    return np.asarray(terms)
