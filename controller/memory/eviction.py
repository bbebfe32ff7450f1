"""Which experiences to forget when memory is full: those that taught least, never a frontier point, never the newest."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from controller.experience import Experience
from controller.frontier import Frontiers, point_of

__all__ = ["NEWEST_KEPT", "Queue", "Remembered", "holders", "victims"]

NEWEST_KEPT = 50
"""Rounds that stay whatever they taught (25 minutes): the regression must see the present."""


class Remembered(Protocol):
    """What a choice rests on: an experience, or what the indexes say of it."""

    @property
    def id(self) -> str:
        """Its id."""
        ...

    @property
    def time_s(self) -> float:
        """When it was."""
        ...

    @property
    def surprisal(self) -> float:
        """How much it taught."""
        ...


def holders(experiences: Iterable[Experience]) -> dict[str, Experience]:
    """Who stands on the frontier of its load bucket, by id: of those with the same outcome the newest, so that equal rounds do not pile up.

    Args:
        experiences: In any order; all there are, for a frontier of some says nothing.
    """
    frontiers, newest = Frontiers({}), dict[tuple[int, float, float], Experience]()
    for each in sorted(experiences, key=lambda one: (one.time_s, one.id)):
        point = point_of(each.outcome)
        frontiers = frontiers.add(each.load_bucket, point)
        newest[each.load_bucket, *point] = each
    return {
        each.id: each for (bucket, *_), each in newest.items() if point_of(each.outcome) in frontiers.at(bucket).points
    }


def victims(experiences: Sequence[Remembered], frontier: Collection[str], capacity: int) -> tuple[str, ...]:
    """Choose what to evict so that at most ``capacity`` experiences stay, as far as frontier and newest allow it.

    Args:
        experiences: All experiences of one pipeline, oldest first.
        frontier: Ids on a frontier.
        capacity: How many may stay.

    Returns:
        Ids, least surprising first; of two equally surprising the older.
    """
    excess = len(experiences) - capacity
    if excess <= 0:
        return ()
    candidates = [e for e in experiences[: max(0, len(experiences) - NEWEST_KEPT)] if e.id not in frontier]
    chosen = heapq.nsmallest(excess, candidates, key=_rank)
    return tuple(e.id for e in chosen)


class Queue:
    """``victims`` of a memory that is full and gains one experience a round: in the time of the one, not of all.

    Args:
        experiences: Those that are there already, oldest first.
    """

    def __init__(self, experiences: Iterable[Experience] = ()) -> None:
        self._newest: deque[str] = deque(maxlen=NEWEST_KEPT)
        self._waiting: list[tuple[float, float, str]] = []
        for each in experiences:
            self._newest.append(each.id)
            self._waiting.append(_rank(each))
        heapq.heapify(self._waiting)

    def add(self, experience: Experience) -> None:
        """Take in one that is newer than all."""
        self._newest.append(experience.id)
        heapq.heappush(self._waiting, _rank(experience))

    def excess(
        self, experiences: Mapping[str, Experience], frontier: Collection[str], capacity: int
    ) -> tuple[str, ...]:
        """Choose as ``victims`` does.

        Args:
            experiences: All there are, by id.
            frontier: Ids on a frontier.
            capacity: How many may stay.
        """
        gone: list[str] = []
        passed: list[tuple[float, float, str]] = []
        newest = set(self._newest)
        while self._waiting and len(experiences) - len(gone) > capacity:
            rank = heapq.heappop(self._waiting)
            known = experiences.get(rank[2])
            if known is None or _rank(known) != rank:
                continue  # written anew since, or gone already
            if rank[2] in newest or rank[2] in frontier:
                passed.append(rank)
            else:
                gone.append(rank[2])
        for rank in passed:
            heapq.heappush(self._waiting, rank)
        return tuple(gone)


def _rank(experience: Remembered) -> tuple[float, float, str]:
    return experience.surprisal, experience.time_s, experience.id
