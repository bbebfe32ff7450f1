"""Asking the world for a decision; where it cannot be asked, nothing of it was granted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controller.decision import Decision
from controller.journal import RoundReport
from controller.remainder import not_granted
from controller.state import Action, Allocation, KnobOutcome
from controller.watcher import Watcher
from controller.worlds.base import World
from sair.errors import ApiUnavailable, NotFound

__all__ = ["ask"]


async def ask(
    world: World, watcher: Watcher | None, report: RoundReport, action: Action, after: Mapping[str, Allocation]
) -> Sequence[KnobOutcome]:
    """Ask the world for an action.

    Args:
        world: Which is asked.
        watcher: Told before.
        report: Of the round; notes if the world could not be asked.
        action: What is still wanted of the decision.
        after: Allocations that it leads to, by stage.

    Returns:
        What became of each knob.
    """
    if not action or report.decision is None:
        return ()
    if watcher is not None:
        await watcher.about_to_act(report)
    changed = {delta.stage: after[delta.stage] for delta in action.deltas}
    try:
        return await world.apply(report.view.key, changed, reason=_reason(report.decision))
    except (ApiUnavailable, NotFound) as error:
        report.unreachable, report.answers = True, ()
        return not_granted(action, after, str(error))


def _reason(decision: Decision) -> str:
    return f"round {decision.round} by {decision.policy}: {decision.action}"
