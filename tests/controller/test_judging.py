"""What each kind of round says about its Pipeline."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from controller.decision import Decision, Verdict
from controller.journal import RoundReport
from controller.judging import DRIFT, asked, drift, limits, metrics
from controller.knowledge import Learned
from controller.llm.policy import Trace
from controller.planning import Plan
from controller.state import HOLD, KnobOutcome
from controller.tuning import Tuning
from tests.controller.situations import allocations, chain, observation
from tests.controller.test_menu import menu


def report(**fields: Any) -> RoundReport:
    """A calm round."""
    made = RoundReport(chain(), 3, 300.0, observation=observation(), tuning=Tuning())
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_fresh_metrics_are_available() -> None:
    assert metrics(report())[:2] == (True, "Scraped")


def test_metrics_that_cannot_be_had_are_not_and_a_cluster_that_is_away_says_nothing_about_them() -> None:
    gone = report(observation=None, problem="held: stage infer: fewer than two scrapes", missing="metrics")
    assert metrics(gone) == (False, "ScrapeFailed", gone.problem)
    away = report(observation=None, problem="held: the API server does not answer", missing="cluster")
    assert metrics(away)[:2] == (None, "ClusterUnavailable")


def test_stale_metrics_are_not_available_and_incomplete_ones_say_what_is_missing() -> None:
    assert metrics(report(observation=observation(age_s=45.0))) == (
        False,
        "Stale",
        "metrics are 45 s old: nothing goes down",
    )
    without = observation(stages={"infer": {"service_s": None}})
    assert metrics(report(observation=without)) == (
        True,
        "Incomplete",
        "no service time of infer: nothing goes down",
    )


def test_a_wish_that_was_not_granted_limits_scaling() -> None:
    assert limits(report())[0] is False
    outcome = KnobOutcome("infer", "gpu_rate", 700, 600, "the card is full")
    assert limits(report(outcomes=[outcome])) == (True, "NotGranted", "infer gpu_rate: the card is full")
    waiting = observation(stages={"infer": {"granted": allocations(gpu_milli=400)["infer"].gpu_rate}})
    assert limits(report(observation=waiting)).message == "infer: 0.4 of 0.5 granted"
    alone = observation(stages={"infer": {"ready": 1}, "pre": {"ready": 1, "starting": 1}})
    assert limits(report(observation=alone)).message == "infer: 1 of 2 replicas are not to be had"


@pytest.mark.parametrize(
    ("rule", "reason"),
    [("cost cap", "Budget"), ("capacity", "NoRoom"), ("bounds", "Bounds"), ("repetition", "NotGranted")],
)
def test_what_a_guardrail_took_of_a_wish_limits_it_with_the_rules_name(rule: str, reason: str) -> None:
    decision = Decision("test/chain", 3, 300.0, "llm", HOLD, HOLD, {}, {}, (Verdict(rule, "changed", "too much"),))
    assert limits(report(decision=decision)) == (True, reason, f"{rule}: too much")


def test_a_rule_that_guards_a_descent_is_no_limit() -> None:
    decision = Decision(
        "test/chain", 3, 300.0, "llm", HOLD, HOLD, {}, {}, (Verdict("safe descent", "rejected", "busy"),)
    )
    assert limits(report(decision=decision))[0] is False


def test_that_nothing_within_the_bounds_suffices_is_said() -> None:
    offered = menu(observation())
    assert offered.plan is not None
    enough = replace(offered, plan=replace(offered.plan, feasible=True))
    assert limits(report(menu=enough))[0] is False
    never = replace(offered, plan=Plan(offered.plan.targets, 0.9, 19.0, feasible=False))
    assert limits(report(menu=never))[1] == "NothingSuffices"
    assert "900 ms at $19.00/h" in limits(report(menu=never)).message


def test_a_budget_below_what_would_be_enough_is_the_limit_though_no_step_was_refused() -> None:
    offered = menu(observation())
    assert offered.plan is not None
    dear = replace(offered, plan=Plan(offered.plan.targets, 0.1, 25.0, feasible=True))
    seen = report(menu=dear)
    assert limits(seen) == (True, "Budget", "what is predicted to be enough costs $25.00/h, the budget is $20.00/h")
    # Where it already costs more, the plan is a way down.
    assert limits(report(menu=dear, observation=observation(cost_per_hour=30.0)))[0] is False


@pytest.mark.parametrize(
    ("residual", "status", "reason"),
    [
        (0.0, False, "ModelHolds"),
        (0.99 * DRIFT, False, "ModelHolds"),
        (1.01 * DRIFT, True, "SlowerThanModel"),
        (-1.01 * DRIFT, True, "FasterThanModel"),
        (1e300, True, "SlowerThanModel"),
        (math.nan, None, "Unknown"),
    ],
)
def test_a_p99_that_stays_off_the_models_is_a_drift(residual: float, status: bool | None, reason: str) -> None:
    found = drift(report(learned=Learned("test/chain", residual=residual)))
    assert found is not None
    assert found[:2] == (status, reason)


def test_a_round_that_was_not_decided_says_nothing_about_drift() -> None:
    assert drift(report()) is None


def test_a_language_model_is_ready_when_it_answered_also_where_its_answer_came_too_late() -> None:
    assert asked(report()) is None
    assert asked(report(trace=Trace())) == ((True, "ModelAnswered", ""), (False, "ModelAnswered", ""))
    away = "no answer within 20 s"
    assert asked(report(trace=Trace(), fallback=away)) == ((False, "ModelFailed", away), (True, "ModelFailed", away))
    late = "the reply came too late: the allocation changed while the model was asked"
    moved = report(trace=Trace(), fallback=late, discarded=True)
    assert asked(moved) == ((True, "StateMoved", late), (False, "StateMoved", late))
