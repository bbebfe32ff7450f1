"""What the cluster refused lately is not wished for again for a while, whoever wishes. Pure."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Final

from controller.case import Case, each_delta
from controller.decision import Verdict
from controller.guardrails import judge
from controller.knowledge import Learned
from controller.state import Action, StageDelta

__all__ = ["REPETITION", "Knob", "admitted", "objection", "refused_knobs", "without_rises"]

REPETITION: Final = "repetition"
"""Stands in the record beside the names of the guardrails."""

Knob = tuple[str, str]
"""Stage and knob."""


def refused_knobs(learned: Learned) -> frozenset[Knob]:
    """The knobs of which a wish was refused and that are still to be left alone."""
    return frozenset((each.stage, each.knob) for each in learned.refusals if each.until_round > learned.round)


def without_rises(action: Action, knobs: AbstractSet[Knob]) -> Action:
    """The action without the rises of some knobs."""
    if not knobs:
        return action

    def open_part(delta: StageDelta) -> StageDelta:
        def keep(knob: str, value: int) -> int:
            return 0 if value > 0 and (delta.stage, knob) in knobs else value

        return StageDelta(
            delta.stage,
            keep("replicas", delta.replicas),
            keep("cpu", delta.cpu),
            keep("memory", delta.memory),
            keep("gpu_rate", delta.gpu_milli),
        )

    return each_delta(action, open_part)


def admitted(action: Action, case: Case) -> tuple[Action, tuple[Verdict, ...]]:
    """What is let through of an action: nothing that was refused lately, and of the rest what the guardrails leave.

    Returns:
        That, and every word on it: one on the repetition only where there is one, then each guardrail's.
    """
    waiting = {(each.name, "replicas") for each in case.situation.observation.stages if each.waiting}
    barred = refused_knobs(case.learned) | waiting
    wish = without_rises(action, barred)
    left, verdicts = judge(wish, case)
    if wish == action:
        return left, verdicts
    again = [" ".join(knob) for knob in sorted(barred) if without_rises(action, {knob}) != action]
    reason = f"the cluster has not granted what was wished for lately: {', '.join(again)}"
    return left, (Verdict(REPETITION, "changed" if wish else "rejected", reason), *verdicts)


def objection(action: Action, case: Case) -> Verdict | None:
    """The first word that refuses an action as a whole; None if something of it is let through."""
    return next((verdict for verdict in admitted(action, case)[1] if verdict.outcome == "rejected"), None)
