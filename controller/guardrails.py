"""The ten rules every proposal passes, in order; each is a guard with a name and one method, and each verdict is recorded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from controller.capacity import misfit
from controller.cost import effective_cost
from controller.decision import Situation, Verdict
from controller.knowledge import Learned
from controller.prediction import PipelineModel
from controller.reflex import queue_threshold_s
from controller.state import (
    CPU_STEP,
    GPU_STEP_MILLI,
    HOLD,
    MEMORY_STEP,
    Action,
    Allocation,
    StageDelta,
    StageObservation,
    project,
    project_all,
)

__all__ = ["RULES", "Case", "Guard", "Ruling", "breached", "growing", "judge", "stale"]

_REPLICAS_DOWN: Final = -1
_REPLICAS_UP: Final = 2
_GPU_MOST: Final = 200
_WILD: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Case:
    """What a guard judges by."""

    situation: Situation
    learned: Learned
    model: PipelineModel

    @property
    def current(self) -> dict[str, Allocation]:
        """Allocations now; a stage that was not observed is missing."""
        return self.situation.observation.allocations


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a guard lets through, and its verdict."""

    action: Action
    verdict: Verdict


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


def breached(case_or_situation: Case | Situation) -> bool:
    """P99 above the SLO, or requests arrive and none finishes."""
    situation = case_or_situation.situation if isinstance(case_or_situation, Case) else case_or_situation
    observation = situation.observation
    if observation.p99_s is None:
        return observation.arrivals_per_s > 0
    return not observation.p99_s <= situation.view.slo_s


def growing(stage: StageObservation, threshold_s: float) -> bool:
    """The queue grows and holds more than ``threshold_s`` of the stage's capacity; a few waiting requests are no growth."""
    if not math.isfinite(stage.queue_depth) or not math.isfinite(stage.queue_slope):
        return True
    busy = stage.service_s if stage.service_s and math.isfinite(stage.service_s) else None
    capacity = stage.ready / busy if busy else stage.departures_per_s
    return stage.queue_slope > 0 and stage.queue_depth > max(1.0, threshold_s * capacity)


def stale(situation: Situation, scrape_interval_s: float) -> str | None:
    """Why the metrics cannot be trusted for a downward step, None if they can."""
    observation = situation.observation
    if not observation.age_s < 2 * scrape_interval_s:
        return f"metrics are {observation.age_s:.0f} s old"
    numbers = [observation.arrivals_per_s, observation.cost_per_hour]
    for stage in situation.view.stages:
        seen = observation.stage(stage.name)
        if seen is None:
            return f"no metrics of {stage.name}"
        numbers += [seen.queue_depth, seen.arrivals_per_s, seen.cpu_utilisation, seen.gpu_utilisation]
        if seen.service_s is None and observation.arrivals_per_s > 0:
            return f"no service time of {stage.name}"
    if observation.p99_s is None and observation.arrivals_per_s > 0:
        return "no P99"
    if any(not math.isfinite(number) or number < 0 for number in numbers):
        return "a metric is no sensible number"
    return None


def _each(action: Action, change: Callable[[StageDelta], StageDelta]) -> Action:
    return Action.of(change(delta) for delta in action.deltas)


def _no_fall(delta: StageDelta) -> StageDelta:
    return StageDelta(
        delta.stage, max(0, delta.replicas), max(0, delta.cpu), max(0, delta.memory), max(0, delta.gpu_milli)
    )


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
        after = _each(action, lambda each: each if self._has_share(each.stage, case) else replace(each, gpu_milli=0))
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
        after = _each(action, lambda delta: self._clamp(delta, case))
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
class SafeDescent:
    """6: a downward step leaves projected utilisation and P99 under target at the recent peak, and none is taken in a breach."""

    name: str = "safe descent"

    def judge(self, action: Action, case: Case) -> tuple[Action, str]:
        """Take the falls out where they are not safe."""
        falling = [delta for delta in action.deltas if delta.is_down]
        if not falling:
            return action, ""
        reason = self._refusal(action, falling, case)
        return (_each(action, _no_fall), reason) if reason else (action, "")

    def _refusal(self, action: Action, falling: list[StageDelta], case: Case) -> str | None:
        situation = case.situation
        if breached(case):
            return "P99 is above the SLO"
        threshold_s = queue_threshold_s(situation.view, case.model.tuning)
        for seen in situation.observation.stages:
            if growing(seen, threshold_s):
                return f"the queue of {seen.name} grows"
        if situation.now < case.learned.frozen_until_s:
            return "the reflex has just added capacity"
        for delta in falling:
            stage = situation.observation.stage(delta.stage)
            reason = self._projected(delta, stage, case) if stage else f"no metrics of {delta.stage}"
            if reason:
                return reason
        return self._modelled(action, falling, case)

    def _modelled(self, action: Action, falling: list[StageDelta], case: Case) -> str | None:
        """What the identified model says of utilisation and P99 after the step, at the rate that the knobs are set for."""
        if not case.model.complete:
            return "not every stage has been measured"
        limit_s = case.situation.latency_limit_s
        forecast = case.model.forecast(project_all(case.current, action), only_ready=True)
        for delta in falling:
            if not forecast.utilisations.get(delta.stage, math.inf) <= case.model.tuning.utilisation_limit:
                return f"{delta.stage} would be {forecast.utilisations[delta.stage]:.0%} busy at the recent peak"
        if not forecast.p99_s <= limit_s:
            return f"P99 at the recent peak would be {forecast.p99_s:.3g} s of {limit_s:.3g} s"
        return None

    def _projected(self, delta: StageDelta, seen: StageObservation, case: Case) -> str | None:
        """What the observed utilisation says, whatever the model believes."""
        if delta.stage not in case.model.stages:
            return f"no service time of {delta.stage} is known yet"
        if delta.memory < 0:
            return f"nothing is known of the memory that {delta.stage} uses"
        now, after = seen.allocation, project(seen.allocation, delta)
        if after.replicas < 1 or seen.ready < 1:
            return f"{delta.stage} would have no replica"
        served = seen.arrivals_per_s
        peak = case.model.arrivals_per_s * case.model.stages[delta.stage].visits
        growth = max(1.0, peak / served) if served > 0 else 1.0
        fewer = seen.ready / max(1, min(after.replicas, seen.ready))
        limit = max(case.model.tuning.utilisation_limit, 1.0)
        shares = [("CPU", seen.cpu_utilisation, now.cpu / after.cpu)]
        if now.gpu_rate and after.gpu_rate:
            shares.append(("GPU", seen.gpu_utilisation, now.gpu_rate.milli / after.gpu_rate.milli))
        for what, used, less in shares:
            touched = fewer > 1.0 or less > 1.0
            if touched and not used * fewer * less * growth <= limit:
                return f"{delta.stage} would use {used * fewer * less * growth:.0%} of its {what}"
        return None


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

        return _each(action, keep), "the last round turned the same knob the other way"


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


@dataclass(frozen=True, slots=True)
class FreshMetrics:
    """9: on stale or missing metrics hold or go up, never down."""

    name: str = "fresh metrics"

    def judge(self, action: Action, case: Case) -> tuple[Action, str]:
        """Take the falls out."""
        reason = stale(case.situation, case.model.tuning.scrape_interval_s)
        return (_each(action, _no_fall), reason) if reason else (action, "")


@dataclass(frozen=True, slots=True)
class Reserve:
    """10: Σ over replicas of μ at the highest knobs covers the recent and the remembered peak wherever a replica goes.

    A share is raised in 0.1 s, a replica in minutes: shares are lowered before replicas are removed.
    """

    name: str = "reserve"

    def judge(self, action: Action, case: Case) -> tuple[Action, str]:
        """Keep the replicas that the reserve needs."""
        if not case.model.tuning.reserve:
            return action, ""
        lacking: list[str] = []

        def keep(delta: StageDelta) -> StageDelta:
            stage = case.model.stages.get(delta.stage)
            if delta.replicas >= 0:
                return delta
            if stage and not case.model.shortfall(stage, project(case.current[delta.stage], delta)) > 1e-9:
                return delta
            lacking.append(delta.stage)
            return replace(delta, replicas=0)

        after = _each(action, keep)
        return (
            after,
            f"{', '.join(lacking)} at its highest knobs would not cover {case.model.reserve_per_s:.1f} requests/s",
        )


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
