"""Carrying the reflex out: what it raises is asked for at once, and what became of that is kept for the next round's record."""

from __future__ import annotations

from controller.applying import Reflex
from controller.granting import granted_action
from controller.knowledge import Learned
from controller.reflex import Queues, react, wakes
from controller.refusing import refused_knobs, without_rises
from controller.state import HOLD, Action, PipelineView, project_all
from controller.tuning import Tuning
from controller.worlds.base import World
from sair.errors import ApiUnavailable, MetricsUnavailable, NotFound
from sair.logs import get_logger

__all__ = ["Reacting"]

_log = get_logger("controller")


class Reacting:
    """The reflex of one pipeline.

    Args:
        key: Of the pipeline.
        world: Where it runs.
        tuning: As always.
    """

    def __init__(self, key: str, world: World, tuning: Tuning) -> None:
        self._key = key
        self._world = world
        self._tuning = tuning
        self._queues = Queues()
        self.done: list[Reflex] = []
        """What was asked for and is in no record yet."""

    def taken(self) -> list[Reflex]:
        """What was asked for, for a record that is about to be written."""
        done, self.done = self.done, []
        return done

    async def act(self, learned: Learned, view: PipelineView, every_s: float) -> Action:
        """Look, and raise what takes effect at once where a queue builds up; what was refused lately is left alone.

        Args:
            learned: What is known.
            view: The pipeline as it is now.
            every_s: From one look to the next, seconds.

        Returns:
            What was granted.
        """
        try:
            gauges = await self._world.gauges(self._key, every_s)
            queued = self._queues.seen(self._world.clock.now(), gauges)
            if not wakes(learned, view, gauges, self._tuning):
                return HOLD
            room = await self._world.room(self._key)
            barred = refused_knobs(learned) | {(short.stage, short.knob) for each in self.done for short in each.short}
            action = without_rises(react(learned, view, gauges, room, self._tuning, queued), barred)
            if not action:
                return HOLD
            wanted = project_all({gauge.name: gauge.allocation for gauge in gauges}, action)
            changed = {delta.stage: wanted[delta.stage] for delta in action.deltas}
            outcomes = await self._world.apply(
                self._key, changed, reason="reflex: a queue builds up, or a known burst begins"
            )
        except (MetricsUnavailable, ApiUnavailable, NotFound) as error:
            _log.warning("the reflex holds", pipeline=self._key, problem=str(error))
            return HOLD
        granted, short = (
            granted_action(action, outcomes),
            tuple(each for each in outcomes if each.granted != each.wished),
        )
        self.done.append(Reflex(self._world.clock.now(), str(granted), short))
        if short:
            said = "; ".join(f"{each.stage} {each.knob}: {each.reason}" for each in short)
            _log.warning("the reflex was refused something", pipeline=self._key, action=str(action), problem=said)
        if granted:
            self._queues.changed()
        return granted
