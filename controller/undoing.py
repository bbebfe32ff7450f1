"""Carrying a rollback out: at once, between two rounds, with no metrics; and not twice."""

from __future__ import annotations

import math

from controller.asking import ask
from controller.journal import RoundReport, decision_record, outcome_record
from controller.memory.mirror import MirroredMemory
from controller.rollback import answered, rolled_back
from controller.state import PipelineView, Rollback
from controller.tuning import Tuning
from controller.watcher import Watcher
from controller.worlds.base import World
from sair.errors import ApiUnavailable, NotFound
from sair.logs import get_logger
from sair.pipeline import RollbackStatus

__all__ = ["Undoing"]

_log = get_logger("controller")


class Undoing:
    """The rollbacks of one pipeline, for one term of leadership.

    Args:
        world: Where the pipeline runs.
        memory: Journal.
        tuning: Prices, and how long to wait before trying again.
        watcher: Told before the world is asked.
    """

    def __init__(self, world: World, memory: MirroredMemory, tuning: Tuning, watcher: Watcher | None) -> None:
        self._world = world
        self._memory = memory
        self._tuning = tuning
        self._watcher = watcher
        self.answer: RollbackStatus | None = None
        """What became of the newest one."""
        self._tried_s = -math.inf

    def wanted(self, view: PipelineView) -> Rollback | None:
        """The rollback that is still to be carried out, None if there is none."""
        request, now = view.rollback, self._world.clock.now()
        if request is None or request.done or view.mode != "auto" or not view.held(now):
            return None
        if self.answer is not None and self.answer.at == request.at:
            return None  # the copy of the Pipeline does not say so yet
        return request if now >= self._tried_s + self._tuning.interval_s else None

    async def carry_out(self, request: Rollback, report: RoundReport) -> bool:
        """Decide, record and apply; what becomes of it is put into the report.

        Args:
            request: What is wanted.
            report: Of a round of its own.

        Returns:
            Whether anything was decided; not while the world cannot be looked at.
        """
        view, now = report.view, report.time_s
        # What cannot be done now is tried again, but not every two seconds.
        self._tried_s = now
        try:
            current, room = await self._world.allocations(view.key), await self._world.room(view.key)
        except (ApiUnavailable, NotFound) as error:
            _log.warning("a rollback waits", pipeline=view.key, problem=str(error))
            return False
        decision = rolled_back(request, view, current, room, report.round, now, self._tuning.prices)
        report.decision, report.room = decision, room
        # Before anything is asked of the world, as with every decision.
        await self._memory.record(view.key, decision_record(report))
        report.outcomes = await ask(self._world, self._watcher, report, decision.action, decision.after)
        if decision.action:
            await self._memory.record(view.key, outcome_record(report))
        if not report.unreachable:
            self.answer, self._tried_s = answered(request, decision, report.limited), -math.inf
        report.rollback = self.answer
        _log.info("rolled back", pipeline=view.key, to_before=request.round, action=str(decision.action))
        return True
