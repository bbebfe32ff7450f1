"""What a controller spends, and whether it keeps its bars: ``python -m benchmarks.controller [--quick]``; exits 1 where one is missed.

Each is measured at three sizes, so that growth with the work shows:

- a round of the decision core by the size of the memory, alone;
- 10, 100 and 1,000 pipelines (quick: 10, 50, 200) in the Kubernetes world with scrapes, watches, Redis and status, as CPU time of the
  controller's process: a round, and what goes on every 2 s between two rounds. The API server and the pods are another process's;
- retrieval and the upkeep of surprisal, at 1e4, 1e5 and 1e6 experiences (quick: up to 2e5, for a million take a minute to make);
- bytes per experience in this process, at the same sizes;
- writing rounds to a real Redis and reading memories back;
- how many calls of a language model are under way, by how many pipelines want one.

Times are CPU time of one core where they are called so; run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

# One core is what the bars speak of; the library reads this when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from aiohttp import web
from prometheus_client import CollectorRegistry

from controller import round as rounds
from controller.cost import Prices
from controller.decision import Situation
from controller.experience import Experience, Outcome, RewardTerms
from controller.frontier import Frontiers
from controller.journal import RoundReport
from controller.knowledge import Knowledge, restore
from controller.llm.client import ModelBusy, ModelClient
from controller.llm.settings import ModelSettings
from controller.loop import PipelineLoop
from controller.memory.embedded import embedded_server
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.metrics import ControllerMetrics
from controller.observe.fetching import Fetcher
from controller.observe.scraper import Scraper
from controller.retrieval import Memory
from controller.simulation.pipelines import pipeline_named
from controller.simulation.plant import Plant
from controller.simulation.workloads import draw_arrivals, workload_named
from controller.state import HOLD, Action, PipelineView, StageDelta
from controller.status import StatusWriter
from controller.tuning import Tuning
from controller.watching import Watching
from controller.worlds.kubernetes import KubernetesWorld, WallClock
from controller.worlds.simulated import SimulatedWorld
from sair.errors import SairError
from sair.kube.client import Api
from sair.kube.events import Recorder
from sair.logs import configure

TUNING: Final = Tuning()
INTERVAL_S: Final = 30.0
BETWEEN: Final = INTERVAL_S / 2.0 - 1
"""How often the reflex looks between two rounds."""
STAGES: Final = ("preprocess", "inference", "postprocess")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    size: str
    value: float
    unit: str
    bar: float | None = None
    """Highest value that is good enough."""

    @property
    def missed(self) -> bool:
        """The bar is missed."""
        return self.bar is not None and not self.value <= self.bar

    def __str__(self) -> str:
        bar = "" if self.bar is None else f"{'MISSED' if self.missed else 'ok':>7}  at most {self.bar:g}"
        return f"{self.what:<44} {self.size:>18} {self.value:>12.3f} {self.unit:<22}{bar}"


def main() -> int:
    """Run all; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, under a minute")
    parser.add_argument("--only", choices=[*PARTS], action="append", help="a part alone; may be given several times")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    configure("error")
    rows: list[Row] = []
    began_s = time.monotonic()
    for name in options.only or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            for row in PARTS[name](options.quick, Path(folder)):
                rows.append(row)
                if not options.json:
                    print(row, flush=True)
    if options.json:
        json.dump([{field: getattr(row, field) for field in row.__slots__} for row in rows], sys.stdout, indent=1)
    missed = [row for row in rows if row.missed]
    print(f"{time.monotonic() - began_s:.0f} s; " + (f"{len(missed)} bars missed" if missed else "all bars kept"))
    return 1 if missed else 0


def drawn(count: int, width: int, seed: int = 0) -> Iterator[Experience]:
    """Rounds of a pipeline whose load wanders: contexts on four dimensions with noise, rewards that follow them, some odd."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(4, width)) * 0.1
    actions = [HOLD, *(Action.of([StageDelta(s, gpu_milli=m)]) for s in STAGES for m in (-100, 100, 200))]
    place = np.zeros(4)
    for first in range(0, count, 10_000):
        size = min(10_000, count - first)
        walk = place + np.cumsum(rng.normal(size=(size, 4)) * 0.05, axis=0)
        place = walk[-1]
        contexts = 0.5 + np.sin(walk) @ mix + rng.normal(size=(size, width)) * 0.02
        rewards = np.sin(3 * walk[:, 0]) - 1.0 + 0.1 * rng.normal(size=size)
        rewards += (rng.random(size) < 0.01) * rng.normal(size=size)
        for row in range(size):
            number = first + row
            yield Experience(
                id=f"{number:08d}-0",
                pipeline="bench/shop",
                round=number,
                time_s=1.7e9 + 30.0 * number,
                context=tuple(contexts[row].tolist()),
                action=actions[number % len(actions)],
                before=(),
                load_bucket=number % 20,
                previous_latency_ratio=0.8,
                outcome=Outcome(0.5 + 0.4 * abs(float(rewards[row])), 0.3, 0.0),
                reward=RewardTerms(float(rewards[row]), 0.0, 0.0, 0.0, 0.0),
                surprisal=float(abs(rewards[row])),
                predicted_reward=-1.0,
                policy="in-context",
                arrivals_per_s=50.0,
            )


def median_ms(samples: Sequence[float]) -> float:
    """Median of seconds, as milliseconds."""
    return float(np.median(samples)) * 1000


# The decision core


@dataclass
class _Seen:
    reports: list[RoundReport]

    async def round_ended(self, report: RoundReport) -> None:
        self.reports.append(report)

    async def about_to_act(self, report: RoundReport) -> None:
        pass

    async def reflexed(self, view: PipelineView, time_s: float, action: Action) -> None:
        pass


async def _lived(folder: Path) -> tuple[Knowledge, list[RoundReport]]:
    """Forty rounds in the simulated world."""
    setup = pipeline_named("image-classification")
    series = workload_named("burst", setup.base_rate_per_s, 1500.0, 1)
    world = SimulatedWorld([Plant(setup, draw_arrivals(series, 1), 1)])
    seen = _Seen([])
    async with embedded_server(folder) as url:
        store = Store.from_url(url)
        loop = PipelineLoop(setup.key, world, MirroredMemory(store), Tuning(prices=setup.prices), watcher=seen)
        await loop.run(lambda: len(seen.reports) >= 40)
        await world.clock.aclose()
        await store.close()
    return loop.knowledge, seen.reports


def core(quick: bool, folder: Path) -> Iterator[Row]:
    """A round of the decision core."""
    lived, reports = asyncio.run(_lived(folder))
    last = next(report for report in reversed(reports) if report.observation and report.room)
    assert last.observation is not None
    assert last.room is not None
    width = len(lived.memory.experiences[0].context)
    situation = Situation(last.view, last.observation, last.room, last.time_s)
    for size in (100, 1_000, 10_000):
        knowledge = replace(restore(last.view, None, drawn(size, width), TUNING), learned=lived.learned)
        rng, spent = np.random.default_rng(0), []
        for number in range(20 if quick else 100):
            seen = replace(last.observation, time_s=last.time_s + 30.0 * (number + 1))
            began_s = time.process_time()
            knowledge, _ = rounds.take_in(knowledge, last.view, seen, TUNING)
            menu = rounds.candidates(knowledge, replace(situation, observation=seen, now=seen.time_s), TUNING)
            decision = rounds.admit(knowledge, menu, rounds.choose(knowledge, menu, TUNING, rng), TUNING)
            knowledge = rounds.applied(knowledge, menu.case.situation, replace(decision, action=HOLD), (), TUNING)
            spent.append(time.process_time() - began_s)
        yield Row("round of the decision core, CPU", f"{size} experiences", median_ms(spent), "ms")
        yield Row("  rounds per second of one core", f"{size} experiences", 1000 / median_ms(spent), "/s")


# The Kubernetes world


@contextlib.asynccontextmanager
async def _paper(pipelines: int, folder: Path) -> AsyncIterator[Path]:
    """The other process; gives a kubeconfig for it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.paper_cluster", str(pipelines), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        kubeconfig = folder / "kubeconfig"
        named = [
            {"name": "paper", "cluster": {"server": f"http://127.0.0.1:{port}"}},
            {"name": "paper", "user": {}},
            {"name": "paper", "context": {"cluster": "paper", "user": "paper"}},
        ]
        kinds = dict(zip(("clusters", "users", "contexts"), ([each] for each in named), strict=True))
        kubeconfig.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "paper", **kinds}))
        yield kubeconfig
    finally:
        process.kill()
        await process.wait()


async def _cpu_of(calls: Sequence[Callable[[], Awaitable[object]]], at_once: int = 32) -> float:
    """CPU seconds of this process per call."""
    waiting = iter(calls)

    async def worker() -> None:
        for call in waiting:
            await call()

    began_s = time.process_time()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return (time.process_time() - began_s) / len(calls)


async def _in_kubernetes(pipelines: int, quick: bool, folder: Path) -> list[Row]:
    async with contextlib.AsyncExitStack() as stack:
        kubeconfig = await stack.enter_async_context(_paper(pipelines, folder))
        url = await stack.enter_async_context(embedded_server(folder))
        store = Store.from_url(url)
        stack.push_async_callback(store.close)
        api = await stack.enter_async_context(await Api.from_environment(kubeconfig))
        fetcher = await stack.enter_async_context(Fetcher())
        watching, clock = Watching(api), WallClock()
        running = asyncio.create_task(watching.run())
        stack.callback(running.cancel)
        async with asyncio.timeout(60.0):
            while watching.why_not_synced() is not None:  # noqa: ASYNC110  # another process does not set our events
                await asyncio.sleep(0.05)
        scraper = Scraper(fetcher, clock.now)
        stack.push_async_callback(scraper.aclose)
        world = KubernetesWorld(api, watching, scraper, Prices(), clock=clock)
        metrics, recorder = ControllerMetrics(CollectorRegistry()), Recorder(api, "controller", "bench")
        memory = MirroredMemory(store)
        status = StatusWriter(api, world, recorder, memory, ModelSettings(), metrics)
        views = [found.view for found in world.found().values()]
        loops = [PipelineLoop(view.key, world, memory, TUNING, watcher=status) for view in views]
        both = list(zip(loops, views, strict=True))
        await _cpu_of([partial(loop.recall, view) for loop, view in both])
        await _cpu_of([partial(loop.reflex, view) for loop, view in both])
        await asyncio.sleep(1.5)
        turns = max(1, (100 if quick else 300) // pipelines)
        # The first rounds know nothing and do less.
        for _ in range(2):
            await asyncio.sleep(1.1)
            await _cpu_of([partial(loop.round, view) for loop, view in both])
        round_s, between_s = [], []
        for _ in range(turns):
            await asyncio.sleep(1.1)
            round_s.append(await _cpu_of([partial(loop.round, view) for loop, view in both]))
            await asyncio.sleep(1.1)
            reflex_s = await _cpu_of([partial(loop.reflex, view) for loop, view in both])
            began_s = time.process_time()
            world.found()
            world.forget()
            for view in views:
                await world.settle(view.key)
            between_s.append(reflex_s + (time.process_time() - began_s) / pipelines)
        assert not scraper.problems, next(iter(scraper.problems.values()))
    each_s = float(np.median(round_s)) + BETWEEN * float(np.median(between_s))
    size = f"{pipelines} pipelines"
    return [
        Row("round in the Kubernetes world, CPU", size, float(np.median(round_s)) * 1000, "ms"),
        Row("look every 2 s (scrape, reflex, tend), CPU", size, float(np.median(between_s)) * 1000, "ms"),
        Row(
            "  1,000 such pipelines in 30 s, CPU",
            size,
            1000 * each_s,
            "s of one core",
            INTERVAL_S if pipelines >= 200 else None,
        ),
    ]


def interval(quick: bool, folder: Path) -> Iterator[Row]:
    """Pipelines in the Kubernetes world."""
    for pipelines in (10, 50, 200) if quick else (10, 100, 1000):
        place = folder / str(pipelines)
        place.mkdir()
        yield from asyncio.run(_in_kubernetes(pipelines, quick, place))


# The memory


def retrieval(quick: bool, folder: Path) -> Iterator[Row]:
    """Retrieval and upkeep."""
    sizes = (10_000, 50_000, 200_000) if quick else (10_000, 100_000, 1_000_000)
    bars = {sizes[0]: 1.0, sizes[-1]: 30.0}
    width = 36
    for size in sizes:
        memory, found = Memory(STAGES), []
        began_s = time.perf_counter()
        memory.load(drawn(size, width), TUNING)
        load_s = time.perf_counter() - began_s
        spent = []
        for each in drawn(40 if quick else 200, width, seed=1):
            fresh = replace(each, id=f"new-{each.id}")
            began_s = time.perf_counter()
            memory.add(fresh, TUNING)
            shown = memory.retrieve(fresh.context, Frontiers({}), TUNING)
            spent.append(time.perf_counter() - began_s)
            found.append(len(shown))
        assert min(found) > 0
        yield Row("retrieval with upkeep of surprisal", f"{size} experiences", median_ms(spent), "ms", bars.get(size))
        yield Row("  the slowest twentieth from", f"{size} experiences", float(np.quantile(spent, 0.95)) * 1000, "ms")
        yield Row("  all taken in at once", f"{size} experiences", load_s, "s")
        del memory
        gc.collect()


def growth(quick: bool, folder: Path) -> Iterator[Row]:
    """Memory of this process."""
    for size in (1_000, 5_000, 20_000) if quick else (1_000, 10_000, 100_000):
        gc.collect()
        tracemalloc.start()
        memory = Memory(STAGES)
        memory.load(drawn(size, 36), TUNING)
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        yield Row("memory of the working copy", f"{size} experiences", used / size / 1024, "KiB per experience", 8.0)
        del memory


async def _redis(quick: bool, folder: Path) -> list[Row]:
    rows = []
    async with embedded_server(folder) as url:
        store = Store.from_url(url)
        for size in (1_000, 10_000, 100_000) if not quick else (1_000, 5_000, 20_000):
            known = list(drawn(size, 36))
            began_s = time.perf_counter()
            await store.restore("bench/shop", known, {"round": "1"}, {})
            written_s = time.perf_counter() - began_s
            began_s = time.perf_counter()
            loaded = await store.load("bench/shop", size)
            read_s = time.perf_counter() - began_s
            assert len(loaded.experiences) == size, loaded.damaged[:1]
            rows.append(Row("Redis: written", f"{size} experiences", size / written_s, "experiences/s"))
            rows.append(
                Row("Redis: read back and checked", f"{size} experiences", read_s / size * 1e6, "µs each", 400.0)
            )
            mirror = MirroredMemory(store, capacity=size)
            await mirror.load("bench/shop")
            spent = []
            for each in drawn(30, 36, seed=2):
                fresh = replace(each, id=f"9{each.id}", time_s=each.time_s + 1e8)
                began_s = time.process_time()
                await mirror.save([fresh], "bench/shop", {"round": "2"}, {})
                spent.append(time.process_time() - began_s)
            rows.append(
                Row("Redis: a round saved at capacity, CPU", f"{size} experiences", median_ms(spent), "ms", 10.0)
            )
            await store.forget("bench/shop")
        await store.close()
    return rows


def redis(quick: bool, folder: Path) -> Iterator[Row]:
    """The store on a real server."""
    yield from asyncio.run(_redis(quick, folder))


# The language model


async def _model(callers: int) -> list[Row]:
    under_way, most = 0, 0

    async def answer(_request: web.Request) -> web.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.05)
        under_way -= 1
        message = {"role": "assistant", "content": "{}"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return web.json_response(
            {"id": "1", "object": "chat.completion", "created": 1, "model": "any", "choices": [choice]}
        )

    application = web.Application()
    application.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    settings = ModelSettings(base_url=url, enforcement="text", concurrency=16)
    client = ModelClient(settings)
    answered, busy = 0, 0

    async def call() -> None:
        nonlocal answered, busy
        try:
            await client.complete([{"role": "user", "content": "?"}], {}, 10.0, lambda _usage: None)
            answered += 1
        except ModelBusy:
            busy += 1
        except SairError as error:
            raise SystemExit(f"the server of this benchmark failed: {error}") from error

    began_s = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    took_s = time.perf_counter() - began_s
    await client.close()
    await runner.cleanup()
    size = f"{callers} callers"
    return [
        Row("language model: calls under way at most", size, float(most), "calls", 16.0),
        Row("  not answered within 10 s", size, float(busy), "calls", 0.0),
        Row("  answered", size, answered / took_s, "/s"),
    ]


def model(quick: bool, folder: Path) -> Iterator[Row]:
    """The limit on concurrent calls."""
    for callers in (10, 100, 1000):
        yield from asyncio.run(_model(callers))


PARTS: Final[dict[str, Any]] = {
    "core": core,
    "interval": interval,
    "retrieval": retrieval,
    "growth": growth,
    "redis": redis,
    "model": model,
}

if __name__ == "__main__":
    sys.exit(main())
