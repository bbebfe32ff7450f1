"""The built-in policy: the menu's own argmax. No language model is asked."""

from __future__ import annotations

from typing import Final

from controller.decision import Proposal
from controller.menu import Candidate, Menu
from controller.planning import NOTHING

__all__ = ["decide"]

_WORTHWHILE: Final = 0.02
"""What a plan must save of the present cost before a pipeline that lacks nothing is touched."""

_NEXT_TO_NOTHING: Final = 0.01
_WORTH_A_REPLICA: Final = 0.1
"""What must be lacking, as a share of what may be, for a replica to be added for it."""
_NOTICEABLE: Final = 0.1
"""What part of that something that acts at once must take off for replicas to wait."""

_MUCH: Final = 0.05
"""What a step must save at once to go before an exchange."""
_REST: Final = 6


def decide(menu: Menu) -> Proposal:
    """Choose the candidate that the identified model finds best.

    Merit is, in this order: how little it misses P99, utilisation and reserve at the recent peak, now, and where nothing that acts at once
    helps also once its replicas are ready; whether it is a step towards the cheapest good allocation that the short-horizon search found;
    its cost; its predicted reward. A pipeline that lacks nothing is left alone while the search finds less than 2 % to save.
    """
    hold = menu.hold
    saving = hold.digest.cost_per_hour - menu.plan.cost_per_hour if menu.plan else 0.0
    if hold.digest.violation <= NOTHING and saving < _WORTHWHILE * hold.digest.cost_per_hour:
        return Proposal(hold.action, "in-context", _why(hold, menu), hold.number)
    best = min(menu.candidates, key=lambda each: _rank(each, menu))
    return Proposal(best.action, "in-context", _why(best, menu), best.number)


def _rank(candidate: Candidate, menu: Menu) -> tuple[float, int, float, float]:
    digest, hold = candidate.digest, menu.hold.digest
    order = _order(candidate, menu)
    lacking = _lacking(digest.violation, hold.violation)
    if _needs_replicas(menu):
        lacking += _lacking(digest.violation_later, hold.violation_later)
    return round(lacking, 3), order, digest.cost_per_hour if order < _REST else 0.0, -digest.reward


def _lacking(left: float, without: float) -> float:
    """What is left of what is lacking; room that something better may need is not spent on next to nothing."""
    return without if (1.0 - _NEXT_TO_NOTHING) * without < left < without else left


def _needs_replicas(menu: Menu) -> bool:
    """Something is lacking, and nothing that acts at once takes much of it off."""
    hold = menu.hold.digest
    helps = min(each.digest.violation for each in menu.candidates) <= (1.0 - _NOTICEABLE) * hold.violation
    return hold.violation_later > _WORTH_A_REPLICA and not helps


def _order(candidate: Candidate, menu: Menu) -> int:
    """Releases before rises, the plan's before others: a plan whose steps the guardrails cut must not freeze the pipeline. What begins an
    exchange goes before small releases, of which there is one in nearly every round."""
    cost, now = candidate.digest.cost_per_hour, menu.hold.digest.cost_per_hour
    if candidate.origin == "plan" and cost < (1.0 - _MUCH) * now:
        return 0
    if candidate.origin == "exchange":
        return 1
    if candidate.origin == "plan" and cost < now:
        return 2
    if cost < (1.0 - _WORTHWHILE) * now:
        return 3
    if candidate.origin == "plan" and _leads(menu):
        return 4
    return _REST if candidate.action else 5


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
    if candidate.leads_to_usd is not None:
        aim += f", by way of ${candidate.leads_to_usd:.2f}/h with a replica less"
    return (
        f"predicted P99 {digest.p99_s * 1000:.0f} ms of {situation.view.slo_s * 1000:.0f} ms at ${digest.cost_per_hour:.2f}/h"
        f" (set for {menu.case.model.arrivals_per_s:.1f} requests/s){aim}"
    )
