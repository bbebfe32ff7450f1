"""What a round means for the conditions of its Pipeline: whether it holds, the reason as a word, and the sentence. Pure."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from controller.decision import Situation
from controller.descent import stale
from controller.journal import RoundReport
from controller.memory.copies import Standing
from controller.refusing import REPETITION
from controller.state import ClusterRoom, Observation

__all__ = ["DRIFT", "Word", "asked", "drift", "limits", "memory", "metrics"]

DRIFT: Final = math.log(1.5)
"""|log(observed P99 / predicted P99)|, smoothed over about four rounds, above which the model is said to have drifted."""

_BY_RULE: Final = {
    REPETITION: "NotGranted",
    "bounds": "Bounds",
    "capacity": "NoRoom",
    "cost cap": "Budget",
    "blast radius": "BlastRadius",
}
"""Reason by guardrail, for those that say that more cannot be had."""


class Word(NamedTuple):
    """A condition."""

    status: bool | None
    """None: unknown."""
    reason: str
    message: str = ""


def metrics(report: RoundReport) -> Word:
    """MetricsAvailable: False where there are none or they are stale; True with what is missing where nothing goes down for it."""
    seen = report.observation
    if seen is None:
        if report.missing == "cluster":
            return Word(None, "ClusterUnavailable", report.problem)
        return Word(False, "ScrapeFailed", report.problem)
    tuning = report.tuning
    if tuning is not None:
        doubt = stale(Situation(report.view, seen, ClusterRoom(()), report.time_s), tuning.scrape_interval_s)
        if doubt is not None and not seen.age_s < 2 * tuning.scrape_interval_s:
            return Word(False, "Stale", f"{doubt}: nothing goes down")
        if doubt is not None:
            return Word(True, "Incomplete", f"{doubt}: nothing goes down")
    return Word(True, "Scraped")


def memory(standing: Standing) -> Word:
    """MemoryAvailable: whether what the round gave is in Redis; what waits and what is lost for good is in the sentence."""
    lost = f"{standing.lost} journal records are lost" if standing.lost else ""
    if not standing.problem:
        return Word(True, "Written", lost)
    waiting = f"{standing.experiences} experiences and {standing.records} journal records wait"
    sentence = "; ".join(filter(None, (standing.problem, waiting, lost)))
    return Word(False, "RedisFull" if standing.full else "RedisAway", sentence)


def asked(report: RoundReport) -> tuple[Word, Word] | None:
    """LLMReady and FallbackActive; None where no language model was asked. One whose answer came too late has answered all the same, and
    nobody decided in its place."""
    if report.trace is None:
        return None
    if not report.fallback:
        return Word(True, "ModelAnswered"), Word(False, "ModelAnswered")
    failed, reason = not report.discarded, "StateMoved" if report.discarded else "ModelFailed"
    return Word(not failed, reason, report.fallback), Word(failed, reason, report.fallback)


def limits(report: RoundReport) -> Word:
    """ScalingLimited: wishes that were not granted, then what the guardrails took of a wish, then that nothing would suffice."""
    if report.unreachable:
        return Word(True, "ClusterUnavailable", report.limited)
    short = report.limited or _waiting(report.observation)
    if short:
        return Word(True, "NotGranted", short)
    decision, plan = report.decision, report.menu.plan if report.menu is not None else None
    for verdict in decision.verdicts if decision is not None else ():
        if verdict.outcome != "pass" and verdict.rule in _BY_RULE:
            return Word(True, _BY_RULE[verdict.rule], f"{verdict.rule}: {verdict.reason}")
    spent = report.observation.cost_per_hour if report.observation is not None else math.inf
    if plan is not None and plan.cost_per_hour > max(report.view.budget_per_hour, spent):
        wanted, budget = plan.cost_per_hour, report.view.budget_per_hour
        return Word(
            True, "Budget", f"what is predicted to be enough costs ${wanted:.2f}/h, the budget is ${budget:.2f}/h"
        )
    if plan is not None and not plan.feasible:
        return Word(
            True,
            "NothingSuffices",
            f"within bounds and free room nothing is predicted to keep latency, utilisation and reserve; the best comes to "
            f"{plan.p99_s * 1000:.0f} ms at ${plan.cost_per_hour:.2f}/h",
        )
    return Word(False, "Granted")


def drift(report: RoundReport) -> Word | None:
    """ModelDrift: observed P99 is persistently off what the identified model predicts; None where the round says nothing about it."""
    if report.learned is None:
        return None
    residual = report.learned.residual
    if not math.isfinite(residual):
        return Word(None, "Unknown")
    ratio = math.exp(min(20.0, max(-20.0, residual)))
    if abs(residual) <= DRIFT:
        return Word(False, "ModelHolds", f"P99 is {ratio:.2f} times what the model predicts")
    reason = "SlowerThanModel" if residual > 0 else "FasterThanModel"
    # In steps, so that the same trouble is one series of Events.
    return Word(True, reason, f"P99 has been about {round(ratio * 2) / 2 or ratio:.2g} times what the model predicts")


def _waiting(seen: Observation | None) -> str:
    """Which stages have less than was wished for, in words."""
    short = []
    for stage in seen.stages if seen is not None else ():
        if stage.waiting:
            short.append(f"{stage.name}: {stage.waiting} of {stage.allocation.replicas} replicas are not to be had")
        rate = stage.allocation.gpu_rate
        if stage.granted is not None and rate is not None and stage.granted < rate:
            short.append(f"{stage.name}: {stage.granted} of {rate} granted")
    return "; ".join(short)
