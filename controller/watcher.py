"""Who wants to see what the loop does."""

from __future__ import annotations

from typing import Protocol

from controller.journal import RoundReport
from controller.state import Action, PipelineView

__all__ = ["Watcher"]


class Watcher(Protocol):
    """Somebody who wants to see every round: a live view, the Pipeline's status."""

    async def round_ended(self, report: RoundReport) -> None:
        """Called after each round, decided or held."""
        ...

    async def about_to_act(self, report: RoundReport) -> None:
        """Called after a decision was recorded, before the world is asked for it."""
        ...

    async def reflexed(self, view: PipelineView, time_s: float, action: Action) -> None:
        """Called after the reflex acted."""
        ...
