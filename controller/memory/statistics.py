"""What a memory amounts to, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controller.experience import Experience
from controller.memory.archive import frontier_of

__all__ = ["QUANTILES", "Statistics", "statistics_of"]

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of one pipeline's readable experiences."""

    experiences: int
    oldest_s: float | None
    newest_s: float | None
    rewards: tuple[float, ...]
    """At QUANTILES; empty without experiences."""
    surprisals: tuple[float, ...]
    frontier: int
    """Experiences on the frontier of their load bucket."""
    load_buckets: int
    policies: tuple[tuple[str, int], ...]
    """Who decided, most frequent first."""


def statistics_of(experiences: Sequence[Experience]) -> Statistics:
    """Sum experiences up.

    Args:
        experiences: Oldest first.
    """
    by: dict[str, int] = {}
    for each in experiences:
        by[each.policy] = by.get(each.policy, 0) + 1
    return Statistics(
        experiences=len(experiences),
        oldest_s=experiences[0].time_s if experiences else None,
        newest_s=experiences[-1].time_s if experiences else None,
        rewards=_quantiles([each.reward.total for each in experiences]),
        surprisals=_quantiles([each.surprisal for each in experiences]),
        frontier=len(frontier_of(experiences)),
        load_buckets=len({each.load_bucket for each in experiences}),
        policies=tuple(sorted(by.items(), key=lambda item: (-item[1], item[0]))),
    )


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.quantile(values, QUANTILES)) if values else ()
