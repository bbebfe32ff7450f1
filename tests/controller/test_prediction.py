from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.cost import effective_cost
from controller.decision import Situation
from controller.knowledge import Knowledge
from controller.model import gamma_quantile
from controller.prediction import PipelineModel, visits
from controller.state import Allocation, ClusterRoom
from controller.tuning import Tuning
from tests.controller.situations import CURVES, allocations, chain, experienced, observation, room

VIEW = chain()


def model(
    knowledge: Knowledge | None = None, at_room: ClusterRoom | None = None, growth: float = 1.0, **seen: object
) -> PipelineModel:
    observed = observation(**seen)  # type: ignore[arg-type]
    situation = Situation(VIEW, observed, at_room or room(), observed.time_s)
    return PipelineModel.of(knowledge or experienced(observed), situation, Tuning(), growth)


shapes = st.builds(
    allocations,
    pre=st.integers(1, 8),
    infer=st.integers(1, 8),
    post=st.integers(1, 8),
    gpu_milli=st.sampled_from(range(100, 1001, 100)),
    cpu=st.sampled_from([500, 1000, 2000, 4000]),
)


def test_at_an_idle_load_the_forecast_is_the_bare_service_time() -> None:
    at = allocations()
    services = {
        name: float(CURVES[name].service_s(each.cpu / 1000, each.gpu_rate.fraction if each.gpu_rate else 1.0))
        for name, each in at.items()
    }
    here = replace(model(), correction=1.0)
    forecast = here.forecast(at, arrivals_per_s=1e-6, caution=0.0)
    mean = sum(services.values())
    variance = sum(here.stages[name].fit.scv * service**2 for name, service in services.items())
    assert forecast.p99_s == pytest.approx(float(gamma_quantile(mean, variance)), rel=0.02)
    assert forecast.cost_per_hour == effective_cost(at.values(), Tuning().prices)


@given(shapes, st.floats(1.0, 300.0))
def test_more_load_never_lowers_the_forecast(at: dict[str, Allocation], rate: float) -> None:
    here = model()
    low, high = here.forecast(at, arrivals_per_s=rate), here.forecast(at, arrivals_per_s=1.2 * rate)
    assert high.p99_s >= low.p99_s * (1 - 1e-9)
    assert all(high.utilisations[name] >= low.utilisations[name] for name in at)


@given(shapes, st.sampled_from(["pre", "infer", "post"]), st.floats(1.0, 300.0))
def test_one_more_replica_never_raises_it(at: dict[str, Allocation], name: str, rate: float) -> None:
    here = model()
    more = {**at, name: replace(at[name], replicas=at[name].replicas + 1)}
    before, after = here.forecast(at, arrivals_per_s=rate), here.forecast(more, arrivals_per_s=rate)
    assert after.p99_s <= before.p99_s * (1 + 1e-9)
    assert after.cost_per_hour > before.cost_per_hour


def test_starting_replicas_count_as_capacity_unless_only_ready_ones_are_asked_for() -> None:
    here = model(arrivals=60.0, stages={"infer": {"ready": 1, "starting": 1}})
    at = allocations()
    assert here.forecast(at, only_ready=True).utilisations["infer"] == pytest.approx(
        2 * here.forecast(at).utilisations["infer"]
    )


def test_what_waits_must_be_served_within_a_round() -> None:
    waiting = model(stages={"infer": {"queue_depth": 600.0}})
    at = allocations()
    rate = waiting.arrivals_per_s
    plain = waiting.forecast(at, backlog=False).utilisations["infer"]
    assert waiting.forecast(at).utilisations["infer"] == pytest.approx(plain * (rate + 20.0) / rate)


def test_the_knobs_are_set_for_the_recent_peak_with_its_margin() -> None:
    knowledge = experienced(observation(arrivals_peak_per_s=100.0))
    assert model(knowledge).arrivals_per_s > 1.9 * 40.0
    assert model().arrivals_per_s == pytest.approx(40.0 * Tuning().load_margin)


def test_analogues_add_only_what_is_more_than_ordinary_growth() -> None:
    assert model(growth=3.0).arrivals_per_s == pytest.approx(3.0 * 40.0 * Tuning().load_margin)
    assert model(growth=1.2).arrivals_per_s == model().arrivals_per_s


def test_a_slope_that_chance_does_not_explain_is_followed() -> None:
    assert model(arrivals_slope=0.2).arrivals_per_s == model().arrivals_per_s
    assert model(arrivals_slope=5.0).arrivals_per_s > 1.9 * model().arrivals_per_s


def test_the_reserve_is_what_the_highest_knobs_can_reach_inside_bounds_and_room() -> None:
    here = model()
    infer = here.stages["infer"]
    assert infer.reachable_per_s(2) > 1.5 * infer.capacity_per_s(2, 1.0, 0.5)
    boxed = model(at_room=room(free_milli=0)).stages["infer"]
    assert boxed.reachable_per_s(2) == pytest.approx(boxed.capacity_per_s(2, 4.0, 0.5), rel=1e-6)


def test_replicas_that_no_card_holds_add_nothing_to_the_reserve() -> None:
    infer = model(at_room=room(free_milli=500, cards=1)).stages["infer"]
    assert infer.reachable_per_s(3) > 0
    assert infer.reachable_per_s(9) == infer.reachable_per_s(3)


def test_replicas_placed_at_a_low_share_are_packed_and_reach_less_than_those_placed_at_a_high_one() -> None:
    infer = model(at_room=room(free_milli=1000, held={"infer": 0, "pre": 2, "post": 1})).stages["infer"]
    assert infer.reachable_per_s(2, 200) == pytest.approx(infer.capacity_per_s(2, 4.0, 0.5), rel=1e-6)
    assert infer.reachable_per_s(2, 600) == pytest.approx(infer.capacity_per_s(2, 4.0, 1.0), rel=1e-6)


def test_tasks_per_request_multiply_along_the_graph() -> None:
    assert visits(VIEW, {"infer": 3.0, "post": 1 / 3}) == {"pre": 1.0, "infer": 3.0, "post": pytest.approx(1.0)}
    assert visits(VIEW, {}) == {"pre": 1.0, "infer": 1.0, "post": 1.0}


def test_a_model_that_is_too_fast_is_corrected_within_bounds() -> None:
    knowledge = experienced(observation(p99_s=0.24), rounds_seen=30)
    assert 1.0 < model(knowledge).correction <= 2.0
    calm = experienced(observation(p99_s=0.01), rounds_seen=30)
    assert model(calm).correction == 1.0, "the P99 of a window is mostly too low"


def test_stages_without_a_gpu_are_kept_for_more_and_none_for_more_than_it_can() -> None:
    here = replace(model(), reserve_per_s=0.0, kept_per_s=20.0)
    assert here.needed_per_s(here.stages["infer"]) == pytest.approx(20.0)
    assert here.needed_per_s(here.stages["pre"]) == pytest.approx(20.0 * Tuning().cpu_reserve)
    beyond = replace(here, kept_per_s=1e6)
    for stage in beyond.stages.values():
        there = stage.reachable_per_s(stage.allocation.replicas, None, Tuning().caution)
        assert beyond.needed_per_s(stage) == pytest.approx(there)


def test_without_the_reserve_nothing_is_lacking() -> None:
    observed = observation()
    situation = Situation(VIEW, observed, room(), observed.time_s)
    bare = PipelineModel.of(experienced(), situation, Tuning(reserve=False))
    assert bare.forecast(allocations(pre=1, infer=1, post=1)).reserve_shortfall == 0.0
