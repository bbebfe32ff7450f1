"""The context vector of a round and the vector of an action, scaled by fixed ranges.

Never scaled by running statistics: an old experience keeps its embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from controller.state import CPU_STEP, MEMORY_STEP, Action, Observation, PipelineView, StageObservation

__all__ = [
    "ACTION_FEATURES",
    "PIPELINE_FEATURES",
    "STAGE_FEATURES",
    "action_vector",
    "context_length",
    "context_vector",
    "unit",
]

PIPELINE_FEATURES: Final = ("arrivals", "arrivals_slope", "p50", "p99", "goodput", "cost")
STAGE_FEATURES: Final = (
    "ready",
    "starting",
    "cpu",
    "memory",
    "gpu_rate",
    "queue",
    "queue_slope",
    "cpu_utilisation",
    "gpu_utilisation",
    "service",
)
ACTION_FEATURES: Final = ("replicas", "cpu", "memory", "gpu_rate")

_ARRIVALS_MAX: Final = 10_000.0
_REPLICAS_MAX: Final = 100.0
_MEMORY_MAX_MIB: Final = 65_536.0
_QUEUE_MAX: Final = 10_000.0


def unit(value: float | None, high: float, low: float = 0.0) -> float:
    """Scale [low, high] to [0, 1] and clip; what is missing or no number becomes 0, infinities the ends."""
    if value is None or math.isnan(value):
        return 0.0
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _logarithmic(value: float | None, high: float) -> float:
    """log(1 + v)/log(1 + high), clipped to [0, 1]; what is missing or no number becomes 0."""
    if value is None or not value > 0:
        return 0.0
    return min(1.0, math.log1p(min(value, high)) / math.log1p(high))


def _signed(value: float | None, high: float) -> float:
    """[−high, high] to [0, 1] around 0.5; what is missing or no number becomes 0.5."""
    if value is None or math.isnan(value):
        return 0.5
    return unit(value, high, -high)


def context_length(view: PipelineView) -> int:
    """Length of a pipeline's context vectors."""
    return len(PIPELINE_FEATURES) + len(STAGE_FEATURES) * len(view.stages)


def context_vector(observation: Observation, view: PipelineView) -> tuple[float, ...]:
    """The state as the kernels see it.

    Returns:
        PIPELINE_FEATURES, then STAGE_FEATURES for each stage in topological order, all in [0, 1]; counts on a logarithmic scale.
    """
    arrivals = observation.arrivals_per_s
    values = [
        _logarithmic(arrivals, _ARRIVALS_MAX),
        _signed(observation.arrivals_slope / arrivals if arrivals > 0 else 0.0, 0.05),
        unit(_ratio(observation.p50_s, observation.slo_s), 2.0),
        unit(_ratio(observation.p99_s, observation.slo_s), 2.0),
        unit(_ratio(observation.goodput_per_s, arrivals), 1.0),
        unit(_ratio(observation.cost_per_hour, view.budget_per_hour), 1.0),
    ]
    for stage in view.stages:
        seen = observation.stage(stage.name)
        values += [0.0] * len(STAGE_FEATURES) if seen is None else _stage_features(seen, observation.slo_s)
    return tuple(values)


def _ratio(value: float | None, over: float) -> float | None:
    return None if value is None or not over > 0 else value / over


def _stage_features(stage: StageObservation, slo_s: float) -> list[float]:
    allocation = stage.allocation
    arrivals = stage.arrivals_per_s
    return [
        _logarithmic(stage.ready, _REPLICAS_MAX),
        _logarithmic(stage.starting, _REPLICAS_MAX),
        unit(allocation.cpu, 8000.0),
        _logarithmic(allocation.memory, _MEMORY_MAX_MIB),
        allocation.gpu_rate.fraction if allocation.gpu_rate else 0.0,
        _logarithmic(stage.queue_depth, _QUEUE_MAX),
        _signed(stage.queue_slope / arrivals if arrivals > 0 else 0.0, 1.0),
        unit(stage.cpu_utilisation, 1.5),
        unit(stage.gpu_utilisation, 1.5),
        unit(_ratio(stage.service_s, slo_s), 1.0),
    ]


def action_vector(action: Action, stages: Sequence[str]) -> tuple[float, ...]:
    """ACTION_FEATURES for each stage: deltas in units of twice the grid's step, so that one step counts 0.5, clipped to ±2."""
    values: list[float] = []
    for name in stages:
        delta = action.on(name)
        steps = (delta.replicas, delta.cpu / CPU_STEP, delta.memory / MEMORY_STEP, delta.gpu_milli / 100)
        values += (min(2.0, max(-2.0, step / 2)) for step in steps)
    return tuple(values)
