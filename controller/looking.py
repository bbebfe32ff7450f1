"""When the reflex looks at a pipeline: at regular times, and as soon as a burst of a known kind begins."""

from __future__ import annotations

from collections.abc import Callable

from controller.knowledge import Knowledge
from controller.reflex import SAME_MOMENT_S, look_every_s, surge_rate, watch_every_s
from controller.state import PipelineView
from controller.tuning import Tuning
from controller.worlds.base import World
from sair.errors import ApiUnavailable, MetricsUnavailable, NotFound

__all__ = ["Looks"]


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

    async def next(self, view: PipelineView, knowledge: Knowledge | None, latest_s: float) -> None:
        """Sleep until it is time for one, at the latest until ``latest_s``, the world's time.

        Arrivals at a pipeline that memory knows to burst are glanced at on the way, but not while a burst goes on, nor where nothing
        would come of it.
        """
        clock, every_s = self._world.clock, self.every_s(view)
        due_s = min(clock.now() + every_s, latest_s)
        if knowledge is not None and view.mode == "auto" and self._tuning.reflex:
            step_s = watch_every_s(knowledge.learned, view, self._tuning, self._pipelines())
            least = surge_rate(knowledge.learned, every_s, self._tuning)
            if step_s is not None and await self._entering(every_s) <= least:
                while due_s - clock.now() > step_s + SAME_MOMENT_S:
                    await clock.sleep(step_s)
                    if await self._entering(every_s) > least:
                        return
        await clock.sleep(due_s - clock.now())

    async def _entering(self, over_s: float) -> float:
        try:
            return await self._world.entering(self._key, over_s)
        except (MetricsUnavailable, ApiUnavailable, NotFound):
            return 0.0  # the look that follows says so
