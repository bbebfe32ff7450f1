"""The built-in policy: the menu's own argmax. No language model is asked."""

from __future__ import annotations

from typing import Final

from controller.decision import Proposal
from controller.menu import Candidate, Menu

__all__ = ["decide"]

_LITTLE: Final = 1e-6


_WORTHWHILE: Final = 0.02
"""What a plan must save of the present cost before a pipeline that lacks nothing is touched."""

_REST: Final = 4


def decide(menu: Menu) -> Proposal:
    """Choose the candidate that the identified model finds best.

    Merit is, in this order: how little it misses P99, utilisation and reserve at the recent peak; whether it is a step towards the
    cheapest good allocation that the short-horizon search found; its cost; its predicted reward. A pipeline that lacks nothing is
    left alone while the search finds less than 2 % to save.
    """
    hold = menu.hold
    saving = hold.digest.cost_per_hour - menu.plan.cost_per_hour if menu.plan else 0.0
    if hold.digest.violation <= _LITTLE and saving < _WORTHWHILE * hold.digest.cost_per_hour:
        return Proposal(hold.action, "in-context", _why(hold, menu), hold.number)
    best = min(menu.candidates, key=lambda each: _rank(each, menu))
    return Proposal(best.action, "in-context", _why(best, menu), best.number)


def _rank(candidate: Candidate, menu: Menu) -> tuple[float, int, float, float]:
    digest = candidate.digest
    order = _order(candidate, menu)
    return round(digest.violation, 3), order, digest.cost_per_hour if order < _REST else 0.0, -digest.reward


def _order(candidate: Candidate, menu: Menu) -> int:
    """Releases before rises, the plan's before others: a plan whose steps the guardrails cut must not freeze the pipeline."""
    cheaper = candidate.digest.cost_per_hour < menu.hold.digest.cost_per_hour
    if candidate.origin == "plan" and cheaper:
        return 0
    if candidate.digest.cost_per_hour < (1.0 - _WORTHWHILE) * menu.hold.digest.cost_per_hour:
        return 1
    if candidate.origin == "plan" and _leads(menu):
        return 2
    return _REST if candidate.action else 3


def _leads(menu: Menu) -> bool:
    """A step that costs more without lacking less is worth it only on the way to something good that is cheaper."""
    plan = menu.plan
    return (
        plan is not None and plan.feasible and plan.cost_per_hour < (1.0 - _WORTHWHILE) * menu.hold.digest.cost_per_hour
    )


def _why(candidate: Candidate, menu: Menu) -> str:
    digest, situation = candidate.digest, menu.case.situation
    plan = menu.plan
    aim = f"; aim ${plan.cost_per_hour:.2f}/h" if plan else "; not every stage has been measured yet"
    return (
        f"predicted P99 {digest.p99_s * 1000:.0f} ms of {situation.view.slo_s * 1000:.0f} ms at ${digest.cost_per_hour:.2f}/h"
        f" (set for {menu.case.model.arrivals_per_s:.1f} requests/s){aim}"
    )
