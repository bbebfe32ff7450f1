"""Pipelines in the Kubernetes world: what one controller spends on them, and what the busiest of several does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.controller.rows import INTERVAL_S, Row, Sizes
from controller.cost import Prices
from controller.llm.settings import ModelSettings
from controller.loop import PipelineLoop
from controller.memory.embedded import embedded_server
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.metrics import ControllerMetrics
from controller.observe.fetching import Fetcher
from controller.observe.scraper import Scraper
from controller.sharding import shard_of
from controller.status import StatusWriter
from controller.tuning import Tuning
from controller.watching import Watching
from controller.worlds.kubernetes import KubernetesWorld, WallClock
from sair.kube.client import Api
from sair.kube.events import Recorder

__all__ = ["interval", "shards"]

TUNING: Final = Tuning()
SLOWEST_S: Final = 5.0
"""How often the reflex looks at each of a thousand pipelines."""
TEND_S: Final = 2.0
"""How often the fleet tends to all its pipelines."""
QUICKEST: Final = 100
"""So many are looked at every ``reflex_interval_s``."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Of one controller, CPU seconds."""

    pipelines: int
    round_s: float
    """A round of one pipeline."""
    look_s: float
    """A look of the reflex at one pipeline."""
    tend_s: float
    """What the fleet does for one pipeline between rounds, every ``TEND_S``."""

    def interval_s(self, pipelines: int, every_s: float = SLOWEST_S) -> float:
        """So many such pipelines for one interval, looked at so often."""
        looks_s = (INTERVAL_S / every_s - 1) * self.look_s
        return pipelines * (self.round_s + looks_s + INTERVAL_S / TEND_S * self.tend_s)


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


@contextlib.asynccontextmanager
async def _controller(
    kubeconfig: Path, url: str, owns: Callable[[str], bool]
) -> AsyncIterator[tuple[KubernetesWorld, Scraper, Callable[[str], PipelineLoop]]]:
    """A controller's parts as ``controller run`` puts them together; what makes the loop of a pipeline comes last."""
    async with contextlib.AsyncExitStack() as stack:
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
        world = KubernetesWorld(api, watching, scraper, Prices(), clock=clock, owns=owns)
        metrics, recorder = ControllerMetrics(CollectorRegistry()), Recorder(api, "controller", "bench")
        memory = MirroredMemory(store)
        status = StatusWriter(api, world, recorder, memory, ModelSettings(), metrics)
        yield world, scraper, lambda key: PipelineLoop(key, world, memory, TUNING, watcher=status)


async def _spent(kubeconfig: Path, url: str, turns: int, owns: Callable[[str], bool] = lambda _: True) -> Spent:
    """What a controller spends on the pipelines that it owns: on all pipelines it watches, on its own it works."""
    async with _controller(kubeconfig, url, owns) as (world, scraper, loop_of):
        views = [found.view for found in world.found().values()]
        both = [(loop_of(view.key), view) for view in views]
        # The pipelines only recommend, for which there is no reflex; it finds nothing queued.
        acting = [(loop, replace(view, mode="auto")) for loop, view in both]
        await _cpu_of([partial(loop.recall, view) for loop, view in both])
        await _cpu_of([partial(loop.reflex, view) for loop, view in acting])
        await asyncio.sleep(1.5)
        # The first rounds know nothing and do less.
        for _ in range(2):
            await asyncio.sleep(1.1)
            await _cpu_of([partial(loop.round, view) for loop, view in both])
        round_s, look_s, tend_s = [], [], []
        for _ in range(max(1, turns // len(views))):
            await asyncio.sleep(1.1)
            round_s.append(await _cpu_of([partial(loop.round, view) for loop, view in both]))
            await asyncio.sleep(1.1)
            look_s.append(await _cpu_of([partial(loop.reflex, view) for loop, view in acting]))
            began_s = time.process_time()
            world.found()
            world.forget()
            for view in views:
                await world.settle(view.key)
            tend_s.append((time.process_time() - began_s) / len(views))
        assert not scraper.problems, next(iter(scraper.problems.values()))
    return Spent(len(views), *(float(np.median(each)) for each in (round_s, look_s, tend_s)))


async def _in_kubernetes(pipelines: int, turns: int, folder: Path) -> Spent:
    async with _paper(pipelines, folder) as kubeconfig, embedded_server(folder) as url:
        return await _spent(kubeconfig, url, turns)


def interval(sizes: Sizes, bars: Mapping[str, float], folder: Path) -> Iterator[Row]:
    """Pipelines in the Kubernetes world."""
    for pipelines in sizes.pipelines:
        place = folder / str(pipelines)
        place.mkdir()
        spent = asyncio.run(_in_kubernetes(pipelines, sizes.turns, place))
        size = f"{pipelines} pipelines"
        yield Row("round in the Kubernetes world, CPU", size, spent.round_s * 1000, "ms")
        yield Row("look (scrape, reflex), CPU", size, spent.look_s * 1000, "ms")
        yield Row("tending between rounds, CPU", size, spent.tend_s * 1000, "ms")
        bar = bars["interval"] if pipelines == sizes.pipelines[-1] else None
        for count, every_s in ((1_000, SLOWEST_S), (QUICKEST, TUNING.reflex_interval_s)):
            what = f"  {count:,} such, looked at every {every_s:g} s, in 30 s, CPU"
            yield Row(what, size, spent.interval_s(count, every_s), "s of one core", bar)


async def _sharded(sizes: Sizes, folder: Path) -> tuple[list[set[str]], Spent]:
    """The pipelines of each shard, and what the controller of the largest spends."""
    async with _paper(sizes.sharded, folder) as kubeconfig, embedded_server(folder) as url:
        owners = [
            partial(lambda shard, namespace: shard_of(namespace, sizes.shards) == shard, number)
            for number in range(sizes.shards)
        ]
        parts = []
        for owns in owners:
            async with _controller(kubeconfig, url, owns) as (world, _, _):
                parts.append(set(world.found()))
        largest = max(range(sizes.shards), key=lambda number: len(parts[number]))
        return parts, await _spent(kubeconfig, url, sizes.turns, owners[largest])


def shards(sizes: Sizes, bars: Mapping[str, float], folder: Path) -> Iterator[Row]:
    """Pipelines divided among several controllers."""
    parts, spent = asyncio.run(_sharded(sizes, folder))
    owned = [key for part in parts for key in part]
    size = f"{sizes.sharded} pipelines, {sizes.shards} shards"
    wrong = sizes.sharded - len(set(owned)) + len(owned) - len(set(owned))
    even = sizes.sharded / sizes.shards
    yield Row("shards: pipelines of none or of two", size, wrong, "pipelines", bars["unowned"])
    yield Row("  largest shard over an even part", size, spent.pipelines / even, "times", bars["largest shard"])
    yield Row(
        "  its part of 1,000 pipelines in 30 s, CPU",
        size,
        spent.interval_s(spent.pipelines) * 1000 / sizes.sharded,
        "s of one core",
        bars["busiest shard"] / sizes.shards,
    )
