import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from controller.experience import Outcome
from controller.frontier import Frontier, Point, dominates
from controller.reward import LATENCY_RATIO_CAP, foresaw, outcome_of, pareto_term, reward_terms
from controller.state import Action, StageDelta
from controller.tuning import Tuning
from tests.controller.situations import observation

TUNING = Tuning()
ratios = st.floats(0.0, LATENCY_RATIO_CAP)
costs = st.floats(0.0, 1.5)
points = st.tuples(ratios, costs)
frontiers = st.lists(points, max_size=25).map(Frontier.of)


def test_the_five_terms_have_their_golden_values() -> None:
    frontier = Frontier.of([(0.4, 0.1)])
    terms = reward_terms(Outcome(1.2, 0.25), 1.5, frontier, foresight=True, tuning=TUNING)
    assert terms.latency == pytest.approx(0.15 * 0.2)
    assert terms.cost == pytest.approx(-1.0)
    assert terms.sla == pytest.approx(-2 * 0.2**2)
    assert terms.proactive == 0.0
    assert terms.pareto == pytest.approx(0.8 / (1 + math.hypot(0.4, 0.15)))
    assert terms.total == pytest.approx(0.03 - 1.0 - 0.08 + terms.pareto)


def test_the_pareto_term_can_be_left_out() -> None:
    frontier, without = Frontier.of([(0.4, 0.1)]), replace(TUNING, pareto=False)
    plain = reward_terms(Outcome(1.2, 0.25), 1.5, frontier, foresight=True, tuning=TUNING)
    terms = reward_terms(Outcome(1.2, 0.25), 1.5, frontier, foresight=True, tuning=without)
    assert terms == replace(plain, pareto=0.0) != plain


def test_a_foreseen_bottleneck_is_rewarded_only_within_the_slo() -> None:
    inside = reward_terms(Outcome(1.0, 0.2), 1.0, Frontier(), foresight=True, tuning=TUNING)
    assert inside.proactive == TUNING.proactive_bonus
    assert reward_terms(Outcome(1.01, 0.2), 1.0, Frontier(), foresight=True, tuning=TUNING).proactive == 0.0


@given(frontiers, points)
def test_what_nobody_dominates_is_worth_at_least_one_and_the_rest_at_most_four_fifths(
    frontier: Frontier, y: Point
) -> None:
    for distance in ("igd+", "euclidean"):
        value = pareto_term(Outcome(*y), frontier, distance)
        if frontier.accepts(y):
            assert value >= 1.0
        else:
            assert 0.0 < value <= 0.8


@given(st.lists(points, max_size=25), points, points, ratios, st.booleans(), st.booleans())
def test_a_frontier_point_beats_what_it_dominates_by_the_separation_margin(
    others: list[Point], a: Point, worse_by: Point, before: float, foresight_a: bool, foresight_b: bool
) -> None:
    b = (a[0] + worse_by[0], a[1] + worse_by[1])
    frontier = Frontier.of(each for each in others if not dominates(each, a)).add(a)
    assume(dominates(a, b))
    assert a in frontier.points
    first = reward_terms(Outcome(*a), before, frontier, foresight=foresight_a, tuning=TUNING).total
    second = reward_terms(Outcome(*b), before, frontier, foresight=foresight_b, tuning=TUNING).total
    assert first - second >= 0.2 - TUNING.proactive_bonus - 1e-9


@given(frontiers, points, points)
def test_of_two_dominated_points_the_dominating_one_never_gets_less(frontier: Frontier, a: Point, b: Point) -> None:
    better, worse = (min(a[0], b[0]), min(a[1], b[1])), (max(a[0], b[0]), max(a[1], b[1]))
    assume(not frontier.accepts(better))
    assert pareto_term(Outcome(*better), frontier) >= pareto_term(Outcome(*worse), frontier) - 1e-12


def test_nothing_finished_while_requests_arrive_is_the_worst_latency() -> None:
    assert outcome_of(observation(p99_s=None, completed=0), 10.0).latency_ratio == LATENCY_RATIO_CAP


def test_without_arrivals_there_is_no_latency_to_blame() -> None:
    assert outcome_of(observation(p99_s=None, arrivals_per_s=0.0, completed=0, missed=0), 10.0).latency_ratio == 0.0


@pytest.mark.parametrize("p99", [math.nan, math.inf, -1.0, 1e18])
def test_a_latency_that_is_no_sensible_number_counts_as_the_worst(p99: float) -> None:
    assert outcome_of(observation(p99_s=p99), 10.0).latency_ratio == LATENCY_RATIO_CAP


@pytest.mark.parametrize("cost", [math.nan, math.inf])
def test_a_cost_that_is_no_number_counts_as_the_whole_budget(cost: float) -> None:
    assert outcome_of(observation(cost_per_hour=cost), 10.0).cost_ratio == 1.0


def test_ratios_are_those_to_slo_budget_and_requests() -> None:
    outcome = outcome_of(observation(p99_s=0.2, cost_per_hour=2.5, completed=90, missed=10), 10.0)
    assert outcome.latency_ratio == pytest.approx(0.8)
    assert outcome.cost_ratio == 0.25
    assert outcome.miss_ratio == pytest.approx(0.1)


def test_foresight_is_a_rise_at_the_bottleneck_without_a_fall_there() -> None:
    assert foresaw(Action((StageDelta("infer", gpu_milli=100),)), "infer")
    assert not foresaw(Action((StageDelta("infer", replicas=-1, gpu_milli=100),)), "infer")
    assert not foresaw(Action((StageDelta("pre", cpu=500),)), "infer")
    assert not foresaw(Action((StageDelta("pre", cpu=500),)), None)


def test_weights_scale_their_terms() -> None:
    outcome = Outcome(1.5, 0.5)
    plain = reward_terms(outcome, 1.0, Frontier(), foresight=False, tuning=TUNING)
    double = reward_terms(
        outcome, 1.0, Frontier(), foresight=False, tuning=replace(TUNING, cost_weight=8.0, sla_weight=4.0)
    )
    assert (double.cost, double.sla) == (2 * plain.cost, 2 * plain.sla)
