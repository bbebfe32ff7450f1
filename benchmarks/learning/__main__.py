"""Does the built-in policy learn? ``python -m benchmarks.learning [--only BAR] [--seeds N] [--quick]``; exits 1 where a bar is missed.

Simulated world, built-in policy with its defaults, no language model. Every policy meets the same arrivals, demands and cold starts per
seed; differences are paired by seed and shown with 95 % intervals. Settings were chosen on other seeds than those shown here.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.learning.ablations import ablations, ablations_jobs
from benchmarks.learning.bars import BARS
from benchmarks.learning.verdicts import Sheet
from benchmarks.learning.workers import evaluate

__all__ = ["main"]

FIRST_SEED = 501
_WIDTH = 150


def main(
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="One of " + ", ".join(BARS) + ", ablations; several times. All but the ablations by default."
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="How many; what varies most takes two or four times as many.", min=2, max=100)
    ] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Two seeds: a look, no verdict to rely on.")] = False,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 2,
    first_seed: Annotated[int, typer.Option(help="Of the seeds; tuning used others.", min=0)] = FIRST_SEED,
) -> None:
    """Measure the bars; the ablations, which have none, where they are asked for."""
    chosen = [name for name in (*BARS, "ablations") if name in (only or BARS)]
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
