"""SAIR's own loop against the simulated world: the same controller as in a cluster, with the same memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from controller.llm.policy import LlmPolicy
from controller.loop import PipelineLoop
from controller.memory.mirror import MirroredMemory
from controller.simulation.baselines.runner import Run, drain
from controller.simulation.pipelines import PipelineSetup
from controller.simulation.plant import Plant
from controller.simulation.recording import Recorder
from controller.simulation.statistics import summarise
from controller.simulation.workloads import RateSeries, draw_arrivals
from controller.tuning import Tuning
from controller.watcher import Watcher
from controller.worlds.simulated import Pace, SimulatedWorld

__all__ = ["Scenario", "run_sair"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated."""

    setup: PipelineSetup
    series: RateSeries
    seed: int


async def run_sair(
    scenario: Scenario,
    memory: MirroredMemory,
    *,
    tuning: Tuning | None = None,
    model: LlmPolicy | None = None,
    watcher: Watcher | None = None,
    pace: Pace | None = None,
    on_advance: Callable[[Plant, float], None] | None = None,
    name: str = "SAIR (built-in policy)",
) -> Run:
    """Run the controller over a whole workload.

    Args:
        scenario: Pipeline, workload and seed.
        memory: What it remembers from earlier runs, and where this one's experiences go.
        tuning: The decision core's parameters; the pipeline's prices are put in.
        model: The language model, None for the built-in policy.
        watcher: Sees every round.
        pace: Slows simulated time down for somebody who watches.
        on_advance: Called with the plant and the time as time passes.
        name: Of the row in the table; it says who decided.
    """
    setup, series, seed = scenario.setup, scenario.series, scenario.seed
    plant = Plant(setup, draw_arrivals(series, seed), seed)
    recorder = Recorder(plant)

    def advanced(now: float) -> None:
        recorder.look()
        if on_advance is not None:
            on_advance(plant, now)

    world = SimulatedWorld([plant], pace=pace, on_advance=advanced)
    loop = PipelineLoop(
        plant.view.key,
        world,
        memory,
        replace(tuning or Tuning(), prices=setup.prices),
        model=model,
        watcher=watcher,
        seed=seed,
    )
    try:
        await loop.run(lambda: world.clock.now() >= series.duration_s)
    finally:
        await world.clock.aclose()
    drain(plant)
    return Run(
        summarise(plant, name, seed, since_s=0.0, until_s=series.duration_s), recorder.finish(series.duration_s), plant
    )
