"""Which stage really is the bottleneck: try one standard step of capacity on each, on the same requests.

The bottleneck is the stage whose step lowers P99 most; ties within 5 % of the best gain all count; there is none if no step helps by 2 %.
Where so many requests fail that P99 stays at the client's timeout whichever step is taken, their share takes its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.simulation.plant import Plant
from controller.simulation.statistics import Interval, wilson_interval
from controller.state import Allocation, Observation

__all__ = [
    "NONE",
    "Accuracy",
    "Truth",
    "accuracy",
    "busiest_stage",
    "capacity_step",
    "true_bottleneck",
]

NONE: Final = "none"
TIE: Final = 0.05
LEAST_GAIN: Final = 0.02

Latencies = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Truth:
    """What the steps did."""

    stages: tuple[str, ...]
    """The bottleneck and whatever ties with it; empty if no step helps."""
    gains: Mapping[str, float]
    """1 − P99 with the step / P99 without, by stage; of the share of failed requests where P99 is saturated."""
    p99_s: float
    """Without a step."""


def capacity_step(allocation: Allocation) -> int:
    """The standard step: so many replicas more, a quarter of what there is but at least one.

    A replica is the one unit of capacity that every stage has, GPU or not.
    """
    return max(1, allocation.replicas // 4)


def true_bottleneck(plant: Plant, horizon_s: float = 60.0) -> Truth:
    """The bottleneck over the coming ``horizon_s`` seconds, by common-random-number rollouts.

    Each rollout starts from a copy of the plant, whose new replicas are ready at once and take no room from others: a cold start or a
    full cluster is no property of the bottleneck. P99 is taken over the requests that arrive in the horizon, those that fail at the
    client's timeout.

    Args:
        plant: Left as it is.
        horizon_s: How far to look.
    """
    base = _latencies(plant, None, horizon_s)
    steps = {stage.name: capacity_step(plant.wished[stage.name]) for stage in plant.view.stages}
    grown = {name: _latencies(plant, (name, more), horizon_s) for name, more in steps.items()}
    p99_s = _p99(base)
    gains = _gains(base, grown, _p99)
    if p99_s >= plant.setup.timeout_s and max(gains.values()) < LEAST_GAIN:
        gains = _gains(base, grown, partial(_failed, timeout_s=plant.setup.timeout_s))
    best = max(gains.values())
    if best < LEAST_GAIN:
        return Truth((), gains, p99_s)
    return Truth(tuple(name for name, gain in gains.items() if gain >= best * (1 - TIE)), gains, p99_s)


def _gains(base: Latencies, grown: Mapping[str, Latencies], measure: Callable[[Latencies], float]) -> dict[str, float]:
    before = measure(base)
    return {name: 1 - measure(after) / before if before > 0 else 0.0 for name, after in grown.items()}


def _p99(latencies: Latencies) -> float:
    return float(np.percentile(latencies, 99)) if len(latencies) else 0.0


def _failed(latencies: Latencies, timeout_s: float) -> float:
    return float((latencies >= timeout_s).mean())


def _latencies(plant: Plant, step: tuple[str, int] | None, horizon_s: float) -> Latencies:
    """Of the requests that arrive in the horizon, with a step; seconds, those that fail at the timeout."""
    copy = plant.copy(keep_s=0.0)
    if step is not None:
        copy.grow_at_once(*step)
    first, begin = copy.engine.arrived, copy.now
    copy.advance(begin + horizon_s)
    last = copy.engine.arrived
    copy.advance(begin + horizon_s + copy.setup.timeout_s)
    latency = np.full(last - first, copy.setup.timeout_s)
    arrivals = copy.engine.requests.arrivals
    for request, time in zip(copy.engine.done_id, copy.engine.done_t, strict=True):
        if first <= request < last:
            latency[request - first] = time - arrivals[request]
    return latency


def busiest_stage(observation: Observation) -> str:
    """The rule: the stage of the highest utilisation λ · t / c, from what was observed."""
    return max(
        observation.stages,
        key=lambda stage: (stage.arrivals_per_s * (stage.service_s or 0.0)) / max(1, stage.ready),
    ).name


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often a predictor is right."""

    trials: int
    hits: int
    interval: Interval
    confusion: Mapping[tuple[str, str], int]
    """(truth, predicted) → how often; of several true stages the predicted one stands if it is among them."""


def accuracy(cases: Sequence[tuple[Truth, str]]) -> Accuracy:
    """Score predictions against truths; ``none`` is right where no step helps.

    Raises:
        ValueError: Without cases.
    """
    if not cases:
        raise ValueError("no cases")
    confusion: Counter[tuple[str, str]] = Counter()
    hits = 0
    for truth, predicted in cases:
        allowed = truth.stages or (NONE,)
        right = predicted in allowed
        hits += right
        confusion[predicted if right else allowed[0], predicted] += 1
    return Accuracy(len(cases), hits, wilson_interval(hits, len(cases)), dict(confusion))
