"""Rounds that an earlier leader decided and did not live to finish: found in the journal, taken over, never decided again.

The journal's decision record is written before anything is asked of the world, the state after it. A record whose round the stored
state does not count yet was therefore decided by somebody who is gone. Such rounds are folded in from the record exactly as their
leader would have done it; what the last of them still wants of the world is left open.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from controller import round as rounds
from controller.decision import Decision, Situation
from controller.experience import Experience
from controller.knowledge import Knowledge
from controller.recorded import RecordedRound
from controller.remainder import Open
from controller.state import HOLD, ClusterRoom, KnobOutcome, PipelineView, difference
from controller.tuning import Tuning
from sair.errors import EntryError

__all__ = ["TakenOver", "take_over", "time_of", "unsaved"]

_FOLDED_MOST: Final = 50
"""Rounds folded in at a takeover; more can only be there if Redis was away for long, and teach little more."""

_ID: Final = re.compile(r"[0-9]{8,12}-([0-9A-Za-z_-]{1,40})", re.ASCII)


@dataclass(frozen=True, slots=True)
class TakenOver:
    """What the journal adds to the stored state."""

    knowledge: Knowledge
    observed_s: float
    """World time of the newest observation in it."""
    experiences: tuple[Experience, ...] = ()
    """Concluded by an earlier leader and not stored."""
    untold: tuple[Experience, ...] = ()
    """Those of them whose end the journal does not tell yet."""
    open: Open | None = None
    """What is to be settled before the knowledge may go on to another round."""
    problems: tuple[str, ...] = ()
    """Records that could not be used."""


def unsaved(recorded: Sequence[RecordedRound], round_number: int, observed_s: float) -> list[RecordedRound]:
    """The rounds that the stored state does not know of, oldest first.

    Args:
        recorded: The end of the journal, oldest first.
        round_number: The first round that the stored state has not decided.
        observed_s: World time of the newest observation in the stored state. Held rounds keep their number: only time tells them apart.
    """
    return [each for each in recorded if each.round >= round_number and (each.decided or time_of(each) > observed_s)][
        -_FOLDED_MOST:
    ]


def time_of(each: RecordedRound) -> float:
    """When it was, in the world's seconds; before all times where that cannot be read."""
    try:
        return each.time_s
    except EntryError:
        return float("-inf")


def take_over(
    knowledge: Knowledge,
    recorded: Sequence[RecordedRound],
    view: PipelineView,
    observed_s: float,
    tuning: Tuning,
    *,
    writer: str = "0",
) -> TakenOver:
    """Fold in what an earlier leader observed, concluded and decided after its last save.

    Args:
        knowledge: As restored.
        recorded: The end of the journal, oldest first.
        view: The pipeline as it is now; records of other stages teach nothing about it.
        observed_s: As for ``unsaved``.
        tuning: As always.
        writer: Part of the ids of experiences that the journal does not name yet.
    """
    folding = _Folding(knowledge, recorded, observed_s, tuning, writer)
    for each in unsaved(recorded, knowledge.learned.round, observed_s):
        try:
            # A damaged state may hold any number; what comes of it is bounded where it is used.
            with np.errstate(all="ignore"):
                folding.take(each, view)
        except (EntryError, ValueError, ArithmeticError, LookupError) as error:
            folding.skip(each, error)
    return folding.result()


class _Folding:
    """The rounds folded in so far."""

    def __init__(
        self,
        knowledge: Knowledge,
        recorded: Sequence[RecordedRound],
        observed_s: float,
        tuning: Tuning,
        writer: str,
    ) -> None:
        self._knowledge = knowledge
        self._observed_s = observed_s
        self._tuning = tuning
        self._writer = writer
        self._ends = {
            each.round: each.text("experience", each.concluded) for each in recorded if each.concluded is not None
        }
        self._known = {each.id for each in knowledge.memory.experiences}
        self._experiences: list[Experience] = []
        self._untold: list[Experience] = []
        self._problems: list[str] = []
        self._open: Open | None = None

    def result(self) -> TakenOver:
        return TakenOver(
            self._knowledge,
            self._observed_s,
            tuple(self._experiences),
            tuple(self._untold),
            self._open,
            tuple(self._problems),
        )

    def skip(self, each: RecordedRound, error: Exception) -> None:
        """Its number is taken all the same: what cannot be read may have been applied."""
        self._problems.append(str(error))
        if each.decided:
            self._count(each.round + 1)

    def take(self, each: RecordedRound, view: PipelineView) -> None:
        if self._open is not None:  # somebody observed after it: what came of it is in that observation
            waiting, self._open = self._open, None
            self._apply(waiting.situation, waiting.decision, (), None)
        if each.decided and each.observation() is None:  # a rollback: what is left of it, its request still says
            self._knowledge = rounds.undone(self._knowledge, each.round, each.time_s, self._tuning)
            return
        situation, decision = _told(each, view)
        outcomes, answers = each.outcomes(), each.answers()
        self._knowledge = rounds.reacted(self._knowledge, each.reflexes(), self._tuning)
        if situation is None:
            return
        self._observe(situation)
        if decision is None:
            return
        self._count(each.round)
        auto = situation.view.mode == "auto"
        if auto and decision.action and outcomes is None:
            self._open = Open(situation, decision)
        else:
            self._apply(situation, decision if auto else replace(decision, action=HOLD), outcomes or (), answers)

    def _observe(self, situation: Situation) -> None:
        learned, tuning = self._knowledge.learned, self._tuning
        told = _ID.fullmatch(self._ends.get(learned.pending.round, "")) if learned.pending is not None else None
        if told is not None and told[0] in self._known:
            told = None  # of an earlier count of rounds
        self._knowledge, experience = rounds.take_in(
            self._knowledge,
            situation.view,
            situation.observation,
            tuning,
            writer=told[1] if told else self._writer,
        )
        self._observed_s = max(self._observed_s, situation.observation.time_s)
        if experience is not None:
            self._experiences.append(experience)
            self._untold += [] if told else [experience]

    def _apply(
        self,
        situation: Situation,
        decision: Decision,
        outcomes: Sequence[KnobOutcome],
        answers: Sequence[KnobOutcome] | None,
    ) -> None:
        self._knowledge = rounds.applied(self._knowledge, situation, decision, outcomes, self._tuning, answers=answers)

    def _count(self, number: int) -> None:
        learned = self._knowledge.learned
        self._knowledge = replace(self._knowledge, learned=replace(learned, round=max(number, learned.round)))


def _told(each: RecordedRound, view: PipelineView) -> tuple[Situation | None, Decision | None]:
    """Situation and decision of a record; None for what it does not have.

    Raises:
        EntryError: If a field cannot be read or is about something else.
    """
    then, observation = each.view(), each.observation()
    if then is None or observation is None:
        return None, None
    stages = [stage.name for stage in view.stages]
    if then.key != view.key or observation.pipeline != view.key or [stage.name for stage in then.stages] != stages:
        raise each.error("view_json", then.key, f"the stages of {view.key}")
    situation = Situation(then, observation, each.room() or ClusterRoom(()), each.time_s)
    if not each.decided:
        return situation, None
    before, after = each.allocations("before_json"), each.allocations("after_json")
    if before is None or after is None or before.keys() != after.keys() or not before.keys() <= set(stages):
        raise each.error("after_json", each.text("after_json"), "the stages of before_json")
    action = difference(before, after, sorted(before))
    return situation, Decision(
        pipeline=view.key,
        round=each.round,
        time_s=each.time_s,
        policy=each.text("policy"),
        wished=action,
        action=action,
        before=before,
        after=after,
        verdicts=tuple(each.verdicts()),
        reason=each.text("reason"),
        bottleneck=each.text("bottleneck") or None,
        predicted_p99_s=each.number("predicted_p99_s"),
        predicted_reward=each.number("predicted_reward"),
        epsilon=each.number("epsilon") or 0.0,
    )
