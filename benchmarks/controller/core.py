"""A round of the decision core by the size of the memory, alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.controller.drawn import drawn
from benchmarks.controller.rows import Row, Sizes, median_ms
from controller import round as rounds
from controller.decision import Situation
from controller.journal import RoundReport
from controller.knowledge import Knowledge, restore
from controller.loop import PipelineLoop
from controller.memory.embedded import embedded_server
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.simulation.pipelines import pipeline_named
from controller.simulation.plant import Plant
from controller.simulation.workloads import draw_arrivals, workload_named
from controller.state import HOLD, Action, PipelineView
from controller.tuning import Tuning
from controller.worlds.simulated import SimulatedWorld

__all__ = ["core"]

TUNING: Final = Tuning()


@dataclass
class _Seen:
    reports: list[RoundReport]

    async def round_ended(self, report: RoundReport) -> None:
        self.reports.append(report)

    async def about_to_act(self, report: RoundReport) -> None:
        pass

    async def reflexed(self, view: PipelineView, time_s: float, action: Action) -> None:
        pass


async def _lived(lived: int, folder: Path) -> tuple[Knowledge, list[RoundReport]]:
    """Some rounds in the simulated world."""
    setup = pipeline_named("image-classification")
    series = workload_named("burst", setup.base_rate_per_s, 1500.0, 1)
    world = SimulatedWorld([Plant(setup, draw_arrivals(series, 1), 1)])
    seen = _Seen([])
    async with embedded_server(folder) as url:
        store = Store.from_url(url)
        loop = PipelineLoop(setup.key, world, MirroredMemory(store), Tuning(prices=setup.prices), watcher=seen)
        await loop.run(lambda: len(seen.reports) >= lived)
        await world.clock.aclose()
        await store.close()
    return loop.knowledge, seen.reports


def core(sizes: Sizes, bars: Mapping[str, float], folder: Path) -> Iterator[Row]:
    """A round of the decision core."""
    lived, reports = asyncio.run(_lived(sizes.core_lived, folder))
    last = next(report for report in reversed(reports) if report.observation and report.room)
    assert last.observation is not None
    assert last.room is not None
    width = len(lived.memory.experiences[0].context)
    situation = Situation(last.view, last.observation, last.room, last.time_s)
    for size in sizes.core:
        knowledge = replace(restore(last.view, None, drawn(size, width), TUNING), learned=lived.learned)
        rng, spent = np.random.default_rng(0), []
        for number in range(sizes.core_rounds):
            seen = replace(last.observation, time_s=last.time_s + 30.0 * (number + 1))
            began_s = time.process_time()
            knowledge, _ = rounds.take_in(knowledge, last.view, seen, TUNING)
            menu = rounds.candidates(knowledge, replace(situation, observation=seen, now=seen.time_s), TUNING)
            decision = rounds.admit(knowledge, menu, rounds.choose(knowledge, menu, TUNING, rng), TUNING)
            knowledge = rounds.applied(knowledge, menu.case.situation, replace(decision, action=HOLD), (), TUNING)
            spent.append(time.process_time() - began_s)
        yield Row("round of the decision core, CPU", f"{size} experiences", median_ms(spent), "ms")
        yield Row("  rounds per second of one core", f"{size} experiences", 1000 / median_ms(spent), "/s")
