"""KEDA: decides between nothing and one replica itself, everything above is an HPA on an external metric with an AverageValue.

It polls every 30 s. Active while a trigger is above its activation threshold; to zero 300 s after it last was (only where zero is
allowed: the simulated stages keep at least one). When the metric fails: a static number, the current one, or the higher of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from controller.simulation.baselines.hpa import INTERVAL_S, Behaviour, ScaleHistory, desired_for_external, limit_rate
from controller.simulation.baselines.policy import Seen, clamp_replicas, limits_of
from controller.state import Allocation, PipelineView

__all__ = ["Fallback", "Keda", "Trigger"]

POLL_S: Final = 30.0
COOLDOWN_S: Final = 300.0

FallbackBehaviour = Literal["static", "currentReplicas", "currentReplicasIfHigher"]


@dataclass(frozen=True, slots=True)
class Trigger:
    """What one replica should have: of arrivals per second, of waiting requests; the HPA takes the larger of both demands."""

    arrivals_per_s: float
    queue: float
    activation: float = 0.0


@dataclass(frozen=True, slots=True)
class Fallback:
    """``spec.fallback``: after so many failures in a row."""

    replicas: int
    failures: int = 3
    behaviour: FallbackBehaviour = "static"

    def desired(self, current: int) -> int:
        """Replicas while the metric fails."""
        if self.behaviour == "static":
            return self.replicas
        if self.behaviour == "currentReplicas":
            return current
        return max(current, self.replicas)


class Keda:
    """One ScaledObject per stage.

    Args:
        view: The pipeline.
        triggers: By stage.
        idle_replicas: Replicas while no trigger is active; at least what the stage's bounds allow.
        fallback: What to do while metrics fail (an observation older than 60 s counts as failed).
        behaviour: Of the HPA that KEDA creates.
        name: As the table has it.
    """

    interval_s: float = INTERVAL_S
    window_s: float = POLL_S

    def __init__(
        self,
        view: PipelineView,
        triggers: Mapping[str, Trigger],
        *,
        idle_replicas: int = 1,
        fallback: Fallback | None = None,
        behaviour: Behaviour | None = None,
        name: str = "KEDA",
    ) -> None:
        self.name = name
        self._view = view
        self._triggers = dict(triggers)
        self._idle_replicas = idle_replicas
        self._fallback = fallback
        self._behaviour = behaviour or Behaviour()
        self._histories = {stage.name: ScaleHistory() for stage in view.stages}
        self._active_at = {stage.name: 0.0 for stage in view.stages}
        self._failures = 0

    def decide(self, seen: Seen, now: float) -> Mapping[str, Allocation] | None:
        """One sync of the HPAs and of the activation."""
        failed = seen.observation.age_s > 2 * POLL_S
        self._failures = self._failures + 1 if failed else 0
        wanted = {}
        for stage in seen.observation.stages:
            trigger = self._triggers[stage.name]
            current = stage.allocation.replicas
            if failed:
                if self._fallback is None or self._failures < self._fallback.failures:
                    continue
                desired = self._fallback.desired(current)
            else:
                if max(stage.arrivals_per_s, stage.queue_depth) > trigger.activation:
                    self._active_at[stage.name] = now
                desired = max(
                    desired_for_external(current, stage.arrivals_per_s, trigger.arrivals_per_s),
                    desired_for_external(current, stage.queue_depth, trigger.queue),
                )
                desired = self._histories[stage.name].stabilise(self._behaviour, now, current, desired)
                desired = limit_rate(self._behaviour, current, desired)
                if now - self._active_at[stage.name] > COOLDOWN_S:
                    desired = self._idle_replicas
            desired = clamp_replicas(desired, limits_of(self._view, stage.name))
            if desired != current:
                wanted[stage.name] = replace(stage.allocation, replicas=desired)
        return wanted
