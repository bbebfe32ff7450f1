"""What each piece of the method adds: the policy without it, on recurring bursts and under a wrong prior. No bar: it is said as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.learning import suites
from benchmarks.learning.runs import Change, Run
from benchmarks.learning.verdicts import Sheet, interval, percent, points

__all__ = ["ablations", "ablations_jobs"]

_PIPELINE = "image-classification"
_BURSTS = ("bursts-regular", "bursts-precursor")
_SEEDS = 3
"""The first ones are enough for what has no bar."""


def _pairs(seeds: Sequence[int], change: Change) -> list[tuple[Run, Run]]:
    found = []
    for seed in seeds:
        for workload in _BURSTS:
            found.append(
                (suites.bursting(_PIPELINE, workload, seed, change), suites.bursting(_PIPELINE, workload, seed))
            )
        for workload in suites.WRONG:
            found.append(
                (
                    suites.wrong(_PIPELINE, workload, seed, change=change),
                    suites.wrong(_PIPELINE, workload, seed),
                )
            )
    return found


def ablations_jobs(seeds: Sequence[int]) -> list[Run]:
    """Every run."""
    return [job for change in suites.ABLATIONS.values() for pair in _pairs(seeds[:_SEEDS], change) for job in pair]


def ablations(results: Mapping[Any, Any], seeds: Sequence[int]) -> Sheet:
    """Without a piece, against with it."""
    sheet = Sheet(
        f"Ablations ({_PIPELINE}; regular bursts, bursts with a precursor, wrong prior): without it, against with it"
    )
    for name, change in suites.ABLATIONS.items():
        cost, misses = [], []
        for without, whole in _pairs(seeds[:_SEEDS], change):
            cost.append(results[without].usd_per_hour() / results[whole].usd_per_hour() - 1.0)
            misses.append(results[without].misses() - results[whole].misses())
        nothing = not interval(cost).excludes_zero and not interval(misses).excludes_zero
        sheet.add(name, f"{percent(cost)}, {points(misses)}", "", None)
        if nothing:
            sheet.add("", "adds nothing measurable here; it stays selectable")
    return sheet
