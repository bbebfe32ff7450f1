"""Sizes of stages that are worth considering, by cost and capacity, from the true service laws: for static sizing and the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from controller.cost import Prices, effective_cost
from controller.simulation.pipelines import PipelineSetup, StageSetup
from controller.simulation.service import ServiceLaw
from controller.state import Allocation
from sair.quantities import GpuRate, Millicores

__all__ = ["Size", "cheapest", "sizes_of", "stage_rates"]

_SLO_PART: Final = 0.35
"""Part of the SLO that one service may take, its whole batch included."""
_CORES: Final = (500, 1000, 1500, 2000)
_SHARES: Final = tuple(range(50, 1001, 50))


@dataclass(frozen=True, slots=True)
class Size:
    """One way to run a stage."""

    allocation: Allocation
    capacity_per_s: float
    """Tasks per second at the largest batch that the latency allows."""
    usd_per_hour: float


def sizes_of(stage: StageSetup, slo_s: float, prices: Prices, replicas: Sequence[int] | None = None) -> list[Size]:
    """Sizes that no other one beats in both cost and capacity, cheapest first.

    Args:
        stage: Its true law counts, not the prior.
        slo_s: End-to-end bound; a service may take a part of it.
        prices: Dollars per hour.
        replicas: Numbers of replicas to consider; None: all within the limits.
    """
    law, limits, initial = stage.plan.law, stage.limits, stage.initial
    cores = [Millicores(one) for one in _CORES if limits.cpu_min <= one <= limits.cpu_max]
    shares: list[GpuRate | None] = [None]
    if law.uses_gpu:
        shares = [GpuRate(milli) for milli in _SHARES if limits.gpu_milli_min <= milli <= limits.gpu_milli_max]
    found = []
    for cpu in cores:
        for share in shares:
            one = _capacity(law, cpu / 1000, share.fraction if share else 1.0, _SLO_PART * slo_s)
            for count in replicas or range(limits.replicas_min, limits.replicas_max + 1):
                allocation = replace(initial, replicas=count, cpu=cpu, gpu_rate=share)
                found.append(Size(allocation, count * one, effective_cost([allocation], prices)))
    found.sort(key=lambda size: (size.usd_per_hour, -size.capacity_per_s))
    best: list[Size] = []
    for size in found:
        if not best or size.capacity_per_s > best[-1].capacity_per_s:
            best.append(size)
    return best


def cheapest(sizes: Sequence[Size], capacity_per_s: float) -> Size:
    """The cheapest size of that capacity; the largest one if none has it."""
    return next((size for size in sizes if size.capacity_per_s >= capacity_per_s), sizes[-1])


def stage_rates(setup: PipelineSetup, rate_per_s: float) -> Mapping[str, float]:
    """Tasks per second at each stage when requests arrive at a rate."""
    return {stage.plan.name: rate_per_s * max(1.0, stage.plan.fan_out) for stage in setup.stages}


def _capacity(law: ServiceLaw, cores: float, share: float, longest_s: float) -> float:
    """Tasks per second of one replica whose services last at most so long (0 if even one task lasts longer)."""
    fitting = [size for size in range(1, law.max_batch + 1) if law.time_s(size, cores, share) <= longest_s]
    return max((size / law.time_s(size, cores, share) for size in fitting), default=0.0)
