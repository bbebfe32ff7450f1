"""Earlier allocations again: what differs, whether it may be, and what is known afterwards. Pure.

A rollback is somebody's order, not a policy's idea: it goes the whole way at once, also while P99 is above the SLO and without any
metrics. What protects others holds for it as for everything: bounds, the cluster's room, the budget. It is done whole or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from controller.capacity import misfit
from controller.cost import Prices, effective_cost
from controller.decision import Decision, Verdict
from controller.printing import knob_value
from controller.state import HOLD, Action, Allocation, ClusterRoom, Limits, PipelineView, Rollback, difference
from sair.pipeline import RollbackStatus
from sair.quantities import format_moment

__all__ = ["POLICY", "Change", "Plan", "answered", "judged", "kept", "plan_rollback", "rolled_back"]

POLICY: Final = "rollback"
"""Who decided, in the journal."""


@dataclass(frozen=True, slots=True)
class Change:
    """One knob of one stage."""

    stage: str
    knob: str
    """replicas, cpu or gpu_rate."""
    now: int
    then: int

    def __str__(self) -> str:
        return f"{self.stage}: {self.knob} {knob_value(self.knob, self.now)} → {knob_value(self.knob, self.then)}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A rollback."""

    changes: tuple[Change, ...]
    after: Mapping[str, Allocation]
    """Allocations of all stages there are, as they are to become."""
    notes: tuple[str, ...] = ()
    """What is not as it was then and stays so, in words."""


def plan_rollback(then: Mapping[str, Allocation], now: Mapping[str, Allocation]) -> Plan:
    """Compare.

    Args:
        then: Allocations that are wanted again, by stage.
        now: Allocations at present, by stage.
    """
    changes: list[Change] = []
    after, notes = dict(now), []
    for stage in sorted(then.keys() & now.keys()):
        old, new = then[stage], now[stage]
        shares = old.gpu_rate is not None and new.gpu_rate is not None
        wanted = replace(new, replicas=old.replicas, cpu=old.cpu, gpu_rate=old.gpu_rate if shares else new.gpu_rate)
        have, want = _knobs(new), _knobs(wanted)
        changes += [Change(stage, knob, have[knob], want[knob]) for knob in have if have[knob] != want[knob]]
        after[stage] = wanted
        if not shares and old.gpu_rate != new.gpu_rate:
            notes.append(
                f"{stage} was moved {'to' if new.gpu_rate else 'from'} the GPU since: its share stays as it is"
            )
        if old.memory != new.memory:
            notes.append(f"{stage} had {old.memory}Mi of memory and has {new.memory}Mi: that is its pod template's")
    notes += [f"{stage} does not exist any more" for stage in sorted(then.keys() - now.keys())]
    notes += [f"{stage} did not exist then and stays as it is" for stage in sorted(now.keys() - then.keys())]
    return Plan(tuple(changes), after, tuple(notes))


def judged(
    plan: Plan, view: PipelineView, now: Mapping[str, Allocation], room: ClusterRoom, prices: Prices
) -> tuple[Verdict, ...]:
    """What the guardrails that protect others say of a rollback.

    Args:
        plan: What is to change.
        view: Bounds and budget.
        now: Allocations at present.
        room: What the cluster could still hold.
        prices: For the budget.
    """
    out = "; ".join(filter(None, (_out_of_bounds(each, view) for each in plan.changes)))
    lacking = misfit(view, now, _action(plan, now), room)
    before, after = (effective_cost(each.values(), prices) for each in (now, plan.after))
    dear = f"${after:.2f}/h is over the budget of ${view.budget_per_hour:.2f}/h"
    return (
        Verdict("bounds", "rejected", out) if out else Verdict("bounds", "pass"),
        Verdict("capacity", "rejected", lacking) if lacking else Verdict("capacity", "pass"),
        # What makes it cheaper is always let through.
        Verdict("cost cap", "rejected", dear)
        if before <= after > view.budget_per_hour
        else Verdict("cost cap", "pass"),
    )


def rolled_back(
    request: Rollback,
    view: PipelineView,
    now: Mapping[str, Allocation],
    room: ClusterRoom,
    number: int,
    time_s: float,
    prices: Prices,
) -> Decision:
    """The decision that a request comes to: the whole of it, or to hold if a guardrail objects.

    Args:
        request: What is wanted.
        view: As it is now.
        now: Allocations at present.
        room: What the cluster could still hold.
        number: Of the round as which it stands in the journal.
        time_s: World time, seconds.
        prices: For the budget.
    """
    plan = plan_rollback(request.stages, now)
    wished = _action(plan, now)
    verdicts = judged(plan, view, now, room, prices) if wished else ()
    refused = any(verdict.outcome == "rejected" for verdict in verdicts)
    return Decision(
        pipeline=view.key,
        round=number,
        time_s=time_s,
        policy=POLICY,
        wished=wished,
        action=HOLD if refused else wished,
        before=dict(now),
        after=dict(now if refused else plan.after),
        verdicts=verdicts,
        reason="; ".join((f"the state of before round {request.round} was asked for", *plan.notes)),
    )


def answered(request: Rollback, decision: Decision, limited: str) -> RollbackStatus:
    """What the Pipeline's status says of a request.

    Args:
        request: What was wanted.
        decision: What it came to.
        limited: Which wishes the cluster did not grant in full, in words.
    """
    objections = [f"{each.rule}: {each.reason}" for each in decision.verdicts if each.outcome != "pass"]
    outcome: Literal["Done", "Partly", "Refused"] = "Refused" if objections else "Partly" if limited else "Done"
    said = "; ".join(objections) or limited or f"{decision.action if decision.action else 'nothing differed'}"
    return RollbackStatus(at=request.at, outcome=outcome, round=decision.round, message=said)


def kept(view: PipelineView) -> str:
    """That a rollback is kept, and until when, in words."""
    request = view.rollback
    if request is None:
        return ""
    until = "it is taken back" if request.until_s is None else format_moment(request.until_s)
    return f"rolled back to before round {request.round}, held until {until}"


def _action(plan: Plan, now: Mapping[str, Allocation]) -> Action:
    return difference(now, plan.after, sorted(now))


def _out_of_bounds(change: Change, view: PipelineView) -> str:
    stage = view.stage(change.stage)
    limits = stage.limits if stage is not None else Limits()
    low, high = {
        "replicas": (limits.replicas_min, limits.replicas_max),
        "cpu": (limits.cpu_min, limits.cpu_max),
        "gpu_rate": (limits.gpu_milli_min, limits.gpu_milli_max),
    }[change.knob]
    if low <= change.then <= high:
        return ""
    least, most, then = (knob_value(change.knob, value) for value in (low, high, change.then))
    return f"{change.stage} {change.knob} {then} is outside its bounds, {least} to {most}"


def _knobs(allocation: Allocation) -> dict[str, int]:
    return {
        "replicas": allocation.replicas,
        "cpu": int(allocation.cpu),
        "gpu_rate": allocation.gpu_rate.milli if allocation.gpu_rate else 0,
    }
