"""Kubernetes' HorizontalPodAutoscaler (``pkg/controller/podautoscaler``): on CPU, or on an external metric per pod.

Every 15 s: ratio = metric / target; nothing happens while |1 − ratio| ≤ 0.1; else desired = ceil(ratio · ready pods). Pods that are
not ready are ignored for a ratio below 1 and count as idle for one above; if that turns the direction or falls inside the tolerance,
nothing happens. Scaling down follows the highest recommendation of the last 300 s, the number of pods at the start among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from controller.simulation.baselines.policy import Seen, clamp_replicas, limits_of
from controller.state import Allocation, PipelineView

__all__ = [
    "Behaviour",
    "HorizontalPodAutoscaler",
    "ScaleHistory",
    "desired_for_external",
    "desired_for_resource",
    "limit_rate",
]

TOLERANCE: Final = 0.1
"""``--horizontal-pod-autoscaler-tolerance``."""
INTERVAL_S: Final = 15.0
"""``--horizontal-pod-autoscaler-sync-period``."""
STABILISATION_S: Final = 300.0
"""``--horizontal-pod-autoscaler-downscale-stabilization``."""
DEFAULT_CPU_TARGET: Final = 0.8
"""What the API server fills in when no metric is named."""

_EPSILON: Final = 1e-9


def desired_for_resource(current: int, ready: int, unready: int, usage: float, target: float) -> int:
    """Pods wanted by a resource's utilisation.

    Args:
        current: Pods in the spec.
        ready: Pods with a sample that counts.
        unready: Pods that start; for CPU their samples are ignored.
        usage: Mean utilisation of the ready pods, as a fraction of the request.
        target: Wanted utilisation.
    """
    if ready == 0:
        return current
    ratio = usage / target
    if not (unready and ratio > 1.0):
        if abs(1.0 - ratio) <= TOLERANCE:
            return current
        return math.ceil(ratio * ready - _EPSILON)
    pods = ready + unready
    diluted = usage * ready / pods / target
    if abs(1.0 - diluted) <= TOLERANCE or (ratio < 1.0) != (diluted < 1.0):
        return current
    desired = math.ceil(diluted * pods - _EPSILON)
    if (diluted < 1.0 and desired > current) or (diluted > 1.0 and desired < current):
        return current
    return desired


def desired_for_external(pods: int, total: float, target: float) -> int:
    """Pods wanted by an external metric with an AverageValue target: ceil(total / target), unless within the tolerance."""
    if pods > 0 and abs(1.0 - total / (target * pods)) <= TOLERANCE:
        return pods
    return math.ceil(total / target - _EPSILON)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """``spec.behavior``; the defaults are autoscaling/v2's."""

    up_pods: int = 4
    up_percent: float = 100.0
    """Per 15 s the larger of the two may be added."""
    down_percent: float = 100.0
    """Per 15 s that much may be removed."""
    up_stabilisation_s: float = 0.0
    down_stabilisation_s: float = STABILISATION_S
    period_s: float = 15.0


def limit_rate(behaviour: Behaviour, at_period_start: int, desired: int) -> int:
    """What may be reached within a period that began with so many pods."""
    highest = max(at_period_start + behaviour.up_pods, math.ceil(at_period_start * (1 + behaviour.up_percent / 100)))
    lowest = math.floor(at_period_start * (1 - behaviour.down_percent / 100))
    return max(lowest, min(highest, desired))


@dataclass(slots=True)
class ScaleHistory:
    """Recommendations of one workload."""

    recommendations: list[tuple[float, int]] = field(default_factory=list)

    def stabilise(self, behaviour: Behaviour, now: float, current: int, desired: int) -> int:
        """Highest recommendation of the down window, lowest of the up window, whichever holds closer to what is."""
        longest = max(behaviour.down_stabilisation_s, behaviour.up_stabilisation_s)
        if not self.recommendations:
            self.recommendations.append((now, current))
        self.recommendations = [one for one in self.recommendations if one[0] > now - longest]
        up, down = desired, desired
        for time, value in self.recommendations:
            if time > now - behaviour.up_stabilisation_s:
                up = min(up, value)
            if time > now - behaviour.down_stabilisation_s:
                down = max(down, value)
        self.recommendations.append((now, desired))
        return min(max(current, up), down)


Metric = Literal["cpu", "queue", "arrivals"]


class HorizontalPodAutoscaler:
    """One HPA per stage; all other knobs stay as they are.

    Args:
        view: The pipeline.
        metric: ``cpu`` (utilisation), ``queue`` (waiting requests per pod) or ``arrivals`` (requests per second per pod).
        targets: Target by stage: a fraction for CPU, an amount per pod otherwise.
        behaviour: Rates and stabilisation.
        name: As the table has it.
        minimum: ``minReplicas`` by stage; 1 where it is not named.
    """

    interval_s: float = INTERVAL_S
    window_s: float = INTERVAL_S
    """metrics-server's resolution is 15 s; its delay is not held against the HPA."""

    def __init__(
        self,
        view: PipelineView,
        *,
        metric: Metric = "cpu",
        targets: Mapping[str, float] | None = None,
        behaviour: Behaviour | None = None,
        name: str = "HPA (defaults)",
        minimum: Mapping[str, int] | None = None,
    ) -> None:
        self.name = name
        self._view = view
        self._metric = metric
        self._targets = dict(targets or {stage.name: DEFAULT_CPU_TARGET for stage in view.stages})
        self._behaviour = behaviour or Behaviour()
        self._minimum = dict(minimum or {})
        self._histories = {stage.name: ScaleHistory() for stage in view.stages}

    def decide(self, seen: Seen, now: float) -> Mapping[str, Allocation] | None:
        """One sync of every HPA."""
        wanted = {}
        for stage in seen.observation.stages:
            current = stage.allocation.replicas
            target = self._targets[stage.name]
            if self._metric == "cpu":
                unready = current - stage.ready
                desired = desired_for_resource(current, stage.ready, max(0, unready), stage.cpu_utilisation, target)
            else:
                total = stage.queue_depth if self._metric == "queue" else stage.arrivals_per_s
                desired = desired_for_external(current, total, target)
            desired = self._histories[stage.name].stabilise(self._behaviour, now, current, desired)
            desired = limit_rate(self._behaviour, current, desired)
            desired = max(self._minimum.get(stage.name, 1), clamp_replicas(desired, limits_of(self._view, stage.name)))
            if desired != current:
                wanted[stage.name] = replace(stage.allocation, replicas=desired)
        return wanted
