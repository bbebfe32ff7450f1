"""Figures against their bars, with paired intervals; a table per bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.learning.runs import Course
from controller.simulation.statistics import Interval, mean_interval

__all__ = ["COST_EVEN", "MISSES_EVEN", "Line", "Pairs", "Sheet", "interval", "percent", "points"]

COST_EVEN = 0.02
MISSES_EVEN = 0.003
"""Not worse: cost within 2 %, misses within 0.3 points."""


@dataclass(frozen=True, slots=True)
class Line:
    """One figure."""

    what: str
    figure: str
    bar: str = ""
    reached: bool | None = None
    """None for a figure without a bar."""


@dataclass(slots=True)
class Sheet:
    """A bar's table."""

    title: str
    lines: list[Line] = field(default_factory=list)

    def add(self, what: str, figure: str, bar: str = "", reached: bool | None = None) -> None:
        """Append a line."""
        self.lines.append(Line(what, figure, bar, reached))

    @property
    def reached(self) -> bool:
        """No line misses its bar."""
        return all(line.reached is not False for line in self.lines)


def interval(values: Sequence[float]) -> Interval:
    """Mean with its 95 % interval; all mean where there is one value."""
    if len(values) > 1:
        return mean_interval(values)
    return Interval(values[0], float("-inf"), float("inf"))


def percent(values: Sequence[float]) -> str:
    """A relative difference."""
    found = interval(values)
    return f"{100 * found.mean:+.1f} % [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def points(values: Sequence[float]) -> str:
    """A difference of misses, in points."""
    found = interval(values)
    return f"{100 * found.mean:+.2f} pt [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


@dataclass(slots=True)
class Pairs:
    """Ours against theirs, run by run on the same seed."""

    cost: list[float] = field(default_factory=list)
    """Relative differences."""
    misses: list[float] = field(default_factory=list)
    """Differences."""
    each: list[float] = field(default_factory=list)
    """Relative differences of the cost per request within the SLO."""

    def add(self, ours: Course, theirs: Course, since_s: float = 0.0) -> None:
        """One pair, from a moment on."""
        cost = ours.usd_per_hour(since_s) / theirs.usd_per_hour(since_s)
        self.cost.append(cost - 1.0)
        self.misses.append(ours.misses(since_s) - theirs.misses(since_s))
        self.each.append(cost * (1.0 - theirs.misses(since_s)) / max(1e-9, 1.0 - ours.misses(since_s)) - 1.0)

    def extend(self, other: Pairs) -> None:
        """Those of another."""
        self.cost += other.cost
        self.misses += other.misses
        self.each += other.each

    @property
    def better(self) -> bool:
        """A request within the SLO costs less, with an interval that excludes 0, and no more of them are missed."""
        return interval(self.each).high < 0 and float(np.mean(self.misses)) <= MISSES_EVEN

    @property
    def even(self) -> bool:
        """Not worse: cost within 2 %, misses within 0.3 points."""
        return float(np.mean(self.cost)) <= COST_EVEN and float(np.mean(self.misses)) <= MISSES_EVEN

    def __str__(self) -> str:
        return f"{percent(self.cost)}, {points(self.misses)}, per good request {percent(self.each)}"
