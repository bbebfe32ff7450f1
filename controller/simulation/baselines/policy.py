"""What a baseline is: it sees a metrics window at its own interval and answers with allocations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from controller.state import Allocation, Limits, Observation, PipelineView, StageObservation
from sair.quantities import GpuRate, Millicores

__all__ = ["Policy", "Seen", "busiest", "clamp_cpu", "clamp_rate", "clamp_replicas", "limits_of"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a policy is shown."""

    observation: Observation
    """Over the policy's own window."""
    ongoing: Mapping[str, int]
    """Tasks in each stage at this moment, waiting and being served: what Knative and Ray Serve count."""


class Policy(Protocol):
    """A baseline with its state; one instance per run."""

    @property
    def name(self) -> str:
        """As the comparison table has it."""
        ...

    @property
    def interval_s(self) -> float:
        """How often it decides."""
        ...

    @property
    def window_s(self) -> float:
        """Over how long its metrics are taken."""
        ...

    def decide(self, seen: Seen, now: float) -> Mapping[str, Allocation] | None:
        """Allocations to ask for; stages left out stay as they are, None leaves everything."""
        ...


def limits_of(view: PipelineView, stage: str) -> Limits:
    """Bounds of a stage's knobs."""
    found = view.stage(stage)
    return found.limits if found is not None else Limits()


def busiest(stage: StageObservation) -> float:
    """Utilisation of the resource that a stage uses most."""
    return max(stage.cpu_utilisation, stage.gpu_utilisation)


def clamp_replicas(replicas: int, limits: Limits) -> int:
    """Within the stage's bounds."""
    return min(limits.replicas_max, max(limits.replicas_min, replicas))


def clamp_cpu(millicores: float, limits: Limits) -> Millicores:
    """Within the stage's bounds."""
    return Millicores(min(limits.cpu_max, max(limits.cpu_min, round(millicores))))


def clamp_rate(milli: float, limits: Limits) -> GpuRate:
    """Within the stage's bounds."""
    return GpuRate(min(limits.gpu_milli_max, max(limits.gpu_milli_min, round(milli))))
