"""Knative's pod autoscaler (KPA): concurrency over a stable window of 60 s, and over a panic window of 6 s.

Every 2 s: desired = ceil(mean concurrency of the window / target), target = 0.7 · containerConcurrency, clamped to
[⌊ready/2⌋, 1000 · ready]. Panic begins when the panic window wants at least twice the ready pods; then the larger of both counts,
never decreasing, until 60 s after the last time that it did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from controller.simulation.baselines.policy import Seen, clamp_replicas, limits_of
from controller.state import Allocation, PipelineView

__all__ = ["Knative", "KpaState", "kpa_desired"]

TICK_S: Final = 2.0
STABLE_S: Final = 60.0
PANIC_S: Final = 6.0
PANIC_THRESHOLD: Final = 2.0
TARGET_UTILISATION: Final = 0.7
MOST_UP: Final = 1000.0
MOST_DOWN: Final = 2.0


@dataclass(slots=True)
class KpaState:
    """One revision."""

    samples: list[tuple[float, float]] = field(default_factory=list)
    """(time, total concurrency)."""
    panic_since_s: float | None = None
    """When the panic threshold was last crossed."""
    panic_pods: int = 0


def kpa_desired(state: KpaState, ready: int, concurrency: float, target: float, now: float) -> int:
    """Pods wanted after one more sample.

    Args:
        state: Changed in place.
        ready: Ready pods.
        concurrency: Requests in the revision, waiting or being served.
        target: Concurrency one pod should have.
        now: Seconds.
    """
    state.samples.append((now, concurrency))
    state.samples = [sample for sample in state.samples if sample[0] > now - STABLE_S]
    ready = max(1, ready)
    stable = _average(state.samples, now - STABLE_S)
    panic = _average(state.samples, now - PANIC_S)
    highest, lowest = math.ceil(MOST_UP * ready), math.floor(ready / MOST_DOWN)
    wanted_stable = min(max(math.ceil(stable / target), lowest), highest)
    wanted_panic = min(max(math.ceil(panic / target), lowest), highest)
    if wanted_panic / ready >= PANIC_THRESHOLD:
        if state.panic_since_s is None:
            state.panic_pods = 0
        state.panic_since_s = now
    elif state.panic_since_s is not None and state.panic_since_s + STABLE_S < now:
        state.panic_since_s = None
    if state.panic_since_s is None:
        return wanted_stable
    state.panic_pods = max(state.panic_pods, ready, wanted_stable, wanted_panic)
    return state.panic_pods


def _average(samples: list[tuple[float, float]], since: float) -> float:
    recent = [value for time, value in samples if time > since]
    return sum(recent) / len(recent)


class Knative:
    """One revision per stage.

    Args:
        view: The pipeline.
        container_concurrency: Requests that a replica of each stage takes at a time.
        name: As the table has it.
    """

    interval_s: float = TICK_S
    window_s: float = TICK_S

    def __init__(
        self, view: PipelineView, container_concurrency: Mapping[str, float], *, name: str = "Knative KPA"
    ) -> None:
        self.name = name
        self._view = view
        self._targets = {stage: TARGET_UTILISATION * count for stage, count in container_concurrency.items()}
        self._states = {stage.name: KpaState() for stage in view.stages}

    def decide(self, seen: Seen, now: float) -> Mapping[str, Allocation] | None:
        """One tick of every autoscaler."""
        wanted = {}
        for stage in seen.observation.stages:
            desired = kpa_desired(
                self._states[stage.name], stage.ready, seen.ongoing[stage.name], self._targets[stage.name], now
            )
            desired = clamp_replicas(desired, limits_of(self._view, stage.name))
            if desired != stage.allocation.replicas:
                wanted[stage.name] = replace(stage.allocation, replicas=desired)
        return wanted
