"""Real situations to decide in: the simulated world after some rounds of the real loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from controller.journal import RoundReport
from controller.knowledge import Knowledge
from controller.loop import PipelineLoop
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.menu import Menu
from controller.simulation.pipelines import PipelineSetup, pipeline_named
from controller.simulation.plant import Plant
from controller.simulation.workloads import draw_arrivals, workload_named
from controller.state import Action, PipelineView
from controller.tuning import Tuning
from controller.worlds.simulated import Faults, SimulatedWorld

__all__ = ["Rounds", "decision_point", "setup", "simulated"]


@dataclass
class Rounds:
    """A Watcher that keeps everything."""

    reports: list[RoundReport] = field(default_factory=list)
    reflexes: list[Action] = field(default_factory=list)
    announced: list[int] = field(default_factory=list)

    async def round_ended(self, report: RoundReport) -> None:
        self.reports.append(report)

    async def about_to_act(self, report: RoundReport) -> None:
        self.announced.append(report.round)

    async def reflexed(self, view: PipelineView, time_s: float, action: Action) -> None:
        self.reflexes.append(action)


def setup() -> PipelineSetup:
    """The pipeline of all scenes."""
    return pipeline_named("image-classification")


def simulated(workload: str = "poisson", duration_s: float = 900.0, faults: Faults | None = None) -> SimulatedWorld:
    """A world at its beginning."""
    series = workload_named(workload, setup().base_rate_per_s, duration_s, 1)
    return SimulatedWorld([Plant(setup(), draw_arrivals(series, 1), 1)], faults=faults or Faults())


async def decision_point(rounds: int = 3, menu_max: int = Tuning().menu_max) -> tuple[Knowledge, Menu]:
    """What a policy is asked after some rounds under a steady load."""
    world, watcher, memory = simulated(), Rounds(), MirroredMemory(Store.from_url("redis://127.0.0.1:1/0"))
    tuning = Tuning(prices=setup().prices, menu_max=menu_max)
    loop = PipelineLoop(setup().key, world, memory, tuning, watcher=watcher)
    await loop.run(lambda: len(watcher.reports) >= rounds)
    await world.clock.aclose()
    await memory.store.close()
    menu = watcher.reports[-1].menu
    assert menu is not None
    return loop.knowledge, menu
