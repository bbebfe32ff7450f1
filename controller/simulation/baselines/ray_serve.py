"""Ray Serve's autoscaler: desired = ceil(running · (ongoing per replica / target)), on the mean of a look-back of 30 s.

It acts after 30 s without interruption of wanting more, or 600 s of wanting fewer. Ray counts rounds of 0.1 s; here the same delays are
counted in rounds of 1 s, which differs by less than a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from controller.simulation.baselines.policy import Seen, clamp_replicas, limits_of
from controller.state import Allocation, PipelineView

__all__ = ["Delays", "RayServe", "ServeState", "serve_desired"]

LOOK_BACK_S: Final = 30.0
TARGET_ONGOING: Final = 2.0


@dataclass(frozen=True, slots=True)
class Delays:
    """How long a wish must last."""

    up_s: float = 30.0
    down_s: float = 600.0


@dataclass(slots=True)
class ServeState:
    """One deployment."""

    samples: list[tuple[float, float]] = field(default_factory=list)
    wish_since_s: float | None = None
    direction: int = 0


def serve_desired(
    state: ServeState, running: int, current: int, ongoing: float, *, target: float, delays: Delays, now: float
) -> int:
    """Replicas wanted after one more sample; ``current`` while a wish has not lasted long enough.

    Args:
        state: Changed in place.
        running: Replicas that serve.
        current: Replicas asked for.
        ongoing: Requests in the deployment, waiting or being served.
        target: Ongoing requests one replica should have.
        delays: How long a wish must last.
        now: Seconds.
    """
    state.samples.append((now, ongoing))
    state.samples = [sample for sample in state.samples if sample[0] > now - LOOK_BACK_S]
    mean = sum(value for _, value in state.samples) / len(state.samples)
    if running == 0:
        return current
    desired = max(1, math.ceil(running * (mean / running / target) - 1e-9))
    direction = (desired > current) - (desired < current)
    if direction == 0:
        state.direction, state.wish_since_s = 0, None
        return current
    if direction != state.direction or state.wish_since_s is None:
        state.direction, state.wish_since_s = direction, now
    if now - state.wish_since_s < (delays.up_s if direction > 0 else delays.down_s):
        return current
    state.direction, state.wish_since_s = 0, None
    return desired


class RayServe:
    """One deployment per stage.

    Args:
        view: The pipeline.
        targets: Ongoing requests per replica by stage; Ray's default is 2.
        delays: How long a wish must last.
        name: As the table has it.
    """

    interval_s: float = 1.0
    window_s: float = 1.0

    def __init__(
        self,
        view: PipelineView,
        *,
        targets: Mapping[str, float] | None = None,
        delays: Delays | None = None,
        name: str = "Ray Serve",
    ) -> None:
        self.name = name
        self._view = view
        self._targets = dict(targets or {stage.name: TARGET_ONGOING for stage in view.stages})
        self._delays = delays or Delays()
        self._states = {stage.name: ServeState() for stage in view.stages}

    def decide(self, seen: Seen, now: float) -> Mapping[str, Allocation] | None:
        """One round for every deployment."""
        wanted = {}
        for stage in seen.observation.stages:
            desired = serve_desired(
                self._states[stage.name],
                stage.ready,
                stage.allocation.replicas,
                seen.ongoing[stage.name],
                target=self._targets[stage.name],
                delays=self._delays,
                now=now,
            )
            desired = clamp_replicas(desired, limits_of(self._view, stage.name))
            if desired != stage.allocation.replicas:
                wanted[stage.name] = replace(stage.allocation, replicas=desired)
        return wanted
