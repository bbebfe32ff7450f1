"""An oracle: it knows every request that will come and the true service times, and is tuned in hindsight on the very run it is judged by.

Each 5 s every stage gets the cheapest share or CPU that serves what arrives in the next seconds, times a margin. Replicas are started a
cold start ahead of the load that needs them and stay as long as some load within that time does. The margin is the smallest one, by
bisection over whole runs, that misses no more than allowed. Nothing that has to find these things out can be expected to be cheaper;
a lower cost is not excluded, because the search is over one margin for all stages only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.simulation.baselines.policy import Seen
from controller.simulation.baselines.runner import Run, run_policy
from controller.simulation.pipelines import PipelineSetup, StageSetup
from controller.simulation.sizing import Size, cheapest, sizes_of, stage_rates
from controller.simulation.workloads import RateSeries, draw_arrivals
from controller.state import Allocation
from sair.errors import InvalidInput

__all__ = ["Clairvoyant", "best_clairvoyant"]

_STEP_S: Final = 5.0
_LOOK_AHEAD_S: Final = 10.0
"""A share is raised that long before the load."""
_LOOK_BACK_S: Final = 5.0
"""And kept that long after it, for what still waits."""


class Clairvoyant:
    """The policy for one run.

    Args:
        setup: Its true laws count.
        arrivals_s: Of the run, sorted seconds.
        margin: Factor on the arrivals.
        name: As the table has it.
    """

    interval_s: float = _STEP_S
    window_s: float = _STEP_S

    def __init__(
        self, setup: PipelineSetup, arrivals_s: NDArray[np.float64], margin: float, *, name: str = "oracle"
    ) -> None:
        self.name = name
        self._setup = setup
        self._margin = margin
        last = float(arrivals_s[-1]) if len(arrivals_s) else 0.0
        self._per_step = np.histogram(arrivals_s, np.arange(0.0, last + 2 * _STEP_S, _STEP_S))[0] / _STEP_S
        self._sizes: dict[tuple[str, int], list[Size]] = {}
        self._ample = {stage.plan.name: sizes_of(stage, setup.slo_s, setup.prices) for stage in setup.stages}
        self._leads = {
            stage.plan.name: min(stage.cold_start.longest_s, 2.5 * stage.cold_start.median_s) for stage in setup.stages
        }

    def first(self) -> dict[str, Allocation]:
        """What the run should begin with."""
        return self._wanted(0.0, {})

    def decide(self, seen: Seen, now: float) -> Mapping[str, Allocation] | None:
        """What the coming seconds need."""
        wanted = self._wanted(now, {stage.name: stage.ready for stage in seen.observation.stages})
        return {name: one for name, one in wanted.items() if one != seen.observation.allocations[name]}

    def _peak(self, begin: float, end: float) -> float:
        first, last = max(0, int(begin // _STEP_S)), int(np.ceil(end / _STEP_S))
        window = self._per_step[first:last]
        return float(window.max()) if len(window) else 0.0

    def _wanted(self, now: float, ready: Mapping[str, int]) -> dict[str, Allocation]:
        wanted = {}
        for stage in self._setup.stages:
            name = stage.plan.name
            lead = self._leads[name]
            far = self._needed(name, self._peak(now - lead, now + lead))
            near = self._needed(name, self._peak(now - _LOOK_BACK_S, now + _LOOK_AHEAD_S))
            count = cheapest(self._ample[name], far).allocation.replicas
            serving = max(1, min(count, ready.get(name, count)))
            wanted[name] = replace(cheapest(self._sizes_with(stage, serving), near).allocation, replicas=count)
        return wanted

    def _sizes_with(self, stage: StageSetup, replicas: int) -> list[Size]:
        """Knobs for so many replicas: those that start do not serve yet."""
        key = stage.plan.name, replicas
        if key not in self._sizes:
            self._sizes[key] = sizes_of(stage, self._setup.slo_s, self._setup.prices, [replicas])
        return self._sizes[key]

    def _needed(self, stage: str, rate: float) -> float:
        return self._margin * stage_rates(self._setup, rate)[stage]


def best_clairvoyant(
    setup: PipelineSetup, series: RateSeries, seed: int, *, misses_allowed: float = 0.001, bisections: int = 5
) -> Run:
    """Run the oracle with the smallest margin that misses no more than allowed.

    Raises:
        InvalidInput: If not even three times the arrivals' size does.
    """
    arrivals = draw_arrivals(series, seed)

    def attempt(margin: float) -> Run:
        policy = Clairvoyant(setup, arrivals, margin)
        return run_policy(setup.starting_at(policy.first()), series, seed, policy)

    low, high = 0.8, 3.0
    best = None
    for margin in (1.25, 2.0, high):
        run = attempt(margin)
        if run.summary.miss_ratio <= misses_allowed:
            best, high = run, margin
            break
        low = margin
    if best is None:
        raise InvalidInput("workload", series.name, "one that the cluster can serve")
    for _ in range(bisections):
        middle = (low + high) / 2
        run = attempt(middle)
        if run.summary.miss_ratio <= misses_allowed:
            high = middle
            if run.summary.effective_usd_per_hour < best.summary.effective_usd_per_hour:
                best = run
        else:
            low = middle
    return best
