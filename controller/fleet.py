"""All pipelines of a cluster, a loop each, started as they appear and ended as they go."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from controller.discovery import Found
from controller.loop import PipelineLoop
from controller.metrics import ControllerMetrics
from controller.status import StatusWriter
from controller.worlds.kubernetes import KubernetesWorld
from sair.errors import SairError
from sair.kube.backoff import Backoff
from sair.logs import get_logger

__all__ = ["Fleet"]

_log = get_logger("controller")

_LOOK_S = 2.0
_SPREAD_S = 30.0
"""Over how long the loops of very many pipelines are started: as long as a round."""
_STARTS_LEAST = 64
"""Loops that are started at once."""
_BACKOFF = Backoff(base_s=2.0, cap_s=300.0)
_WELL_S = 300.0
"""A loop that ran so long before it failed is started again as if it had never failed."""


@dataclass(slots=True)
class _Running:
    task: asyncio.Task[None]
    since_s: float


@dataclass(slots=True)
class _Failing:
    times: int
    until_s: float


class Fleet:
    """Runs a PipelineLoop for each pipeline there is; what goes wrong with one leaves the others alone.

    Args:
        world: Where they are.
        status: Creates Pipeline objects.
        metrics: Counts failures.
        make_loop: Makes the loop of a pipeline.
        look_s: How often to look what there is, seconds.
        crowd: Filled with the keys of those whose loop runs; several fleets of a process may share it.
    """

    def __init__(
        self,
        world: KubernetesWorld,
        status: StatusWriter,
        metrics: ControllerMetrics,
        make_loop: Callable[[str], PipelineLoop],
        *,
        look_s: float = _LOOK_S,
        crowd: set[str] | None = None,
    ) -> None:
        self._world = world
        self._status = status
        self._metrics = metrics
        self._make_loop = make_loop
        self._look_s = look_s
        self._crowd = set() if crowd is None else crowd
        self._running: dict[str, _Running] = {}
        self._failing: dict[str, _Failing] = {}

    @property
    def pipelines(self) -> tuple[str, ...]:
        """Those whose loop runs."""
        return tuple(sorted(self._running))

    async def run(self) -> None:
        """Run until cancelled; a loop that fails is logged and started again after a while."""
        try:
            while True:
                try:
                    await self._look()
                except SairError as error:
                    _log.warning("pipelines cannot be looked for; trying again", problem=str(error))
                await asyncio.sleep(self._look_s)
        finally:
            tasks = [running.task for running in self._running.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._crowd -= self._running.keys()
            for key in self._running:
                # Somebody else shows them from now on.
                self._status.forget(key)

    async def _look(self) -> None:
        found, now = self._world.found(), self._world.clock.now()
        self._reap(now)
        for key in self._failing.keys() - found.keys():
            del self._failing[key]
        self._world.forget()
        # Not a thousand at once: their rounds would come all at once ever after.
        starts = max(_STARTS_LEAST, math.ceil(len(found) * self._look_s / _SPREAD_S))
        for key in found:
            failing = self._failing.get(key)
            if starts and key not in self._running and (failing is None or now >= failing.until_s):
                starts -= 1
                task = asyncio.create_task(self._make_loop(key).run(_cancelled), name=f"pipeline {key}")
                self._running[key] = _Running(task, now)
                self._crowd.add(key)
        await asyncio.gather(*(self._tend(key, each) for key, each in found.items()))

    async def _tend(self, key: str, found: Found) -> None:
        try:
            if not self._world.exists(key):
                await self._status.ensure(found)
            await self._world.settle(key)
        except SairError as error:
            _log.warning("a pipeline cannot be tended; trying again", pipeline=key, problem=str(error))

    def _reap(self, now: float) -> None:
        for key, running in list(self._running.items()):
            if not running.task.done():
                continue
            del self._running[key]
            self._crowd.discard(key)
            error = None if running.task.cancelled() else running.task.exception()
            if error is None:  # the pipeline was gone
                self._failing.pop(key, None)
                self._status.forget(key)
                continue
            before = self._failing.get(key)
            times = before.times + 1 if before is not None and now - running.since_s < _WELL_S else 1
            wait_s = _BACKOFF.delay_s(times, 1.0)
            self._failing[key] = _Failing(times, now + wait_s)
            self._metrics.failed(key)
            _log.error("a pipeline's loop failed", pipeline=key, again_in_s=round(wait_s, 1), exc_info=error)


def _cancelled() -> bool:
    """This task was told to end. Before Python 3.12 ``asyncio.wait_for``, which the Redis client sends with, may lose that."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
