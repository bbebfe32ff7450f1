"""What an earlier leader's decision still wants of the world, and what became of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from controller.case import Case
from controller.decision import Decision, Situation
from controller.guardrails import judge
from controller.knowledge import Knowledge
from controller.prediction import PipelineModel
from controller.rollback import kept
from controller.state import HOLD, Action, Allocation, ClusterRoom, KnobOutcome, PipelineView, StageDelta
from controller.tuning import Tuning

__all__ = ["GOOD_FOR_ROUNDS", "Open", "Remainder", "not_granted", "remainder", "settled"]

GOOD_FOR_ROUNDS: Final = 2.0
"""A decision that is older than so many rounds is not applied any more: the next round knows better."""


@dataclass(frozen=True, slots=True)
class Open:
    """A decision that may have been applied in whole, in part or not at all."""

    situation: Situation
    """As it was decided in."""
    decision: Decision


@dataclass(frozen=True, slots=True)
class Remainder:
    """What is still to be asked of the world, and why the rest is not."""

    action: Action
    refused: str = ""


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
    if view.held(now):
        return Remainder(HOLD, kept(view))
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
