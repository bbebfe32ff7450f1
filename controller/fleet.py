"""All pipelines of a cluster, a loop each, started as they appear and ended as they go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controller.loop import PipelineLoop
from controller.status import StatusWriter
from controller.worlds.kubernetes import KubernetesWorld
from sair.errors import ApiUnavailable, Conflict, PermanentError
from sair.logs import get_logger

__all__ = ["Fleet"]

_log = get_logger("controller")

_LOOK_S = 2.0


class Fleet:
    """Runs a PipelineLoop for each pipeline there is.

    Args:
        world: Where they are.
        status: Creates Pipeline objects.
        make_loop: Makes the loop of a pipeline.
    """

    def __init__(self, world: KubernetesWorld, status: StatusWriter, make_loop: Callable[[str], PipelineLoop]) -> None:
        self._world = world
        self._status = status
        self._make_loop = make_loop
        self._known: set[str] = set()
        self.running: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Run until cancelled; a loop that fails is logged and started again, the others go on."""
        try:
            while True:
                try:
                    await self._look()
                except (ApiUnavailable, Conflict, PermanentError) as error:
                    _log.warning("pipelines cannot be looked for; trying again", problem=str(error))
                await asyncio.sleep(_LOOK_S)
        finally:
            for task in self.running.values():
                task.cancel()
            await asyncio.gather(*self.running.values(), return_exceptions=True)

    async def _look(self) -> None:
        found = self._world.found()
        for key, task in list(self.running.items()):
            if task.done():
                del self.running[key]
                if not task.cancelled() and task.exception() is not None:
                    _log.error("a pipeline's loop failed; it is started again", pipeline=key, exc_info=task.exception())
        self._known &= found.keys()
        for key, each in found.items():
            if key not in self._known:
                await self._status.ensure(each)
                self._known.add(key)
            if key not in self.running:
                self.running[key] = asyncio.create_task(self._make_loop(key).run(), name=f"pipeline {key}")
