"""Plain model-predictive control: a queueing model, the recent peak, a reserve and a reflex; no memory and no reward.

Every 10 s the cheapest allocation whose modelled P99 at the recent peak stays under 0.7 · SLO. The reserve: replicas at their highest
knobs must serve a multiple of the peak of the last 15 minutes. The reflex, every 2 s: a queue of more than 0.25 s of work raises share
or CPU at once to what serves the arrivals and the queue within 2 s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from controller.cost import effective_cost
from controller.model import gamma_quantile, paths
from controller.simulation.baselines.policy import Seen, clamp_cpu, clamp_rate
from controller.simulation.baselines.queueing import stage_latency
from controller.simulation.pipelines import PipelineSetup, StageSetup
from controller.state import Allocation, StageObservation
from sair.quantities import GpuRate, Millicores

__all__ = ["ModelPredictive", "MpcSettings", "plan"]

_CORES: Final = (500, 1000, 1500, 2000, 3000, 4000)
_SHARES: Final = tuple(range(100, 1001, 100))


@dataclass(frozen=True, slots=True)
class MpcSettings:
    """Its knobs; the fractions are the published prototype's."""

    slo_part: float = 0.7
    margin: float = 1.1
    """Factor on the recent peak."""
    peak_window_s: float = 60.0
    reserve_factor: float = 1.3
    reserve_window_s: float = 900.0
    down_after_s: float = 60.0
    """A replica is released after it has not been wanted for that long."""
    plan_every_s: float = 10.0
    reflex_queue_s: float = 0.25
    reflex_drain_s: float = 2.0
    freeze_s: float = 20.0
    """Nothing is given up for that long after the reflex; nor while replicas start, which do not serve yet."""


@dataclass(frozen=True, slots=True)
class _Choice:
    allocation: Allocation
    usd: float
    mean_s: float
    variance_s2: float


def _choices(stage: StageSetup, rate: float, least: int, reserve: float, usd: Mapping[str, float]) -> list[_Choice]:
    """Allocations that no other beats in cost and latency, cheapest first; with enough replicas for the reserve.

    Args:
        stage: The controller's prior counts, not the true law.
        rate: Tasks per second to plan for.
        least: Replicas below which nothing is planned.
        reserve: Tasks per second that the replicas must serve at their highest knobs.
        usd: Prices per hour of a gpu, a vcpu and a gibibyte.
    """
    law, limits, initial = stage.prior, stage.limits, stage.initial
    best_share = limits.gpu_milli_max / 1000 if law.uses_gpu else 1.0
    top = law.capacity_per_s(limits.cpu_max / 1000, best_share)
    least = max(least, limits.replicas_min, min(limits.replicas_max, -int(-reserve // top)))
    cores = [one for one in _CORES if limits.cpu_min <= one <= limits.cpu_max]
    if law.uses_gpu:
        cores = [int(initial.cpu)]
    shares: list[int | None] = [one for one in _SHARES if limits.gpu_milli_min <= one <= limits.gpu_milli_max]
    found: list[_Choice] = []
    for count in range(least, limits.replicas_max + 1):
        for cpu in cores:
            for milli in shares if law.uses_gpu else [None]:
                share = milli / 1000 if milli else 1.0
                if rate > 0.95 * count * law.capacity_per_s(cpu / 1000, share):
                    continue
                latency = stage_latency(law, rate, count, cpu / 1000, share, fan_out=stage.plan.fan_out)
                price = count * (
                    (share * usd["gpu"] if milli else 0.0)
                    + cpu / 1000 * usd["vcpu"]
                    + initial.memory / 1024 * usd["gibibyte"]
                )
                allocation = replace(
                    initial, replicas=count, cpu=Millicores(cpu), gpu_rate=GpuRate(milli) if milli else None
                )
                found.append(_Choice(allocation, price, latency.mean_s, latency.variance_s2))
    found.sort(key=lambda choice: (choice.usd, choice.mean_s))
    best: list[_Choice] = []
    for choice in found:
        if not best or _spread(choice) < _spread(best[-1]):
            best.append(choice)
    return best


def _spread(choice: _Choice) -> float:
    return choice.mean_s + 2 * math.sqrt(choice.variance_s2)


def plan(
    setup: PipelineSetup,
    rates: Mapping[str, float],
    reserves: Mapping[str, float],
    least: Mapping[str, int],
    limit_s: float,
) -> dict[str, Allocation]:
    """The cheapest allocations found whose modelled P99 stays under a limit.

    Every stage begins at its cheapest choice; the step that buys most latency per dollar is taken until the limit is met. If it
    cannot be, the fastest choices are taken.

    Args:
        setup: The controller's priors count.
        rates: Tasks per second of each stage to plan for.
        reserves: Tasks per second that each stage's replicas must serve at their highest knobs.
        least: Replicas of each stage that are not given up now.
        limit_s: Of the modelled P99.
    """
    prices = setup.prices
    usd = {"gpu": prices.gpu, "vcpu": prices.vcpu, "gibibyte": prices.gibibyte}
    names = [stage.plan.name for stage in setup.stages]
    choices = {
        stage.plan.name: _choices(stage, rates[name], least[name], reserves[name], usd)
        for name, stage in zip(names, setup.stages, strict=True)
    }
    chosen: dict[str, int] = {}
    for stage in setup.stages:
        name = stage.plan.name
        if not choices[name]:
            limits = stage.limits
            largest = replace(stage.initial, replicas=limits.replicas_max, cpu=clamp_cpu(limits.cpu_max, limits))
            if largest.gpu_rate is not None:
                largest = replace(largest, gpu_rate=clamp_rate(limits.gpu_milli_max, limits))
            choices[name] = [_Choice(largest, effective_cost([largest], prices), 0.0, 0.0)]
        chosen[name] = 0
    routes = paths(setup.view)

    def p99(picked: Mapping[str, int]) -> float:
        worst = 0.0
        for route in routes:
            on_it = [choices[names[place]][picked[names[place]]] for place in route]
            mean, variance = sum(one.mean_s for one in on_it), sum(one.variance_s2 for one in on_it)
            worst = max(worst, float(gamma_quantile(mean, variance)))
        return worst

    reached = p99(chosen)
    while reached > limit_s:
        steps = []
        for name in names:
            for further in range(chosen[name] + 1, min(chosen[name] + 4, len(choices[name]))):
                after = p99({**chosen, name: further})
                price = choices[name][further].usd - choices[name][chosen[name]].usd
                steps.append(((reached - after) / max(price, 1e-9), name, further, after))
        if not steps:
            break
        _, name, further, reached = max(steps)
        chosen[name] = further
    return {name: choices[name][chosen[name]].allocation for name in names}


class ModelPredictive:
    """The controller.

    Args:
        setup: Its priors are what the controller believes; limits, prices and SLO are the pipeline's.
        settings: Its knobs.
        name: As the table has it.
    """

    interval_s: float = 2.0
    window_s: float = 5.0

    def __init__(self, setup: PipelineSetup, *, settings: MpcSettings | None = None, name: str = "MPC") -> None:
        self.name = name
        self._setup = setup
        self._settings = settings or MpcSettings()
        self._stages = {stage.plan.name: stage for stage in setup.stages}
        self._rates: list[tuple[float, float]] = []
        self._wanted: dict[str, list[tuple[float, int]]] = {name: [] for name in self._stages}
        self._next_plan = 0.0
        self._frozen_until = dict.fromkeys(self._stages, 0.0)

    def decide(self, seen: Seen, now: float) -> Mapping[str, Allocation] | None:
        """Plan every 10 s, react every 2 s."""
        settings = self._settings
        self._rates.append((now, seen.observation.arrivals_per_s))
        self._rates = [one for one in self._rates if one[0] > now - settings.reserve_window_s]
        if now < self._next_plan:
            return self._reflex(seen, now)
        self._next_plan = now + settings.plan_every_s
        recent = max(rate for time, rate in self._rates if time > now - settings.peak_window_s)
        reserve = max(rate for _, rate in self._rates)
        least = {}
        for stage in seen.observation.stages:
            wishes = self._wanted[stage.name]
            wishes[:] = [wish for wish in wishes if wish[0] > now - settings.down_after_s]
            held = now < settings.down_after_s
            least[stage.name] = stage.allocation.replicas if held else max((wish[1] for wish in wishes), default=1)
        fan_out = {name: max(1.0, stage.plan.fan_out) for name, stage in self._stages.items()}
        rates = {name: settings.margin * recent * fan for name, fan in fan_out.items()}
        reserves = {name: settings.reserve_factor * reserve * fan for name, fan in fan_out.items()}
        limit = settings.slo_part * self._setup.slo_s
        free = plan(self._setup, rates, reserves, dict.fromkeys(least, 1), limit)
        for name, allocation in free.items():
            self._wanted[name].append((now, allocation.replicas))
        wanted = free if all(free[name].replicas >= least[name] for name in free) else None
        if wanted is None:
            wanted = plan(self._setup, rates, reserves, least, limit)
        for stage in seen.observation.stages:
            frozen = now < self._frozen_until[stage.name]
            if frozen or self._behind(stage) or stage.ready < wanted[stage.name].replicas:
                wanted[stage.name] = _at_least(wanted[stage.name], stage.allocation)
        return {name: one for name, one in wanted.items() if one != seen.observation.allocations[name]}

    def _behind(self, stage: StageObservation) -> bool:
        """The queue is more than a moment's work."""
        one = self._stages[stage.name]
        share = stage.allocation.gpu_rate.fraction if stage.allocation.gpu_rate else 1.0
        capacity = max(1, stage.ready) * one.prior.capacity_per_s(stage.allocation.cpu / 1000, share)
        return stage.queue_depth > self._settings.reflex_queue_s * capacity

    def _reflex(self, seen: Seen, now: float) -> dict[str, Allocation]:
        wanted = {}
        for stage in seen.observation.stages:
            if not self._behind(stage):
                continue
            self._frozen_until[stage.name] = now + self._settings.freeze_s
            needed = stage.arrivals_per_s + stage.queue_depth / self._settings.reflex_drain_s
            raised = self._raised(self._stages[stage.name], stage, needed)
            if raised != stage.allocation:
                wanted[stage.name] = raised
        return wanted

    @staticmethod
    def _raised(one: StageSetup, stage: StageObservation, needed_per_s: float) -> Allocation:
        """The lowest knob at which the ready replicas serve so much; the highest one if none does. Never lower than it is."""
        limits, allocation = one.limits, stage.allocation
        ready = max(1, stage.ready)
        rate = allocation.gpu_rate
        if rate is None:
            cpu = allocation.cpu
            while cpu < limits.cpu_max and ready * one.prior.capacity_per_s(cpu / 1000, 1.0) < needed_per_s:
                cpu = clamp_cpu(cpu + 250, limits)
            return replace(allocation, cpu=cpu)
        while (
            rate.milli < limits.gpu_milli_max
            and ready * one.prior.capacity_per_s(allocation.cpu / 1000, rate.fraction) < needed_per_s
        ):
            rate = clamp_rate(rate.milli + 50, limits)
        return replace(allocation, gpu_rate=rate)


def _at_least(wanted: Allocation, current: Allocation) -> Allocation:
    """Give nothing up."""
    rate = wanted.gpu_rate
    if rate is not None and current.gpu_rate is not None:
        rate = max(rate, current.gpu_rate)
    return replace(
        wanted,
        replicas=max(wanted.replicas, current.replicas),
        cpu=Millicores(max(wanted.cpu, current.cpu)),
        gpu_rate=rate,
    )
