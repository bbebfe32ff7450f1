"""Static allocations: as the user wrote them, or right-sized in hindsight for the very arrivals they will meet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from controller.simulation.baselines.runner import drain
from controller.simulation.engine import Requests
from controller.simulation.pipelines import PipelineSetup
from controller.simulation.plant import Plant
from controller.simulation.sizing import Size, cheapest, sizes_of, stage_rates
from controller.simulation.statistics import summarise
from controller.simulation.windows import peak_rate
from controller.simulation.workloads import RateSeries, draw_arrivals
from controller.state import Allocation
from sair.errors import InvalidInput

__all__ = ["right_size"]

MISSES_ALLOWED: Final = 0.001
_BISECTIONS: Final = 5
_CHEAPER_TRIES: Final = 3
_CHECK_S: Final = 60.0
"""How often a run is looked at: one that has already missed too much need not go on."""


def right_size(
    setup: PipelineSetup,
    series: RateSeries,
    seed: int,
    *,
    misses_allowed: float = MISSES_ALLOWED,
    since_s: float = 0.0,
) -> dict[str, Allocation]:
    """The cheapest static allocation found that misses no more than allowed on exactly these requests.

    All stages are first sized for one multiple of the arrivals' peak, found by bisection over whole runs; then each stage
    in turn is made cheaper as long as the run still passes. About 15 runs.

    Raises:
        InvalidInput: If not even three times the peak's size passes.
    """
    arrivals = draw_arrivals(series, seed)
    requests = Requests([stage.plan for stage in setup.stages], arrivals, setup.timeout_s, seed)
    counted = int((arrivals >= since_s).sum())
    peak = peak_rate(requests.arrivals, 0.0, series.duration_s)
    rates = stage_rates(setup, peak)
    sizes = {stage.plan.name: sizes_of(stage, setup.slo_s, setup.prices) for stage in setup.stages}

    def passes(chosen: Mapping[str, Size]) -> bool:
        started = setup.starting_at({name: size.allocation for name, size in chosen.items()})
        try:
            plant = Plant(started, arrivals, seed, requests=requests)
        except InvalidInput:
            return False
        while plant.now < series.duration_s:
            plant.advance(min(series.duration_s, plant.now + _CHECK_S))
            if _misses_by_now(plant, since_s) > misses_allowed * counted:
                return False
        drain(plant)
        summary = summarise(plant, "static", seed, since_s=since_s, until_s=series.duration_s)
        return summary.miss_ratio <= misses_allowed

    def sized(factor: float) -> dict[str, Size]:
        return {name: cheapest(sizes[name], factor * rates[name]) for name in sizes}

    low = 0.3
    for high in (1.0, 1.5, 2.0, 3.0):
        if passes(sized(high)):
            break
        low = high
    else:
        raise InvalidInput("workload", series.name, f"one whose peak ({peak:.0f} requests/s) the cluster can serve")
    best = sized(high)
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        if passes(sized(middle)):
            best, high = sized(middle), middle
        else:
            low = middle
    for name in sorted(best, key=lambda stage: -best[stage].usd_per_hour):
        for _ in range(_CHEAPER_TRIES):
            place = sizes[name].index(best[name])
            if place == 0 or not passes({**best, name: sizes[name][place - 1]}):
                break
            best = {**best, name: sizes[name][place - 1]}
    return {name: size.allocation for name, size in best.items()}


def _misses_by_now(plant: Plant, since_s: float) -> int:
    """Finished late or failed, of the requests that arrived from ``since_s`` on (those still under way may be missed as well)."""
    engine = plant.engine
    arrivals = engine.requests.arrivals
    if not engine.done_t:
        return len(engine.failed_id)
    latency = engine.latencies(0.0)
    arrived = np.array(engine.done_t) - latency
    late = int(((latency > plant.view.slo_s) & (arrived >= since_s)).sum())
    return late + sum(arrivals[request] >= since_s for request in engine.failed_id)
