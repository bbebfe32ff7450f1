"""Threshold scaling: one replica more above 80 % utilisation or with a queue, one less below 30 %, then 60 s of rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from controller.simulation.baselines.policy import Seen, busiest, clamp_replicas, limits_of
from controller.state import Allocation, PipelineView

__all__ = ["Threshold", "Thresholds", "step_of"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When to act; the common textbook values."""

    high: float = 0.8
    low: float = 0.3
    cooldown_s: float = 60.0
    queue_per_replica: float = 10.0
    """A longer queue asks for one more replica whatever the utilisation."""


def step_of(thresholds: Thresholds, utilisation: float, queue: float, replicas: int) -> int:
    """+1, 0 or −1."""
    if utilisation > thresholds.high or queue > thresholds.queue_per_replica * replicas:
        return 1
    return -1 if utilisation < thresholds.low else 0


class Threshold:
    """The rule for every stage on its own.

    Args:
        view: The pipeline.
        thresholds: When to act.
        name: As the table has it.
    """

    interval_s: float = 15.0
    window_s: float = 15.0

    def __init__(self, view: PipelineView, *, thresholds: Thresholds | None = None, name: str = "threshold") -> None:
        self.name = name
        self._view = view
        self._thresholds = thresholds or Thresholds()
        self._rests_until = {stage.name: 0.0 for stage in view.stages}

    def decide(self, seen: Seen, now: float) -> Mapping[str, Allocation] | None:
        """One look at every stage."""
        wanted = {}
        for stage in seen.observation.stages:
            if now < self._rests_until[stage.name]:
                continue
            current = stage.allocation.replicas
            step = step_of(self._thresholds, busiest(stage), stage.queue_depth, current)
            desired = clamp_replicas(current + step, limits_of(self._view, stage.name))
            if desired != current:
                wanted[stage.name] = replace(stage.allocation, replicas=desired)
                self._rests_until[stage.name] = now + self._thresholds.cooldown_s
        return wanted
