"""Does the built-in policy learn? ``python -m benchmarks.learning [--only BAR] [--seeds N] [--quick]``; exits 1 where a bar is missed.

Simulated world, built-in policy with its defaults, no language model. Every policy meets the same arrivals, demands and cold starts per
seed; differences are paired by seed and shown with 95 % intervals. Settings were chosen on other seeds than those shown here.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable, Sequence
from multiprocessing.pool import Pool
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.learning.ablations import ablations, ablations_jobs
from benchmarks.learning.bars import BARS, Job
from benchmarks.learning.runs import Run, Static, run, size
from benchmarks.learning.verdicts import Sheet
from controller.lifeline import die_with_parent

__all__ = ["evaluate", "main"]

FIRST_SEED = 501
_WIDTH = 150


def main(
    only: Annotated[
        list[str] | None, typer.Option(help="One of " + ", ".join(BARS) + ", ablations; several times.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many.", min=2, max=100)] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Two seeds: a look, no verdict to rely on.")] = False,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 2,
    first_seed: Annotated[int, typer.Option(help="Of the seeds; tuning used others.", min=0)] = FIRST_SEED,
) -> None:
    """Measure the bars and the ablations."""
    chosen = [name for name in (*BARS, "ablations") if not only or name in only]
    if only and (unknown := set(only) - set(chosen)):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: one of {', '.join(BARS)}, ablations")
    numbers = list(range(first_seed, first_seed + (2 if quick else seeds)))
    console, began = Console(width=_WIDTH), time.monotonic()
    jobs = [job for name in chosen for job in (BARS[name].jobs(numbers) if name in BARS else ablations_jobs(numbers))]
    results = evaluate(jobs, workers)
    reached = True
    for name in chosen:
        sheet = BARS[name].judge(results, numbers) if name in BARS else ablations(results, numbers)
        console.print(_table(sheet))
        reached &= sheet.reached
    console.print(f"{len(set(jobs))} runs, seeds {numbers[0]} to {numbers[-1]}, {time.monotonic() - began:.0f} s")
    raise typer.Exit(0 if reached else 1)


def evaluate(jobs: Iterable[Job], workers: int) -> dict[Job, Any]:
    """Run each job once. Jobs of one pipeline, workload and seed go to one process, which remembers what they share."""
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for job in dict.fromkeys(jobs):
        groups.setdefault(_shared(job), []).append(job)
    # The longest first, so that no process is left alone with one at the end.
    ordered = sorted(groups.values(), key=lambda group: -sum(_length(job) for job in group))
    if workers == 1:
        return {job: result for group in ordered for job, result in _run_group(group)}
    pool: Pool = multiprocessing.get_context("spawn").Pool(workers, initializer=die_with_parent)
    with pool:
        return {job: result for done in pool.imap_unordered(_run_group, ordered) for job, result in done}


def _shared(job: Job) -> tuple[Any, ...]:
    if isinstance(job, Run) and job.workload.startswith("bursts"):
        return (job.pipeline, job.workload)
    return (job.pipeline, job.workload, job.seed)


def _length(job: Job) -> float:
    return job.duration_s * (3.0 if isinstance(job, Static) else 1.0)


def _run_group(group: Sequence[Job]) -> list[tuple[Job, Any]]:
    return [(job, size(job)[0] if isinstance(job, Static) else run(job)) for job in group]


def _table(sheet: Sheet) -> Table:
    table = Table(title=sheet.title, title_justify="left")
    for name in ("what", "figure, 95 % interval", "bar", "verdict"):
        table.add_column(name, overflow="fold")
    for line in sheet.lines:
        verdict = "" if line.reached is None else "reached" if line.reached else "MISSED"
        table.add_row(line.what, line.figure, line.bar, verdict)
    return table


if __name__ == "__main__":
    typer.run(main)
