"""The same comparison on several seeds: means, and differences paired by seed with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controller.simulation.statistics import Interval, RunSummary, mean_interval, paired_interval

__all__ = ["REPEAT_COLUMNS", "repeat_rows"]

REPEAT_COLUMNS = ("policy", "$/h", "misses", "P99", "$/h against the first", "misses against the first")


def repeat_rows(runs: Mapping[str, Sequence[RunSummary]]) -> list[tuple[str, ...]]:
    """A row per policy, each against the first one.

    Args:
        runs: By policy, one summary per seed, in the same order of seeds for all; at least two seeds.
    """
    first = next(iter(runs.values()))
    rows: list[tuple[str, ...]] = []
    for name, found in runs.items():
        cost = mean_interval([run.effective_usd_per_hour for run in found])
        misses = mean_interval([run.miss_ratio for run in found])
        p99 = mean_interval([run.p99_s for run in found])
        against = ("", "")
        if found is not first:
            base = [run.effective_usd_per_hour for run in first]
            more = paired_interval([run.effective_usd_per_hour for run in found], base)
            worse = paired_interval([run.miss_ratio for run in found], [run.miss_ratio for run in first])
            against = (_told(more, 1.0, " $", 2), _told(worse, 100.0, " pt", 2))
        rows.append((name, f"{cost.mean:.2f}", f"{100 * misses.mean:.2f} %", f"{1000 * p99.mean:.0f} ms", *against))
    return rows


def _told(found: Interval, scale: float, unit: str, digits: int) -> str:
    low, mean, high = (f"{scale * value:+.{digits}f}" for value in (found.low, found.mean, found.high))
    return f"{mean}{unit} [{low}, {high}]"
