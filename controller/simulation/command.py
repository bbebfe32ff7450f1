"""``sair simulate`` and ``sair demo``: the real controller against the simulated world, beside baselines on the same arrivals."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import AsyncResult, Pool
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from controller.journal import RoundReport
from controller.lifeline import die_with_parent
from controller.llm.client import ModelClient
from controller.llm.policy import LlmPolicy
from controller.llm.settings import load_model_settings
from controller.memory.embedded import embedded_server
from controller.memory.keys import Keys
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.method import Method
from controller.simulation.carry import bring, keep
from controller.simulation.contenders import CONTENDERS, DEMO_CONTENDERS, contend
from controller.simulation.live import LiveView
from controller.simulation.pipelines import GRAPHS, PIPELINES, pipeline_named
from controller.simulation.plant import Plant
from controller.simulation.repeat import REPEAT_COLUMNS, repeat_rows
from controller.simulation.report import COLUMNS, Report, ReportedRun, comparison_rows, write_report
from controller.simulation.session import Scenario, run_sair
from controller.simulation.workloads import WORKLOADS, trace, workload_named
from controller.state import Action, PipelineView
from controller.tuning import Tuning
from controller.worlds.simulated import real_time_pace
from sair.errors import InvalidInput
from sair.logs import configure
from sair.settings import load

__all__ = ["demo", "simulate"]

_DEMO_SPEED = 120.0
_SPARE_CORES = 1
_LINE_EVERY = 5
_PLAIN_WIDTH = 132


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for."""

    scenario: Scenario
    policies: tuple[str, ...]
    folder: Path
    redis_url: str
    speed: float
    """Simulated seconds per real second for somebody who watches; 0: as fast as it goes."""
    live: bool
    remember: Path | None = None
    """Where SAIR's memory comes from and goes to."""


_POLICIES = "sair or " + ", ".join(CONTENDERS)

Pipeline = Annotated[str, typer.Option(help="One of " + ", ".join([*PIPELINES, *GRAPHS]))]
Workload = Annotated[str, typer.Option(help="One of " + ", ".join(WORKLOADS))]
TraceFile = Annotated[
    Path | None,
    typer.Option(
        "--trace", help="Requests per second, one number a line, instead of a workload.", exists=True, dir_okay=False
    ),
]
Duration = Annotated[float, typer.Option(help="Simulated seconds.", min=60)]
Seed = Annotated[int, typer.Option(help="Of arrivals, demands, cold starts and probes.", min=0)]
Policies = Annotated[
    list[str] | None,
    typer.Option("--policy", help=f"{_POLICIES}; several times for several. Default: sair and the demo's baselines."),
]
Rate = Annotated[
    float | None, typer.Option(help="Base rate of the workload, requests per second; default: the pipeline's.", min=0.1)
]
Out = Annotated[Path, typer.Option(help="Folder for the report, the plots and the embedded server's data.")]
RedisUrl = Annotated[
    str,
    typer.Option(
        envvar="REDIS_URL", help="A Redis to keep the memory in; default: an embedded server.", show_default=False
    ),
]
Speed = Annotated[float, typer.Option(help="Simulated seconds per real second; 0: as fast as it goes.", min=0)]
Remember = Annotated[
    Path | None,
    typer.Option(
        help="A file of SAIR's memory to begin with, if it is there, and to write afterwards.", dir_okay=False
    ),
]
Seeds = Annotated[int, typer.Option(help="Run on so many seeds and show differences paired by seed.", min=1, max=100)]
ShowLive = Annotated[bool, typer.Option("--live/--no-live", help="Show the live view where there is a terminal.")]


def simulate(
    pipeline: Pipeline = "image-classification",
    workload: Workload = "ramp-burst",
    trace_file: TraceFile = None,
    duration: Duration = 1800.0,
    seed: Seed = 1,
    policy: Policies = None,
    rate: Rate = None,
    out: Out = Path("out/simulate"),
    redis_url: RedisUrl = "",
    speed: Speed = 0.0,
    live: ShowLive = True,
    remember: Remember = None,
    seeds: Seeds = 1,
) -> None:
    """Simulate a pipeline under a workload and compare policies on the same arrivals."""
    setup = pipeline_named(pipeline)
    series = (
        trace(trace_file, duration)
        if trace_file
        else workload_named(workload, rate or setup.base_rate_per_s, duration, seed)
    )
    chosen = tuple(policy) if policy else ("sair", *DEMO_CONTENDERS)
    for name in chosen:
        if name != "sair" and name not in CONTENDERS:
            raise InvalidInput("--policy", name, "one of sair, " + ", ".join(CONTENDERS))
    if seeds > 1:
        if remember is not None:
            raise InvalidInput("--remember", str(remember), "one seed: every seed of several begins without a memory")
        several = [
            Scenario(
                setup,
                series if trace_file else workload_named(workload, rate or setup.base_rate_per_s, duration, number),
                number,
            )
            for number in range(seed, seed + seeds)
        ]
        _repeat(several, chosen)
        return
    _run(Options(Scenario(setup, series, seed), chosen, out, redis_url, speed, live, remember))


def demo(out: Out = Path("out/demo"), redis_url: RedisUrl = "", seed: Seed = 1, live: ShowLive = True) -> None:
    """Watch SAIR scale a three-stage image classification through a ramp with a burst: 30 simulated minutes in a quarter of a minute."""
    setup = pipeline_named("image-classification")
    series = workload_named("ramp-burst", setup.base_rate_per_s, 1800.0, seed)
    _run(Options(Scenario(setup, series, seed), ("sair", *DEMO_CONTENDERS), out, redis_url, _DEMO_SPEED, live))


def _repeat(scenarios: Sequence[Scenario], names: Sequence[str]) -> None:
    """Every policy on every seed; SAIR with its built-in policy, without Redis."""
    configure("error", json=False)
    console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
    with _workers(len(scenarios) * len(names)) as pool, console.status("running …"):
        assert pool is not None  # noqa: S101 - there is something to do
        waiting = {
            name: [pool.apply_async(contend, (name, each.setup, each.series, each.seed)) for each in scenarios]
            for name in names
        }
        runs = {name: [each.get().summary for each in results] for name, results in waiting.items()}
    table = Table(title=f"{len(scenarios)} seeds from {scenarios[0].seed}; differences paired by seed, 95 % intervals")
    for place, name in enumerate(REPEAT_COLUMNS):
        table.add_column(name, justify="right" if place else "left", no_wrap=not place)
    for row in repeat_rows({found[0].policy: found for found in runs.values()}):
        table.add_row(*row)
    console.print(table)


def _run(options: Options) -> None:
    configure("error", json=False)
    console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
    try:
        asyncio.run(_compare(options, console))
    except KeyboardInterrupt:
        console.print("\nStopped; nothing is left running.")
        raise typer.Exit(130) from None


async def _compare(options: Options, console: Console) -> None:
    scenario, started = options.scenario, time.monotonic()
    names = [name for name in options.policies if name != "sair"]
    with _workers(len(names)) as pool:
        beside = (
            [pool.apply_async(contend, (name, scenario.setup, scenario.series, scenario.seed)) for name in names]
            if pool
            else []
        )
        runs: list[ReportedRun] = []
        if "sair" in options.policies:
            async with _memory(options) as memory:
                # Simulated time begins at 0 in every run, so an earlier run's memory would lie in the future.
                await memory.store.forget(scenario.setup.key)
                if options.remember is not None:
                    known = await bring(memory.store, options.remember, scenario.setup.view)
                    console.print(f"Begins with {known} experiences of earlier runs.", highlight=False)
                runs.append(await _sair(options, memory, beside, console))
                if options.remember is not None:
                    await keep(memory.store, options.remember, scenario.setup.key)
                await _show_memory(
                    memory, scenario.setup.key, options.folder / "redis", bool(options.redis_url), console
                )
        runs += await _collect(beside, console)
    _show_table(runs, console)
    report = Report(
        title=f"{scenario.setup.name} under {scenario.series.name}",
        facts=[
            ("pipeline", scenario.setup.name),
            (
                "workload",
                f"{scenario.series.name}, {scenario.series.duration_s:.0f} simulated seconds, seed {scenario.seed}",
            ),
            ("world", "simulated: a discrete-event simulation, no GPU was used"),
        ],
        runs=runs,
    )
    files = await asyncio.to_thread(write_report, report, options.folder)
    console.print(f"Report with plots: {files[0]}   ({time.monotonic() - started:.0f} s in all)")


async def _sair(
    options: Options, memory: MirroredMemory, beside: Sequence[AsyncResult[ReportedRun]], console: Console
) -> ReportedRun:
    scenario = options.scenario
    settings = load_model_settings(os.environ)
    model, who = None, "SAIR (built-in policy)"
    decider = "decided by the built-in in-context policy: no language model is configured (set OPENAI_BASE_URL or OPENAI_API_KEY)"
    if settings.configured:
        model, who = LlmPolicy(ModelClient(settings), settings), f"SAIR ({settings.model})"
        decider = f"decided by the language model {settings.model}, by the built-in policy where it fails"
    method = load(Method, os.environ)
    if method.changed:
        decider += "; method: " + ", ".join(f"{name} {value}" for name, value in method.changed.items())
    view = LiveView(
        f"SAIR · {scenario.setup.name} · {scenario.series.name} (simulated)", decider, scenario.series.duration_s
    )
    show_live = options.live and console.is_terminal
    tally = _Tally(view, None if show_live else console)
    pace = real_time_pace(options.speed) if options.speed and show_live else None

    def advanced(_plant: Plant, now: float) -> None:
        view.now_s = now
        waiting = sum(not each.ready() for each in beside)
        view.side = f"{waiting} baselines are still running on the same arrivals …" if waiting else ""

    try:
        if not show_live:
            console.print(f"{view.title}\n{decider}", highlight=False)
        with Live(view, console=console, refresh_per_second=8) if show_live else contextlib.nullcontext():
            run = await run_sair(
                scenario,
                memory,
                tuning=method.tuning(Tuning()),
                model=model,
                watcher=tally,
                pace=pace,
                on_advance=advanced,
                name=who,
            )
    finally:
        if model is not None:
            await model.close()
    return ReportedRun(run.summary, run.recording, tally.note())


class _Tally:
    """Counts who decided, so that no row claims a model that did not decide; prints lines where there is no terminal.

    Args:
        view: The live view.
        lines: Where to print every fifth round, None for nowhere.
    """

    def __init__(self, view: LiveView, lines: Console | None) -> None:
        self._view = view
        self._lines = lines
        self._deciders: Counter[str] = Counter()

    async def round_ended(self, report: RoundReport) -> None:
        """Count and pass on."""
        await self._view.round_ended(report)
        self._deciders[report.decision.policy if report.decision else "none"] += 1
        if self._lines is not None and report.round % _LINE_EVERY == 0:
            self._lines.print(self._view.line(), highlight=False, soft_wrap=True)

    async def about_to_act(self, report: RoundReport) -> None:
        """Nothing to count before it is done."""

    async def reflexed(self, view: PipelineView, time_s: float, action: Action) -> None:
        """Pass on."""
        await self._view.reflexed(view, time_s, action)

    def note(self) -> str:
        """Who decided how often."""
        return "decided by " + ", ".join(f"{who}: {count}" for who, count in sorted(self._deciders.items()))


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers itself
    die_with_parent()


@contextlib.contextmanager
def _workers(count: int) -> Iterator[Pool | None]:
    """Processes for the baselines; terminated on the way out, whatever happened."""
    if not count:
        yield None
        return
    size = min(count, max(1, (os.cpu_count() or 1) - _SPARE_CORES))
    pool = multiprocessing.get_context("spawn").Pool(size, initializer=_begin_worker)
    try:
        yield pool
    finally:
        pool.terminate()
        pool.join()


async def _collect(beside: Sequence[AsyncResult[ReportedRun]], console: Console) -> list[ReportedRun]:
    with console.status("waiting for the baselines on the same arrivals …"):
        return [await asyncio.to_thread(each.get) for each in beside]


@contextlib.asynccontextmanager
async def _memory(options: Options) -> AsyncIterator[MirroredMemory]:
    async with contextlib.AsyncExitStack() as stack:
        url = options.redis_url or await stack.enter_async_context(embedded_server(options.folder / "redis"))
        store = Store.from_url(url)
        stack.push_async_callback(store.close)
        await store.ensure_schema()
        yield MirroredMemory(store)


async def _show_memory(memory: MirroredMemory, key: str, folder: Path, url_given: bool, console: Console) -> None:
    """Print the redis-cli lines that read what was written."""
    keys, store = Keys(key), memory.store
    count = await store.count(key)
    newest = await store.top(key, "experiences", 1)
    lines = [
        f"ZCARD '{keys.experiences}'",
        *(f"HGETALL '{keys.experience(identifier)}'" for identifier, _time in newest),
        f"ZREVRANGE '{keys.rewards}' 0 4 WITHSCORES",
        f"ZREVRANGE '{keys.surprisals}' 0 4 WITHSCORES",
        f"HGETALL '{keys.frontier}'",
        f"XREVRANGE '{keys.decisions}' + - COUNT 3",
        f"HGETALL '{keys.controller}'",
    ]
    console.print(f"\nThe memory this run wrote: {count} experiences of {key}. Read it with")
    for line in lines:
        console.print(f"  redis-cli {line}", highlight=False, markup=False, soft_wrap=True)
    if not url_given:
        console.print(
            f"after  sair memory serve {folder}  in another terminal, which says the port and password.", markup=False
        )


def _show_table(runs: Sequence[ReportedRun], console: Console) -> None:
    table = Table(title="The same arrivals and demands for all, in a simulated world")
    for place, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if place else "left", no_wrap=not place)
    for row in comparison_rows([run.summary for run in runs]):
        table.add_row(*row)
    console.print(table)
    for run in runs:
        console.print(f"  {run.summary.policy}: {run.note}", style="dim", highlight=False, soft_wrap=True)
