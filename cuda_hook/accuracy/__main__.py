"""``python -m cuda_hook.accuracy``: runs every measurement, prints the table and exits 1 where a bar is missed."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from cuda_hook.accuracy.cases import OVERLAP_BAR, Bench, live_change, pair, siblings, single, unslowed
from cuda_hook.accuracy.container import hook_library
from cuda_hook.accuracy.ideal import LONG_KERNEL_MS
from cuda_hook.accuracy.overhead import overhead
from cuda_hook.accuracy.shapes import OVERLAPPING, PAIR_SHAPES, RATES, SHAPES, SYNCED, Shape
from cuda_hook.accuracy.verdict import Figure, Verdict, table

__all__ = ["main"]

GROUPS = ("single", "overlap", "change", "unslowed", "siblings", "pairs", "overhead")
_ATTEMPTS = 3


Rows = Callable[[Bench], Sequence[Verdict]]
"""Runs a measurement and gives its rows."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement and what it is to be run on."""

    group: str
    run: Rows
    name: str = ""
    """What --match looks into."""
    alone: bool = False
    """Whether it must not share the host with another measurement."""
    arbiter: str = "fifo"
    agent: bool = False


def _measurement(
    group: str,
    case: Callable[..., Verdict],
    *arguments: object,
    alone: bool = False,
    arbiter: str = "fifo",
    agent: bool = False,
) -> Measurement:
    words = [item.name if isinstance(item, Shape) else str(item) for item in arguments]
    where = [arbiter, "with agent" if agent else "without agent"] if group in ("pairs", "overlap") else []
    return Measurement(
        group, lambda bench: [case(bench, *arguments)], " / ".join([*words, *where]), alone, arbiter, agent
    )


def _measurements() -> list[Measurement]:
    found = [_measurement("single", single, *one) for one in itertools.product(SHAPES, RATES)]
    for rate in (0.3, 0.8):
        for shape, count, arbiter in (
            (OVERLAPPING[0], 1, "concurrent"),
            (OVERLAPPING[1], 1, "concurrent"),
            (OVERLAPPING[1], 4, "concurrent"),
            (OVERLAPPING[1], 4, "mps"),
        ):
            found.append(_measurement("overlap", siblings, shape, rate, count, OVERLAP_BAR, arbiter=arbiter))
    for shape in SHAPES:
        found += [_measurement("change", live_change, shape, *rates) for rates in ((0.3, 0.8), (0.8, 0.3))]
    found += [
        _measurement("unslowed", unslowed, *arguments, alone=True)
        for arguments in (
            ("kernel:1000:8192:sync:pause=3200", 0.3, 400),
            ("kernel:200:132:burst=5:sync:pause=9000", 0.2, 250),
            ("kernel:5000:132:sync:pause=15000", 0.5, 100),
            ("kernel:1000:8192:sync", 1.0, 1000),
        )
    ]
    for count, shape, rate in itertools.product((2, 4, 8), (SHAPES[0], SHAPES[2]), (0.3, 0.8)):
        found.append(_measurement("siblings", siblings, shape, rate, count))
    for agent, arbiter in itertools.product((True, False), ("fifo", "rr")):
        for shapes in itertools.product(PAIR_SHAPES, repeat=2):
            found.append(_measurement("pairs", pair, *shapes, arbiter=arbiter, agent=agent))
    short, middle, long, longest = *PAIR_SHAPES, SHAPES[4]
    for arbiter in ("fifo", "rr"):
        for shapes in ((longest, middle), (middle, longest), (longest, long)):
            found.append(_measurement("pairs", pair, *shapes, arbiter=arbiter))
        for first, second, counts in (
            (middle, middle, (2, 1)),
            (long, middle, (2, 1)),
            (middle, long, (1, 4)),
            (short, long, (4, 2)),
        ):
            found.append(_measurement("pairs", pair, first, second, 0, counts, arbiter=arbiter))
        # Who waits after so little cannot ask for more beside another's queue.
        for shapes, rates in (((SYNCED, middle), (0.1, 0.6)), ((middle, SYNCED), (0.6, 0.1))):
            found.append(_measurement("pairs", pair, *shapes, 0, (1, 1), rates, arbiter=arbiter, agent=True))
    for arbiter in ("fifo", "rr"):
        for bias in (-100, 100):
            found.append(_measurement("pairs", pair, *PAIR_SHAPES[:2], bias, arbiter=arbiter, agent=True))
    found.append(Measurement("overhead", overhead, "overhead", alone=True))
    return found


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"Groups to run, of {', '.join(GROUPS)}; default all.")] = None,
    match: Annotated[
        str, typer.Option(help="Run only cases whose words contain this, such as '50 ms' or 'rr / with agent'.")
    ] = "",
    seconds: Annotated[float, typer.Option(min=2, help="Measured time of a case in s, after settling.")] = 6.0,
    jobs: Annotated[int, typer.Option(min=1, help="Measurements at once; each has a GPU of its own.")] = 2,
) -> None:
    """Measure how exactly the hook holds a share of GPU time, on the simulated GPU."""
    if not hook_library().exists():
        typer.echo(f"{hook_library()} is not built; run: make hook", err=True)
        raise typer.Exit(2)
    wanted = [m for m in _measurements() if (not only or m.group in only) and match in m.name]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sair-accuracy-") as directory:
        root = Path(directory)
        numbered = list(enumerate(wanted))

        def run(item: tuple[int, Measurement], turn: str = "1") -> Sequence[Verdict]:
            verdicts = _repeat(item[1], root / turn / str(item[0]), seconds)
            for verdict in verdicts:
                mark = "ok" if verdict.is_met else "MISSED"
                typer.echo(f"[{time.monotonic() - started:5.0f} s] {mark:6} {verdict.case}", err=True)
            return verdicts

        with ThreadPoolExecutor(jobs) as pool:
            beside = [item for item in numbered if not item[1].alone]
            found = list(zip(beside, pool.map(run, beside), strict=True))
        found += [(item, run(item)) for item in numbered if item[1].alone]
        verdicts = [
            verdict
            for item, first in found
            for verdict in (first if _reached(first) else _both_told(first, run(item, "2")))
        ]
    typer.echo("\n".join(table(verdicts)))
    twice = sum(bool(verdict.note) for verdict in verdicts)
    missed = [verdict for verdict in verdicts if not verdict.is_met or not verdict.is_conclusive]
    typer.echo("")
    typer.echo(
        f"{len(verdicts) - len(missed)} of {len(verdicts)} rows hold, {twice} of them measured twice: a miss is measured once more, "
        f"alone, and counts if it is one again. Shares are the simulated device's own record. Kernels longer "
        f"than {LONG_KERNEL_MS[1000]:.0f} ms (1 s windows) and {LONG_KERNEL_MS[100]:.0f} ms (100 ms windows) are held to the ideal "
        "periodic limiter's error + 1 point. 'starved': windows left out because the host did not run the application."
    )
    raise typer.Exit(1 if missed else 0)


def _reached(verdicts: Sequence[Verdict]) -> bool:
    return all(verdict.is_met and verdict.is_conclusive for verdict in verdicts)


def _both_told(first: Sequence[Verdict], second: Sequence[Verdict]) -> Sequence[Verdict]:
    """The second run's rows, each with what the first missed."""
    missed = "; ".join(
        f"{figure.name} {figure}" for verdict in first for figure in verdict.figures if not figure.is_met
    )
    return [replace(verdict, note=f"(first run: {missed or 'host starved'})") for verdict in second]


def _repeat(measurement: Measurement, directory: Path, seconds: float) -> Sequence[Verdict]:
    """Run a measurement again while the host starves it: what cannot be judged must not pass and not fail."""
    verdicts: Sequence[Verdict] = ()
    for attempt in range(_ATTEMPTS):
        bench = Bench(directory / str(attempt), seconds, measurement.agent, measurement.arbiter)
        try:
            verdicts = measurement.run(bench)
        except RuntimeError as error:
            return [
                Verdict(
                    f"failed: {measurement.group}",
                    f"{measurement.name}: {error}"[:200],
                    (Figure("failed", math.nan, 0.0),),
                )
            ]
        if all(verdict.is_conclusive for verdict in verdicts):
            break
    return verdicts


if __name__ == "__main__":
    typer.run(main)
