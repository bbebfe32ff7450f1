"""What each piece of the method adds: the policy without it, on recurring bursts and under a wrong prior. No bar: it is said as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.learning import suites
from benchmarks.learning.runs import Run
from benchmarks.learning.verdicts import Sheet, interval, percent, points

__all__ = ["ablations", "ablations_jobs"]

_PIPELINE = "image-classification"
_BURSTS = ("bursts-regular", "bursts-precursor")
_SEEDS = 3
"""The first ones are enough for what has no bar."""


def _whole(seeds: Sequence[int]) -> list[Run]:
    found = []
    for seed in seeds[:_SEEDS]:
        found += [suites.bursting(_PIPELINE, workload, seed) for workload in _BURSTS]
        found += [suites.wrong(_PIPELINE, workload, seed) for workload in suites.WRONG]
    return found


def _without(seeds: Sequence[int]) -> dict[str, list[Run]]:
    """Of each piece the runs without it."""
    whole = _whole(seeds)
    found = {name: [replace(job, change=change) for job in whole] for name, change in suites.ABLATIONS.items()}
    return found | {"GPU shares fixed": [replace(job, fixed_share=True) for job in whole]}


def ablations_jobs(seeds: Sequence[int]) -> list[Run]:
    """Every run."""
    return [*_whole(seeds), *(job for jobs in _without(seeds).values() for job in jobs)]


def ablations(results: Mapping[Any, Any], seeds: Sequence[int]) -> Sheet:
    """Without a piece, against with it."""
    sheet = Sheet(
        f"Ablations ({_PIPELINE}; regular bursts, bursts with a precursor, wrong prior): without it, against with it"
    )
    whole = [results[job] for job in _whole(seeds)]
    for name, jobs in _without(seeds).items():
        without = [results[job] for job in jobs]
        cost = [one.usd_per_hour() / other.usd_per_hour() - 1.0 for one, other in zip(without, whole, strict=True)]
        misses = [one.misses() - other.misses() for one, other in zip(without, whole, strict=True)]
        nothing = not interval(cost).excludes_zero and not interval(misses).excludes_zero
        sheet.add(name, f"{percent(cost)}, {points(misses)}", "", None)
        if nothing:
            sheet.add("", "makes no measurable difference here; it stays selectable")
    return sheet
