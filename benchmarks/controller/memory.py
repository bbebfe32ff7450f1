"""Retrieval and the upkeep of surprisal, bytes per experience, and the store on a real server."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.controller.drawn import STAGES, WIDTH, drawn
from benchmarks.controller.rows import Row, Sizes, median_ms
from controller.frontier import Frontiers
from controller.memory.embedded import embedded_server
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.retrieval import Memory
from controller.tuning import Tuning

__all__ = ["growth", "redis", "retrieval"]

TUNING: Final = Tuning()


def retrieval(sizes: Sizes, bars: Mapping[str, float], folder: Path) -> Iterator[Row]:
    """Retrieval and upkeep."""
    held = {sizes.retrieval[-1]: bars["large retrieval"], sizes.retrieval[0]: bars["retrieval"]}
    for size in sizes.retrieval:
        memory, found = Memory(STAGES), []
        began_s = time.perf_counter()
        memory.load(drawn(size, WIDTH), TUNING)
        load_s = time.perf_counter() - began_s
        spent = []
        for each in drawn(sizes.retrievals, WIDTH, seed=1):
            fresh = replace(each, id=f"new-{each.id}")
            began_s = time.perf_counter()
            memory.add(fresh, TUNING)
            shown = memory.retrieve(fresh.context, Frontiers({}), TUNING)
            spent.append(time.perf_counter() - began_s)
            found.append(len(shown))
        assert min(found) > 0
        named = f"{size} experiences"
        yield Row("retrieval with upkeep of surprisal, median", named, median_ms(spent), "ms", held.get(size))
        yield Row("  the same, P99", named, float(np.quantile(spent, 0.99)) * 1000, "ms")
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
