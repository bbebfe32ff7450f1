"""Retrieval and the upkeep of surprisal, bytes per experience, and the store on a real server."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.controller.drawn import STAGES, WIDTH, drawn
from benchmarks.controller.rows import Row, Sizes, median_ms
from controller.experience import Experience, Outcome
from controller.frontier import Frontier, Frontiers, point_of
from controller.memory.embedded import embedded_server
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.retrieval import Memory
from controller.tuning import Tuning

__all__ = ["growth", "redis", "retrieval"]

TUNING: Final = Tuning()
_LOADS: Final = 4
"""Load buckets, each with a frontier of its own: a load that grows fivefold in the course of a day."""


def _traded(lived: Iterable[Experience], seed: int) -> Iterator[Experience]:
    """Rounds that were fast where they were dear, so that frontiers have tens of points."""
    rng = np.random.default_rng(seed)
    for each in lived:
        latency = float(np.clip(rng.lognormal(-0.4, 0.35), 0.1, 4.0))
        cost = float(np.clip(0.25 / latency * rng.lognormal(0.0, 0.15) + 0.05, 0.02, 1.5))
        yield replace(each, outcome=Outcome(latency, cost), load_bucket=each.round % _LOADS)


def _better(frontier: Frontier, rng: np.random.Generator) -> Outcome:
    """An outcome that moves a frontier by one point: better than one of its points, or between two of them."""
    place = int(rng.integers(len(frontier.points) - 1))
    (fast, dear), (slow, cheap) = frontier.points[place : place + 2]
    return Outcome(0.999 * fast, 0.999 * dear) if rng.random() < 0.5 else Outcome((fast + slow) / 2, (dear + cheap) / 2)


def retrieval(sizes: Sizes, bars: Mapping[str, float], folder: Path) -> Iterator[Row]:
    """Retrieval and upkeep, of rounds that leave their load's frontier as it is and of those that move it: every second does."""
    held = {sizes.retrieval[-1]: bars["large retrieval"], sizes.retrieval[0]: bars["retrieval"]}
    for size in sizes.retrieval:
        memory, frontiers, rng = Memory(STAGES), Frontiers({}), np.random.default_rng(2)
        began_s = time.perf_counter()
        memory.load(_traded(drawn(size, WIDTH), 0), TUNING)
        load_s = time.perf_counter() - began_s
        for each in memory.experiences:
            frontiers = frontiers.add(each.load_bucket, point_of(each.outcome))
        # The first one judges all of them, as at a warm start.
        memory.retrieve(memory.at(0).context, frontiers, TUNING)
        spent: dict[bool, list[float]] = {False: [], True: []}
        for number, each in enumerate(_traded(drawn(sizes.retrievals, WIDTH, seed=1), 1)):
            before = frontiers.at(each.load_bucket)
            outcome = _better(before, rng) if number % 2 else each.outcome
            fresh = replace(each, id=f"new-{each.id}", outcome=outcome)
            began_s = time.perf_counter()
            memory.add(fresh, TUNING)
            frontiers = frontiers.add(fresh.load_bucket, point_of(outcome))
            shown = memory.retrieve(fresh.context, frontiers, TUNING)
            spent[frontiers.at(fresh.load_bucket) is not before].append(time.perf_counter() - began_s)
            assert shown
        named = f"{size} experiences"
        for moved, times in spent.items():
            what = f"retrieval with upkeep, frontier {'moved' if moved else 'still'}, median"
            yield Row(what, named, median_ms(times), "ms", held.get(size))
            yield Row("  the same, P99", named, float(np.quantile(times, 0.99)) * 1000, "ms")
        yield Row("  all taken in at once", named, load_s, "s")
        del memory
        gc.collect()


def growth(sizes: Sizes, bars: Mapping[str, float], folder: Path) -> Iterator[Row]:
    """Memory of this process."""
    for size in sizes.growth:
        gc.collect()
        tracemalloc.start()
        memory = Memory(STAGES)
        memory.load(drawn(size, WIDTH), TUNING)
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        each = used / size / 1024
        yield Row("memory of the working copy", f"{size} experiences", each, "KiB per experience", bars["memory"])
        del memory


async def _redis(sizes: Sizes, bars: Mapping[str, float], folder: Path) -> list[Row]:
    rows = []
    async with embedded_server(folder) as url:
        store = Store.from_url(url)
        for size in sizes.redis:
            named = f"{size} experiences"
            known = list(drawn(size, WIDTH))
            began_s = time.perf_counter()
            await store.restore("bench/shop", known, {"round": "1"}, {})
            written_s = time.perf_counter() - began_s
            began_s = time.perf_counter()
            loaded = await store.load("bench/shop", size)
            read_s = time.perf_counter() - began_s
            assert len(loaded.experiences) == size, loaded.damaged[:1]
            rows.append(Row("Redis: written", named, size / written_s, "experiences/s"))
            each_us = read_s / size * 1e6
            # What is smaller is mostly what any load costs.
            bar = bars["redis read"] if size == sizes.redis[-1] else None
            rows.append(Row("Redis: read back and checked", named, each_us, "µs each", bar))
            mirror = MirroredMemory(store, capacity=size)
            await mirror.load("bench/shop")
            spent = []
            for each in drawn(30, WIDTH, seed=2):
                fresh = replace(each, id=f"9{each.id}", time_s=each.time_s + 1e8)
                began_s = time.process_time()
                await mirror.save([fresh], "bench/shop", {"round": "2"}, {})
                spent.append(time.process_time() - began_s)
            saved_ms = median_ms(spent)
            rows.append(Row("Redis: a round saved at capacity, CPU", named, saved_ms, "ms", bars["redis save"]))
            await store.forget("bench/shop")
        await store.close()
    return rows


def redis(sizes: Sizes, bars: Mapping[str, float], folder: Path) -> Iterator[Row]:
    """The store on a real server."""
    yield from asyncio.run(_redis(sizes, bars, folder))
