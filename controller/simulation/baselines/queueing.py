"""An analytic model of a stage with dynamic batches, for the predictive baselines: sizes with their latency at a load.

The batch settles where the stage keeps up: the smallest n with λ · t(n)/(n · c) ≤ 0.8. A task then waits for its batch's turn as in an
M/G/c queue of services of s = t(n)/n, and is served for t(n). Waiting (Allen and Cunneen, with Sakasegawa's approximation of Erlang's C):

P(W > 0) ≈ u^(√(2(c + 1)) − 1),  E[W] = P(W > 0) · s/(c · (1 − u)) · (fan-out + SCV)/2,  past u = 0.97 continued by a line.

It stands apart from the controller's own model on purpose: a baseline must not move with what it is compared to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from controller.simulation.service import ServiceLaw

__all__ = ["StageLatency", "settled_batch", "stage_latency"]

_KEEPS_UP: Final = 0.8
_SATURATED: Final = 0.97
_OVERLOAD_S: Final = 30.0
"""Slope of the line: seconds of wait per unit of utilisation too much."""


@dataclass(frozen=True, slots=True)
class StageLatency:
    """What a task spends in a stage."""

    utilisation: float
    mean_s: float
    variance_s2: float


def settled_batch(law: ServiceLaw, rate_per_s: float, replicas: int, cores: float, share: float) -> int:
    """Mean batch, rounded up, at which the replicas keep up with a rate; the largest one if they never do."""
    for size in range(1, law.max_batch):
        if rate_per_s * law.time_s(size, cores, share) <= _KEEPS_UP * size * replicas:
            return size
    return law.max_batch


def stage_latency(
    law: ServiceLaw, rate_per_s: float, replicas: int, cores: float, share: float, *, fan_out: float = 1.0
) -> StageLatency:
    """Mean and variance of the time in a stage.

    Args:
        law: Believed service times.
        rate_per_s: Tasks per second, all of a request's tasks counted.
        replicas: Servers.
        cores: Per replica.
        share: Of a card, per replica.
        fan_out: Tasks that arrive together.
    """
    size = settled_batch(law, rate_per_s, replicas, cores, share)
    service_s = law.time_s(size, cores, share)
    each_s = service_s / size
    utilisation = rate_per_s * each_s / replicas
    below = min(utilisation, _SATURATED)
    delayed = below ** (math.sqrt(2 * (replicas + 1)) - 1)
    spread = (max(1.0, fan_out) + law.scv / size) / 2
    wait_s = delayed * each_s / (replicas * (1 - below)) * spread + max(0.0, utilisation - _SATURATED) * _OVERLOAD_S
    together_s = max(0.0, fan_out - 1) * each_s / replicas
    wait_variance = max(0.0, 2 * wait_s**2 / max(delayed, 1e-9) - wait_s**2)
    variance = service_s**2 * law.scv / size + wait_variance + together_s * each_s
    return StageLatency(utilisation, service_s + wait_s + together_s, variance)
