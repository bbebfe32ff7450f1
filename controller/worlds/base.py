"""What the loop needs of a world. The simulated one and Kubernetes both provide it, so the same controller runs against either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from controller.state import Allocation, ClusterRoom, KnobOutcome, Observation, PipelineView, StageGauge

__all__ = ["Clock", "World"]


class Clock(Protocol):
    """Time as the world has it; in the simulated world sleeping is what makes time pass."""

    def now(self) -> float:
        """Seconds: Unix time in a cluster, simulated time in the simulator."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after that much of the world's time."""
        ...


class World(Protocol):
    """Pipelines that can be observed and scaled."""

    @property
    def clock(self) -> Clock:
        """The world's time."""
        ...

    async def view(self, key: str) -> PipelineView | None:
        """What is fixed about a pipeline, as it is now; None if there is no such pipeline.

        Raises:
            ApiUnavailable: If that cannot be known now.
        """
        ...

    async def decided(self, key: str) -> int:
        """How many rounds of a pipeline were decided as far as the world itself shows; 0 where it shows none.

        Raises:
            ApiUnavailable: If that cannot be known now.
        """
        ...

    async def observe(self, key: str, window_s: float) -> Observation:
        """One pipeline over the last ``window_s`` seconds.

        Raises:
            MetricsUnavailable: If a stage's metrics cannot be had; never a guess.
        """
        ...

    async def gauges(self, key: str, window_s: float) -> Sequence[StageGauge]:
        """Queues right now and arrivals over the last ``window_s`` seconds or a little more, for the reflex.

        Raises:
            MetricsUnavailable: If a stage's metrics cannot be had.
        """
        ...

    async def entering(self, key: str, window_s: float) -> float:
        """Requests per second that entered over the last ``window_s`` seconds or a little more: a glance between two looks at all stages.

        Raises:
            MetricsUnavailable: If the metrics of a stage where requests enter cannot be had.
        """
        ...

    async def room(self, key: str) -> ClusterRoom:
        """What the cluster could still hold.

        Raises:
            ApiUnavailable: If that cannot be known now.
        """
        ...

    async def allocations(self, key: str) -> Mapping[str, Allocation]:
        """What each stage is wished to have now; needs no metrics.

        Raises:
            NotFound: If there is no such pipeline.
            ApiUnavailable: If that cannot be known now.
        """
        ...

    async def apply(self, key: str, wanted: Mapping[str, Allocation], *, reason: str) -> Sequence[KnobOutcome]:
        """Ask for allocations (stages not named stay as they are) and say what became of each changed knob.

        Raises:
            ApiUnavailable: If nothing could be asked for; a partial failure is a KnobOutcome with its reason.
        """
        ...
