"""Which experiences to forget when memory is full: those that taught least, never a frontier point, never the newest."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence

from controller.experience import Experience

__all__ = ["NEWEST_KEPT", "victims"]

NEWEST_KEPT = 50
"""Rounds that stay whatever they taught (25 minutes): the regression must see the present."""


def victims(experiences: Sequence[Experience], frontier: Collection[str], capacity: int) -> tuple[str, ...]:
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
    chosen = heapq.nsmallest(excess, candidates, key=lambda e: (e.surprisal, e.time_s, e.id))
    return tuple(e.id for e in chosen)
