"""Finishing what an earlier leader did not live to finish: told in the journal, settled with the world, concluded where it was seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from controller import round as rounds
from controller.asking import ask
from controller.experience import Experience
from controller.journal import RoundReport, concluded_record, outcome_record
from controller.knowledge import Knowledge
from controller.memory.mirror import MirroredMemory
from controller.remainder import Open, Remainder, remainder, settled
from controller.resuming import TakenOver
from controller.state import HOLD, Observation, PipelineView, project_all
from controller.tuning import Tuning
from controller.watcher import Watcher
from controller.worlds.base import World
from sair.errors import ApiUnavailable
from sair.logs import get_logger

__all__ = ["Seen", "finish", "settle", "tell"]

_log = get_logger("controller")

_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a leader observed first: how the last round of the one before it came out."""

    view: PipelineView
    observation: Observation


async def tell(memory: MirroredMemory, pipeline: str, experiences: Iterable[Experience]) -> None:
    """Record how rounds ended."""
    for each in experiences:
        await memory.record(pipeline, concluded_record(each))


async def settle(
    world: World,
    watcher: Watcher | None,
    memory: MirroredMemory,
    knowledge: Knowledge,
    waiting: Open,
    view: PipelineView,
    tuning: Tuning,
) -> tuple[Knowledge, RoundReport]:
    """Ask for what is missing of a decision whose leader is gone, and record what became of it.

    Args:
        world: Which is asked, as long as it takes.
        watcher: Told before.
        memory: Its journal.
        knowledge: As it was when the round was decided.
        waiting: The decision.
        view: The pipeline as it is now.
        tuning: As always.

    Returns:
        What is known afterwards, and the round's report.
    """
    decision, clock = waiting.decision, world.clock
    while True:
        try:
            current, room = await world.allocations(view.key), await world.room(view.key)
            break
        except ApiUnavailable as error:
            _log.warning("an earlier leader's decision cannot be settled yet", problem=str(error))
            await clock.sleep(_RETRY_S)
    rest = remainder(waiting, current, view, room, knowledge, clock.now(), tuning)
    report = _report(waiting, tuning)
    report.resumed = f"settled by another controller after {max(0.0, clock.now() - decision.time_s):.0f} s"
    answers = await ask(world, watcher, report, rest.action, project_all(current, rest.action))
    report.outcomes = settled(decision, current, rest, answers)
    report.answers = () if report.unreachable else answers
    _log.info(
        "took over a round",
        pipeline=view.key,
        round=decision.round,
        action=str(decision.action),
        now=str(rest.action),
    )
    return await _applied(memory, knowledge, waiting, report, tuning), report


async def finish(
    memory: MirroredMemory, taken: TakenOver, seen: Seen, tuning: Tuning, *, writer: str
) -> tuple[Knowledge, tuple[Experience, ...]]:
    """Finish an earlier leader's rounds once others were observed since: nothing more is asked of the world for them.

    Args:
        memory: Its journal.
        taken: What the journal tells of them.
        seen: The first observation after them.
        tuning: As always.
        writer: Part of the ids of experiences.

    Returns:
        What was known up to that observation, with nothing pending, and the experiences that are not stored.
    """
    await tell(memory, seen.view.key, taken.untold)
    knowledge, experiences = taken.knowledge, taken.experiences
    if taken.open is not None:
        rest = Remainder(HOLD, "others were decided before it was found")
        report = _report(taken.open, tuning)
        report.resumed = "found by another controller that had gone on without it"
        report.outcomes = settled(taken.open.decision, seen.observation.allocations, rest, ())
        report.answers = ()
        knowledge = await _applied(memory, knowledge, taken.open, report, tuning)
    experience = rounds.conclude(knowledge, seen.observation, seen.view, tuning, writer=writer)
    if experience is not None:
        knowledge, surprisal = rounds.learn(knowledge, experience, tuning)
        experience = replace(experience, surprisal=surprisal)
        await tell(memory, seen.view.key, [experience])
        experiences = (*experiences, experience)
    return replace(knowledge, learned=replace(knowledge.learned, pending=None)), experiences


def _report(waiting: Open, tuning: Tuning) -> RoundReport:
    decision = waiting.decision
    report = RoundReport(waiting.situation.view, decision.round, decision.time_s, decision=decision, tuning=tuning)
    report.observation = waiting.situation.observation
    return report


async def _applied(
    memory: MirroredMemory, knowledge: Knowledge, waiting: Open, report: RoundReport, tuning: Tuning
) -> Knowledge:
    await memory.record(report.view.key, outcome_record(report))
    return rounds.applied(
        knowledge, waiting.situation, waiting.decision, report.outcomes, tuning, answers=report.answers
    )
