"""An analytic model of a stage with dynamic batches, for the predictive baselines: sizes with their latency at a load.

The batch settles where the stage keeps up: the smallest n with λ · t(n)/(n · c) ≤ 0.8. A task then waits for its batch's turn as in an
M/G/c queue (Allen and Cunneen, with Sakasegawa's approximation of Erlang's C) of services of t(n)/n, and is served for t(n).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from controller.model import StageLoad, waiting
from controller.simulation.service import ServiceLaw

__all__ = ["StageLatency", "settled_batch", "stage_latency"]

_KEEPS_UP: Final = 0.8


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
    load = StageLoad(rate_per_s, fan_out)
    delayed, wait = waiting(load, replicas, each_s, law.scv / size)
    together_s = max(0.0, fan_out - 1) * each_s / replicas
    wait_s, probability = float(wait), float(np.maximum(delayed, 1e-9))
    wait_variance = max(0.0, 2 * wait_s**2 / probability - wait_s**2)
    variance = service_s**2 * law.scv / size + wait_variance + together_s * each_s
    return StageLatency(rate_per_s * each_s / replicas, service_s + wait_s + together_s, variance)
