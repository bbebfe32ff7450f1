import tracemalloc
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.capacity import misfit
from controller.guardrails import Case
from controller.planning import Exchange, Plan, cheapest, exchange, steps_towards, thinned, violation
from controller.state import Allocation, ClusterRoom, Limits, Observation, project_all
from controller.tuning import Tuning
from sair.quantities import Millicores
from tests.controller.situations import allocations, case, chain, observation, room


def plan(of: Case) -> Plan:
    return cheapest(of.model, of.current, of.situation.latency_limit_s, of.situation.room)


def steps(of: Case) -> list[str]:
    found = steps_towards(of.model, of.current, plan(of), of.situation.latency_limit_s, of.situation.room)
    return [str(action) for action in found]


def roomy(at: dict[str, Allocation], arrivals: float = 40.0, **seen: object) -> Case:
    observed: Observation = observation(at, arrivals, **seen)  # type: ignore[arg-type]
    here: ClusterRoom = room(free_cpu=64000, held={name: each.replicas for name, each in at.items()})
    return case(observed, here)


@settings(max_examples=30)
@given(
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([200, 300, 500]),
    st.floats(5.0, 120.0),
)
def test_a_feasible_plan_keeps_latency_utilisation_and_reserve(
    pre: int, infer: int, post: int, milli: int, rate: float
) -> None:
    of = roomy(allocations(pre, infer, post, milli), rate)
    found = plan(of)
    if found.feasible:
        forecast = of.model.forecast(found.targets)
        assert forecast.p99_s <= of.situation.latency_limit_s * (1 + 1e-6)
        assert max(forecast.utilisations.values()) <= Tuning().utilisation_limit + 1e-9
        if all(found.targets[name].replicas <= each.replicas for name, each in of.current.items()):
            # Otherwise the knobs stand higher than planned until the new replicas are ready.
            assert forecast.reserve_shortfall <= 1e-9


def test_far_too_much_is_planned_away() -> None:
    of = roomy(allocations(pre=6, infer=4, post=4, gpu_milli=800, cpu=4000))
    found = plan(of)
    now = of.model.forecast(of.current)
    assert found.feasible
    assert found.cost_per_hour < 0.4 * now.cost_per_hour


def test_far_too_little_is_planned_up() -> None:
    of = roomy(allocations(pre=1, infer=1, post=1, gpu_milli=200), 90.0)
    found = plan(of)
    assert found.feasible
    assert (
        of.model.forecast(found.targets).utilisations["infer"]
        < 0.9
        < of.model.forecast(of.current).utilisations["infer"]
    )


def test_more_load_never_makes_a_cheaper_plan_by_more_than_the_cost_of_moving() -> None:
    costs = [plan(roomy(allocations(), rate)).cost_per_hour for rate in (10.0, 20.0, 40.0, 80.0, 120.0)]
    assert all(later >= 0.9 * earlier for earlier, later in pairwise(costs))
    assert costs[-1] > costs[0]


def test_a_tight_latency_limit_costs_more() -> None:
    of = roomy(allocations(), 60.0)
    slack = cheapest(of.model, of.current, 0.22, of.situation.room)
    tight = cheapest(of.model, of.current, 0.10, of.situation.room)
    assert tight.feasible
    assert tight.cost_per_hour > slack.cost_per_hour


def test_an_impossible_demand_is_answered_with_the_most_there_is_and_said_to_be_infeasible() -> None:
    of = roomy(allocations(), 5000.0)
    found = plan(of)
    assert not found.feasible
    assert found.cost_per_hour > of.model.forecast(of.current).cost_per_hour


def test_while_replicas_start_the_ready_ones_keep_what_they_need() -> None:
    at = allocations(pre=4, infer=4, post=2, gpu_milli=500)
    waiting = roomy(at, 90.0, stages={"infer": {"ready": 1, "starting": 3}})
    there = roomy(at, 90.0)
    share = plan(waiting).targets["infer"].gpu_rate
    calm = plan(there).targets["infer"].gpu_rate
    assert share is not None
    assert calm is not None
    assert share > calm


@settings(max_examples=30)
@given(
    st.integers(1, 6), st.integers(1, 4), st.sampled_from([200, 500, 900]), st.floats(5.0, 120.0), st.integers(0, 1000)
)
def test_steps_change_two_stages_at_most_lower_one_at_most_and_fit(
    pre: int, infer: int, milli: int, rate: float, free: int
) -> None:
    at = allocations(pre, infer, 2, milli)
    here = room(free_milli=free, held={name: each.replicas for name, each in at.items()})
    of = case(observation(at, rate), here)
    for action in steps_towards(of.model, of.current, plan(of), of.situation.latency_limit_s, here):
        assert 1 <= len(action.deltas) <= 2
        assert sum(delta.is_down for delta in action.deltas) <= 1
        assert misfit(of.situation.view, of.current, action, here) is None


def test_the_first_step_misses_least_of_all_steps() -> None:
    of = roomy(allocations(pre=1, infer=1, post=1, gpu_milli=200), 90.0)
    limit = of.situation.latency_limit_s
    found = steps_towards(of.model, of.current, plan(of), limit, of.situation.room)
    missed = [
        round(violation(of.model, of.model.forecast(project_all(of.current, action), only_ready=True), limit), 3)
        for action in found
    ]
    assert missed == sorted(missed)
    assert missed[0] < violation(of.model, of.model.forecast(of.current, only_ready=True), limit)


def test_where_the_plan_is_what_there_is_no_step_is_left() -> None:
    of = roomy(allocations())
    settled = roomy(plan(of).targets)
    again = plan(settled)
    follow = roomy(again.targets)
    final = plan(follow)
    assert final.cost_per_hour <= of.model.forecast(of.current).cost_per_hour
    if final.targets == follow.current:
        assert steps(follow) == []


def swap(of: Case) -> Exchange | None:
    return exchange(of.model, of.current, plan(of), of.situation.latency_limit_s, of.situation.room)


def two(milli: int, rate: float = 40.0) -> Case:
    """Two replicas that share a card; one with the whole of it would do."""
    at = allocations(pre=2, infer=2, post=1, gpu_milli=milli)
    here = room(free_milli=1000 - milli, held={name: each.replicas for name, each in at.items()})
    return case(observation(at, rate), here, Tuning(reserve=False))


def test_fewer_replicas_with_a_larger_share_are_reached_by_way_of_what_costs_more() -> None:
    of = two(450)
    assert plan(of).targets["infer"].replicas == 1
    first = swap(of)
    assert first is not None
    assert [str(delta) for delta in first.action.deltas] == ["infer: ρ +0.1"]
    between = two(550)
    assert between.model.forecast(between.current).cost_per_hour > of.model.forecast(of.current).cost_per_hour
    last = steps_towards(between.model, between.current, plan(between), 0.2125, between.situation.room)[0]
    assert last.on("infer").replicas == -1
    after = between.model.forecast(project_all(between.current, last), only_ready=True)
    assert violation(between.model, after, 0.2125) == 0
    assert after.cost_per_hour < 1.05 * first.cost_per_hour < of.model.forecast(of.current).cost_per_hour


@pytest.mark.parametrize(
    "of",
    [
        pytest.param(two(450, 60.0), id="two are needed"),
        pytest.param(two(350), id="two small ones are cheaper"),
    ],
)
def test_nothing_is_exchanged_that_does_not_pay(of: Case) -> None:
    assert swap(of) is None


def test_nothing_is_exchanged_where_the_cards_do_not_hold_the_larger_shares() -> None:
    at = allocations(pre=2, infer=2, post=1, gpu_milli=450)
    full = room(free_milli=0, held={name: each.replicas for name, each in at.items()})
    assert swap(case(observation(at), full, Tuning(reserve=False))) is None


def test_what_a_plan_considers_does_not_grow_with_bounds_that_a_tenant_sets() -> None:
    at = allocations(infer=5000)
    wide = Limits(replicas_max=10_000, cpu_min=Millicores(1), cpu_max=Millicores(1_000_000))
    view = replace(chain(), stages=tuple(replace(stage, limits=wide) for stage in chain().stages))
    of = case(observation(at), room(free_cpu=64000, held={"pre": 2, "infer": 2, "post": 1}))
    model = replace(
        of.model, stages={each.name: replace(of.model.stages[each.name], view=each) for each in view.stages}
    )
    tracemalloc.start()
    try:
        cheapest(model, of.current, of.situation.latency_limit_s, of.situation.room)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * 2**20


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
def test_of_many_values_those_next_to_the_present_one_and_both_ends_are_kept(low: int, count: int, now: int) -> None:
    values = range(low, low + count)
    kept = thinned(values, now)
    assert len(kept) <= 40
    assert list(kept) == sorted(set(kept))
    assert set(kept) <= set(values)
    assert {values[0], values[-1]} <= set(kept)
    assert {each for each in values if abs(each - now) <= 8} <= set(kept)
    assert count > 40 or list(kept) == list(values)
