"""When the reflex looks at a pipeline: at regular times, and as soon as a burst of a known kind begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from controller.knowledge import Knowledge
from controller.reflex import SAME_MOMENT_S, look_every_s, surge_rate, watch_every_s
from controller.state import PipelineView
from controller.tuning import Tuning
from controller.worlds.base import World
from sair.errors import ApiUnavailable, MetricsUnavailable, NotFound

__all__ = ["Looks", "Watch"]


@dataclass(frozen=True, slots=True)
class Watch:
    """How the next look is waited for."""

    every_s: float
    """After how long it is due, seconds."""
    step_s: float
    """From one glance to the next; as long, where nobody glances."""
    least_per_s: float
    """Arrivals above it are the beginning of a burst, requests per second; infinite where none is waited for."""

    @property
    def glances(self) -> bool:
        """Arrivals are glanced at."""
        return self.least_per_s < math.inf


class Looks:
    """The times of one pipeline's looks.

    Args:
        key: Of the pipeline.
        world: Its clock, and the arrivals.
        tuning: How often.
        pipelines: How many there are in this process: the more, the less often it looks at each.
    """

    def __init__(self, key: str, world: World, tuning: Tuning, pipelines: Callable[[], int]) -> None:
        self._key = key
        self._world = world
        self._tuning = tuning
        self._pipelines = pipelines

    def every_s(self, view: PipelineView) -> float:
        """Seconds from one to the next."""
        return look_every_s(view, self._tuning, self._pipelines())

    async def watch(self, view: PipelineView, knowledge: Knowledge | None) -> Watch:
        """How to wait for the next one.

        Arrivals at a pipeline that memory knows to burst are glanced at on the way, but not while a burst goes on, nor where nothing
        would come of it.
        """
        every_s = self.every_s(view)
        if knowledge is not None and view.mode == "auto" and self._tuning.reflex:
            step_s = watch_every_s(knowledge.learned, view, self._tuning, self._pipelines())
            least = surge_rate(knowledge.learned, every_s, self._tuning)
            if step_s is not None and await self._entering(every_s) <= least:
                return Watch(every_s, step_s, least)
        return Watch(every_s, every_s, math.inf)

    async def begins(self, watch: Watch) -> bool:
        """Glance: whether a burst begins."""
        return watch.glances and await self._entering(watch.every_s) > watch.least_per_s

    async def next(self, view: PipelineView, knowledge: Knowledge | None, latest_s: float) -> None:
        """Sleep until it is time for one, at the latest until ``latest_s``, the world's time."""
        clock = self._world.clock
        due_s = min(clock.now() + self.every_s(view), latest_s)
        watch = await self.watch(view, knowledge)
        while watch.glances and due_s - clock.now() > watch.step_s + SAME_MOMENT_S:
            await clock.sleep(watch.step_s)
            if await self.begins(watch):
                return
        await clock.sleep(due_s - clock.now())

    async def _entering(self, over_s: float) -> float:
        try:
            return await self._world.entering(self._key, over_s)
        except (MetricsUnavailable, ApiUnavailable, NotFound):
            return 0.0  # the look that follows says so
