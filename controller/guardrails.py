"""The ten rules every proposal passes, in order; each is a guard with a name and one method, and each verdict is recorded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from controller.capacity import misfit
from controller.case import Case, breached, each_delta
from controller.cost import effective_cost
from controller.decision import Verdict
from controller.descent import FreshMetrics, Reserve, SafeDescent, growing, stale
from controller.state import (
    CPU_STEP,
    GPU_STEP_MILLI,
    HOLD,
    MEMORY_STEP,
    Action,
    StageDelta,
    project,
    project_all,
)

__all__ = ["RULES", "Case", "Guard", "breached", "growing", "judge", "refusal", "stale"]

_REPLICAS_DOWN: Final = -1
_REPLICAS_UP: Final = 2
_GPU_MOST: Final = 200
_WILD: Final = 1_000_000_000


class Guard(Protocol):
    """One rule."""

    @property
    def name(self) -> str:
        """As it stands in the decision record."""
        ...

    def judge(self, action: Action, case: Case) -> tuple[Action, str]:
        """What the rule lets through of an action, and why something was taken out ('' if nothing was)."""
        ...


def judge(action: Action, case: Case, rules: Sequence[Guard] | None = None) -> tuple[Action, tuple[Verdict, ...]]:
    """Pass an action through all rules in order.

    A rule may take parts out or refuse the whole. What a late rule takes out may be what made an early rule content, so the rules
    are passed again until nothing changes; each pass can only take out, so that ends.

    Returns:
        What is left (HOLD if nothing), and every rule's verdict: the first that is not 'pass', or 'pass'.
    """
    rules = RULES if rules is None else rules
    verdicts: dict[str, Verdict] = {}
    if not action:
        return HOLD, tuple(Verdict(rule.name, "pass") for rule in rules)
    while True:
        before = action
        for rule in rules:
            after, reason = rule.judge(action, case)
            if after == action:
                verdicts.setdefault(rule.name, Verdict(rule.name, "pass"))
            elif verdicts.get(rule.name, Verdict("", "pass")).outcome != "rejected":
                verdicts[rule.name] = Verdict(rule.name, "changed" if after else "rejected", reason)
            action = after
            if not action:
                done = tuple(verdicts.values())
                return HOLD, done
        if action == before:
            return action, tuple(verdicts[rule.name] for rule in rules)


def refusal(action: Action, case: Case) -> Verdict | None:
    """The first rule that refuses an action as a whole; None if something of it is let through."""
    return next((verdict for verdict in judge(action, case)[1] if verdict.outcome == "rejected"), None)


@dataclass(frozen=True, slots=True)
class Schema:
    """1: every stage is known and every number is one; otherwise nothing is let through."""

    name: str = "schema"

    def judge(self, action: Action, case: Case) -> tuple[Action, str]:
        """Refuse the whole."""
        for delta in action.deltas:
            if case.situation.view.stage(delta.stage) is None or delta.stage not in case.current:
                return HOLD, f"unknown stage {delta.stage!r}"
            values = (delta.replicas, delta.cpu, delta.memory, delta.gpu_milli)
            if any(type(value) is not int or abs(value) > _WILD for value in values):
                return HOLD, f"{delta.stage}: a delta is no whole number"
        return action, ""


@dataclass(frozen=True, slots=True)
class KnobExists:
    """2: a CPU stage has no GPU share."""

    name: str = "knob"

    def judge(self, action: Action, case: Case) -> tuple[Action, str]:
        """Take the GPU share of CPU stages out."""
        after = each_delta(
            action, lambda each: each if self._has_share(each.stage, case) else replace(each, gpu_milli=0)
        )
        return after, "a CPU stage has no GPU share"

    def _has_share(self, name: str, case: Case) -> bool:
        stage = case.situation.view.stage(name)
        return stage is not None and stage.uses_gpu and case.current[name].gpu_rate is not None


@dataclass(frozen=True, slots=True)
class GridAndBounds:
    """3: snap to the grid of actions, then clamp to the stage's bounds."""

    name: str = "bounds"

    def judge(self, action: Action, case: Case) -> tuple[Action, str]:
        """Shorten deltas; one that would move away from its bounds is dropped."""
        after = each_delta(action, lambda delta: self._clamp(delta, case))
        return after, "snapped to the grid and clamped to the stage's bounds"

    def _clamp(self, delta: StageDelta, case: Case) -> StageDelta:
        now, stage = case.current[delta.stage], case.situation.view.stage(delta.stage)
        if stage is None:  # rule 1 has let none through
            return StageDelta(delta.stage)
        limits = stage.limits
        # What a bound has cut is not snapped again when the rules are passed a second time: it stands at its bound then.
        gpu = 0
        if now.gpu_rate is not None:
            gpu = _within(
                now.gpu_rate.milli,
                _snap(delta.gpu_milli, GPU_STEP_MILLI, _GPU_MOST),
                limits.gpu_milli_min,
                limits.gpu_milli_max,
            )
        return StageDelta(
            delta.stage,
            _within(
                now.replicas,
                min(_REPLICAS_UP, max(_REPLICAS_DOWN, delta.replicas)),
                limits.replicas_min,
                limits.replicas_max,
            ),
            _within(now.cpu, _snap(delta.cpu, CPU_STEP, CPU_STEP), limits.cpu_min, limits.cpu_max),
            _within(now.memory, _snap(delta.memory, MEMORY_STEP, MEMORY_STEP), limits.memory_min, limits.memory_max),
            gpu,
        )


def _snap(delta: int, step: int, most: int) -> int:
    """To the nearest whole step; what is not 0 becomes at least one step, so that a bound off the grid can be reached."""
    if not delta:
        return 0
    steps = max(1, round(abs(delta) / step))
    return int(math.copysign(min(most, steps * step), delta))


def _within(now: int, delta: int, low: int, high: int) -> int:
    """The delta cut at the bounds; never turned round, also where ``now`` lies outside them."""
    if delta > 0:
        return max(0, min(now + delta, high) - now)
    return min(0, max(now + delta, low) - now)


@dataclass(frozen=True, slots=True)
class Capacity:
    """4: cards hold every replica at the new share, nodes the resize and the new replicas."""

    name: str = "capacity"

    def judge(self, action: Action, case: Case) -> tuple[Action, str]:
        """Take out the stages' rises that do not fit, the largest first."""
        view, room, current = case.situation.view, case.situation.room, case.current
        reason = misfit(view, current, action, room)
        if reason is None:
            return action, ""
        kept = action
        for delta in sorted(
            action.deltas,
            key=lambda each: -effective_cost([project(current[each.stage], each)], case.model.tuning.prices),
        ):
            if not delta.is_up:
                continue
            kept = Action.of(each for each in kept.deltas if each.stage != delta.stage)
            if misfit(view, current, kept, room) is None:
                return kept, reason
        return HOLD, reason


@dataclass(frozen=True, slots=True)
class BlastRadius:
    """5: at most two stages change, at most one of them downwards."""

    name: str = "blast radius"

    def judge(self, action: Action, case: Case) -> tuple[Action, str]:
        """Keep rises before falls, then the larger change in cost."""
        current, prices = case.current, case.model.tuning.prices

        def weight(delta: StageDelta) -> float:
            now = current[delta.stage]
            return abs(effective_cost([project(now, delta)], prices) - effective_cost([now], prices))

        ordered = sorted(action.deltas, key=lambda each: (each.is_down, -weight(each)))
        kept: list[StageDelta] = []
        for delta in ordered:
            if len(kept) < 2 and not (delta.is_down and any(each.is_down for each in kept)):
                kept.append(delta)
        return Action.of(kept), "at most two stages change in a round, at most one of them downwards"


@dataclass(frozen=True, slots=True)
class NoReversal:
    """7: a knob does not turn round in the next round unless the SLO is breached."""

    name: str = "no reversal"

    def judge(self, action: Action, case: Case) -> tuple[Action, str]:
        """Take the reversed knobs out."""
        if breached(case):
            return action, ""
        last = case.learned.last_action

        def keep(delta: StageDelta) -> StageDelta:
            then = last.on(delta.stage)
            return StageDelta(
                delta.stage,
                delta.replicas if delta.replicas * then.replicas >= 0 else 0,
                delta.cpu if delta.cpu * then.cpu >= 0 else 0,
                delta.memory if delta.memory * then.memory >= 0 else 0,
                delta.gpu_milli if delta.gpu_milli * then.gpu_milli >= 0 else 0,
            )

        return each_delta(action, keep), "the last round turned the same knob the other way"


@dataclass(frozen=True, slots=True)
class CostCap:
    """8: projected $/h stays within the budget; what makes it cheaper is always let through."""

    name: str = "cost cap"

    def judge(self, action: Action, case: Case) -> tuple[Action, str]:
        """Refuse the rises, or the whole if falls and rises hang together."""
        prices, budget = case.model.tuning.prices, case.situation.view.budget_per_hour
        now = effective_cost(case.current.values(), prices)
        after = effective_cost(project_all(case.current, action).values(), prices)
        if after <= budget or after < now:
            return action, ""
        return HOLD, f"${after:.2f}/h is over the budget of ${budget:.2f}/h"


RULES: Final[tuple[Guard, ...]] = (
    Schema(),
    KnobExists(),
    GridAndBounds(),
    Capacity(),
    BlastRadius(),
    SafeDescent(),
    NoReversal(),
    CostCap(),
    FreshMetrics(),
    Reserve(),
)
"""In the order in which they are passed."""
