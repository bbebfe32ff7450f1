"""Rounds that an earlier leader decided and did not live to finish: found in the journal, taken over, never decided again.

The journal's decision record is written before anything is asked of the world, the state after it. A record whose round the stored
state does not count yet was therefore decided by somebody who is gone. Such rounds are folded in from the record exactly as their
leader would have done it; what the last of them still wants of the world is worked out against what the world shows now.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from controller import round as rounds
from controller.case import Case
from controller.decision import Decision, Situation
from controller.experience import Experience
from controller.guardrails import judge
from controller.knowledge import Knowledge
from controller.prediction import PipelineModel
from controller.recorded import RecordedRound
from controller.reflex import freeze
from controller.state import (
    HOLD,
    Action,
    Allocation,
    ClusterRoom,
    KnobOutcome,
    PipelineView,
    StageDelta,
    difference,
)
from controller.tuning import Tuning
from sair.errors import EntryError

__all__ = [
    "GOOD_FOR_ROUNDS",
    "Open",
    "Remainder",
    "TakenOver",
    "not_granted",
    "remainder",
    "settled",
    "take_over",
    "unsaved",
]

GOOD_FOR_ROUNDS: Final = 2.0
"""A decision that is older than so many rounds is not applied any more: the next round knows better."""

_FOLDED_MOST: Final = 50
"""Rounds folded in at a takeover; more can only be there if Redis was away for long, and teach little more."""

_ID: Final = re.compile(r"[0-9]{8,12}-([0-9A-Za-z_-]{1,40})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Open:
    """A decision that may have been applied in whole, in part or not at all."""

    situation: Situation
    """As it was decided in."""
    decision: Decision


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


@dataclass(frozen=True, slots=True)
class Remainder:
    """What is still to be asked of the world, and why the rest is not."""

    action: Action
    refused: str = ""


def unsaved(recorded: Sequence[RecordedRound], round_number: int, observed_s: float) -> list[RecordedRound]:
    """The rounds that the stored state does not know of, oldest first.

    Args:
        recorded: The end of the journal, oldest first.
        round_number: The first round that the stored state has not decided.
        observed_s: World time of the newest observation in the stored state. Held rounds keep their number: only time tells them apart.
    """
    return [each for each in recorded if each.round >= round_number and (each.decided or _time_of(each) > observed_s)][
        -_FOLDED_MOST:
    ]


def _time_of(each: RecordedRound) -> float:
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
        reflexes, outcomes, answers = each.reflexes(), each.outcomes(), each.answers()
        if situation is None:
            return
        self._observe(situation, [reflex.time_s for reflex in reflexes])
        if decision is None:
            return
        self._count(each.round)
        auto = situation.view.mode == "auto"
        if auto and decision.action and outcomes is None:
            self._open = Open(situation, decision)
        else:
            self._apply(situation, decision if auto else replace(decision, action=HOLD), outcomes or (), answers)

    def _observe(self, situation: Situation, reflexes_s: Sequence[float]) -> None:
        learned, tuning = self._knowledge.learned, self._tuning
        for time_s in reflexes_s if tuning.reflex else ():
            learned = freeze(learned, time_s, tuning)
        told = _ID.fullmatch(self._ends.get(learned.pending.round, "")) if learned.pending is not None else None
        if told is not None and told[0] in self._known:
            told = None  # of an earlier count of rounds
        self._knowledge, experience = rounds.take_in(
            replace(self._knowledge, learned=learned),
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


def remainder(
    waiting: Open,
    current: Mapping[str, Allocation],
    view: PipelineView,
    room: ClusterRoom,
    knowledge: Knowledge,
    now: float,
    tuning: Tuning,
) -> Remainder:
    """What is still to be asked of the world for a decision that somebody else took.

    The guardrails judge it again, as things stand now: bounds, budget and room may have changed, what the journal says may have been
    written by anybody, and the metrics that it rests on are older. Once they are stale nothing of it goes down.

    Args:
        waiting: The decision.
        current: What each stage is wished to have now.
        view: The pipeline as it is now.
        room: As it is now.
        knowledge: As it was when the round was decided.
        now: World time, seconds.
        tuning: As always.
    """
    decision, seen = waiting.decision, waiting.situation.observation
    rest = Action.of(
        _rest(delta, current[delta.stage], decision.after[delta.stage])
        for delta in decision.action.deltas
        if delta.stage in current
    )
    age_s = max(0.0, now - decision.time_s)
    if not rest:
        return Remainder(HOLD)
    if view.mode != "auto":
        return Remainder(HOLD, f"mode is {view.mode} by now")
    if age_s > GOOD_FOR_ROUNDS * tuning.interval_s:
        return Remainder(HOLD, f"the decision is {age_s:.0f} s old: the next round decides anew")
    stages = tuple(replace(each, allocation=current.get(each.name, each.allocation)) for each in seen.stages)
    observation = replace(seen, stages=stages, age_s=seen.age_s + age_s)
    situation = Situation(view, observation, room, now)
    model = PipelineModel.of(knowledge, situation, tuning)
    action, verdicts = judge(rest, Case(situation, knowledge.learned, model))
    cut = [f"{each.rule}: {each.reason}" for each in verdicts if each.outcome != "pass"]
    return Remainder(action, "; ".join(cut) if action != rest else "")


def _rest(delta: StageDelta, now: Allocation, then: Allocation) -> StageDelta:
    """How far each knob that was to be turned still is from where it was to be; none that has gone further by now."""

    def left(step: int, have: int, want: int) -> int:
        return max(0, want - have) if step > 0 else min(0, want - have) if step < 0 else 0

    gpu = (
        left(delta.gpu_milli, now.gpu_rate.milli, then.gpu_rate.milli)
        if now.gpu_rate is not None and then.gpu_rate is not None
        else 0
    )
    return StageDelta(
        delta.stage,
        left(delta.replicas, now.replicas, then.replicas),
        left(delta.cpu, now.cpu, then.cpu),
        left(delta.memory, now.memory, then.memory),
        gpu,
    )


def settled(
    decision: Decision, current: Mapping[str, Allocation], rest: Remainder, outcomes: Sequence[KnobOutcome]
) -> list[KnobOutcome]:
    """What became of each knob of the decision: there already, asked for now, or not.

    Args:
        decision: The earlier leader's.
        current: What each stage was wished to have when it was taken over.
        rest: What was asked for now.
        outcomes: The world's answer to that.
    """
    answered = {(each.stage, each.knob): each for each in outcomes}
    found = []
    for delta in decision.action.deltas:
        now, then = current.get(delta.stage), decision.after[delta.stage]
        asked = rest.action.on(delta.stage)
        steps = {
            "replicas": (delta.replicas, asked.replicas),
            "cpu": (delta.cpu, asked.cpu),
            "memory": (delta.memory, asked.memory),
            "gpu_rate": (delta.gpu_milli, asked.gpu_milli),
        }
        wanted, have = _knobs(then), _knobs(now) if now is not None else None
        for knob, (step, more) in steps.items():
            if not step:
                continue
            if have is None:
                before = _knobs(decision.before[delta.stage])[knob]
                found.append(KnobOutcome(delta.stage, knob, wanted[knob], before, "the stage is gone"))
                continue
            reached = have[knob] + more
            answer = answered.get((delta.stage, knob))
            if answer is not None and answer.granted != answer.wished:
                reached, reason = answer.granted, answer.reason
            else:
                reason = "" if reached == wanted[knob] else rest.refused or "somebody has changed it since"
            found.append(KnobOutcome(delta.stage, knob, wanted[knob], reached, reason))
    return found


def not_granted(action: Action, after: Mapping[str, Allocation], reason: str) -> list[KnobOutcome]:
    """The outcomes of an action of which nothing could be asked for."""
    found = []
    for delta in action.deltas:
        wanted = _knobs(after[delta.stage])
        steps = {"replicas": delta.replicas, "cpu": delta.cpu, "memory": delta.memory, "gpu_rate": delta.gpu_milli}
        found += [
            KnobOutcome(delta.stage, knob, wanted[knob], wanted[knob] - step, reason)
            for knob, step in steps.items()
            if step
        ]
    return found


def _knobs(allocation: Allocation) -> dict[str, int]:
    return {
        "replicas": allocation.replicas,
        "cpu": int(allocation.cpu),
        "memory": int(allocation.memory),
        "gpu_rate": allocation.gpu_rate.milli if allocation.gpu_rate else 0,
    }
