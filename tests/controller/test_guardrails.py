import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import round as rounds
from controller.guardrails import RULES, Case, growing, judge, stale
from controller.identification import given_fit
from controller.knowledge import Learned
from controller.model import ServiceCurve
from controller.state import HOLD, Action, Observation, StageDelta, project_all
from controller.tuning import Tuning
from tests.controller.situations import CURVES, LIMITS, allocations, case, chain, experienced, observation, room

WIDE = allocations(pre=4, infer=4, post=3, gpu_milli=600, cpu=2000)
"""Far more than 40 requests/s need: everything may go down."""

steps = st.builds(
    StageDelta,
    st.sampled_from(["pre", "infer", "post"]),
    st.integers(-3, 4),
    st.sampled_from([-700, -500, 0, 500, 900]),
    st.sampled_from([-256, 0, 256]),
    st.sampled_from([-300, -200, -100, -30, 0, 70, 100, 200]),
)
actions = st.lists(steps, max_size=3, unique_by=lambda delta: delta.stage).map(Action.of)


def act(stage: str, **knobs: int) -> Action:
    return Action((StageDelta(stage, **knobs),))


def outcome(action: Action, of: Case, rule: str) -> str:
    return next(verdict.outcome for verdict in judge(action, of)[1] if verdict.rule == rule)


def last(of: Case, action: Action) -> Case:
    return replace(of, learned=replace(of.learned, last_action=action))


def falls(action: Action) -> bool:
    return any(delta.is_down for delta in action.deltas)


def test_the_ten_rules_stand_in_their_order() -> None:
    assert [rule.name for rule in RULES] == [
        "schema",
        "knob",
        "bounds",
        "capacity",
        "blast radius",
        "safe descent",
        "no reversal",
        "cost cap",
        "fresh metrics",
        "reserve",
    ]


def test_a_sound_step_passes_every_rule_unchanged() -> None:
    action = act("infer", gpu_milli=100)
    admitted, verdicts = judge(action, case())
    assert admitted == action
    assert [(verdict.rule, verdict.outcome) for verdict in verdicts] == [(rule.name, "pass") for rule in RULES]


def test_a_safe_descent_passes() -> None:
    admitted, _ = judge(act("infer", gpu_milli=-100), case(observation(WIDE), room()))
    assert admitted == act("infer", gpu_milli=-100)


def test_scaling_down_at_169_percent_cpu_is_refused_however_low_the_risk_was_called() -> None:
    seen = observation(WIDE, stages={"pre": {"cpu_utilisation": 1.69}})
    for step in (act("pre", replicas=-1), act("pre", cpu=-500), act("pre", replicas=-1, cpu=-500)):
        admitted, verdicts = judge(step, case(seen))
        assert admitted == HOLD
        refusal = next(verdict for verdict in verdicts if verdict.rule == "safe descent")
        assert refusal.outcome == "rejected"
        assert "pre" in refusal.reason


MOSTLY_CPU = ServiceCurve(0.001, 0.0097, 0.00275, 0.3)
"""The GPU stage as fast as it is, but the GPU works in only 0.3 of its time."""


def as_a_cluster_shows(cpu: float, busy: float) -> Observation:
    """The GPU stage uses so much of its CPU while its replicas are busy so much of the time; how much its GPU works nobody says."""
    service_s = busy * WIDE["infer"].replicas / 40.0
    told = {"cpu_utilisation": cpu, "gpu_utilisation": busy, "gpu_measured": False, "service_s": service_s}
    return observation(WIDE, stages={"infer": told})


def split(of: Case, curve: ServiceCurve) -> Case:
    """The same with the GPU stage's curve known."""
    infer = replace(of.model.stages["infer"], fit=given_fit(curve, True, certain=True))
    return replace(of, model=replace(of.model, stages={**of.model.stages, "infer": infer}))


@pytest.mark.parametrize("cpu", [0.95, 1.2, 1.4, 1.69])
@pytest.mark.parametrize("step", [act("infer", cpu=-500), act("infer", replicas=-1, cpu=-500)], ids=str)
def test_a_gpu_stages_cpu_is_not_lowered_because_its_replicas_are_busy(cpu: float, step: Action) -> None:
    of = case(as_a_cluster_shows(cpu, busy=0.95))
    for each in (of, split(of, MOSTLY_CPU)):
        admitted, verdicts = judge(step, each)
        assert admitted == HOLD
        refusal = next(verdict for verdict in verdicts if verdict.rule == "safe descent")
        assert "of its CPU" in refusal.reason


def test_a_core_that_spins_while_the_gpu_works_is_no_use_of_the_cpu() -> None:
    of = split(case(as_a_cluster_shows(0.7, busy=0.7)), CURVES["infer"])
    assert judge(act("infer", cpu=-500), of)[0] == act("infer", cpu=-500)
    assert judge(act("infer", cpu=-500), split(of, MOSTLY_CPU))[0] == HOLD


def test_what_a_gpu_is_said_to_be_used_beyond_what_its_stage_is_busy_is_not_believed() -> None:
    seen = observation(WIDE, stages={"infer": {"cpu_utilisation": 0.9, "gpu_utilisation": 0.9}})
    assert judge(act("infer", cpu=-500), case(seen))[0] == HOLD


def test_an_unknown_stage_is_refused_whole() -> None:
    both = Action.of([StageDelta("infer", gpu_milli=100), StageDelta("rm -rf", replicas=1)])
    assert judge(both, case())[0] == HOLD
    assert outcome(both, case(), "schema") == "rejected"


@pytest.mark.parametrize("value", [1.5, math.nan, math.inf, True, "2", None, 10**18])
def test_a_delta_that_is_no_sensible_whole_number_is_refused(value: Any) -> None:
    assert outcome(Action((StageDelta("infer", replicas=value),)), case(), "schema") == "rejected"


def test_a_cpu_stage_has_no_share() -> None:
    action = act("pre", cpu=500, gpu_milli=100)
    assert judge(action, case())[0] == act("pre", cpu=500)
    assert outcome(action, case(), "knob") == "changed"


def test_what_is_off_the_grid_is_snapped_and_what_is_too_much_is_cut() -> None:
    assert judge(act("infer", gpu_milli=130), case())[0] == act("infer", gpu_milli=150)
    assert judge(act("infer", gpu_milli=20), case())[0] == act("infer", gpu_milli=50)
    assert judge(act("infer", replicas=7), case())[0] == act("infer", replicas=2)
    assert judge(act("pre", cpu=4000), case())[0] == act("pre", cpu=500)


def test_bounds_that_lie_off_the_grid_are_reached_exactly() -> None:
    low = case(observation(allocations(pre=4, infer=4, post=3, gpu_milli=100)))
    admitted, verdicts = judge(act("infer", gpu_milli=-100), low)
    assert admitted in (act("infer", gpu_milli=-50), HOLD)
    assert next(verdict for verdict in verdicts if verdict.rule == "bounds").outcome == "changed"


def test_outside_its_bounds_a_knob_is_never_turned_further_out_nor_the_other_way() -> None:
    stages = tuple(replace(stage, limits=replace(LIMITS, replicas_max=1)) for stage in chain().stages)
    admitted, _ = judge(act("infer", replicas=2), case(stages=stages))
    assert admitted == HOLD


def test_what_no_card_holds_is_taken_out_and_what_fits_stays() -> None:
    both = Action.of([StageDelta("infer", gpu_milli=100), StageDelta("pre", cpu=500)])
    full = case(at_room=room(free_milli=0))
    assert judge(both, full)[0] == act("pre", cpu=500)
    assert outcome(both, full, "capacity") == "changed"


def test_a_round_changes_two_stages_at_most_and_lowers_one() -> None:
    three = Action.of([StageDelta(name, cpu=500) for name in ("pre", "infer", "post")])
    assert len(judge(three, case())[0].deltas) == 2
    two_down = Action.of([StageDelta("pre", cpu=-500), StageDelta("post", cpu=-500)])
    assert len([d for d in judge(two_down, case(observation(WIDE)))[0].deltas if d.is_down]) <= 1
    assert outcome(two_down, case(observation(WIDE)), "blast radius") == "changed"


def test_no_descent_while_the_slo_is_breached_but_ascents_pass() -> None:
    mixed = Action.of([StageDelta("pre", cpu=-500), StageDelta("infer", gpu_milli=100)])
    assert judge(mixed, case(observation(WIDE, p99_s=0.3)))[0] == act("infer", gpu_milli=100)


def test_no_descent_while_a_queue_grows() -> None:
    seen = observation(WIDE, stages={"post": {"queue_depth": 500.0, "queue_slope": 5.0}})
    assert judge(act("infer", gpu_milli=-100), case(seen))[0] == HOLD


def test_a_few_waiting_requests_are_no_growing_queue() -> None:
    seen = observation(WIDE, stages={"post": {"queue_depth": 2.0, "queue_slope": 0.1}})
    assert not growing(seen.stages[2], 0.25)
    assert judge(act("infer", gpu_milli=-100), case(seen))[0] == act("infer", gpu_milli=-100)


def test_no_descent_that_the_model_sees_above_the_target_at_the_recent_peak() -> None:
    knowledge = experienced(observation(WIDE, arrivals_peak_per_s=200.0))
    admitted, verdicts = judge(act("infer", gpu_milli=-200), case(observation(WIDE), knowledge=knowledge))
    calm, _ = judge(act("infer", gpu_milli=-200), case(observation(WIDE)))
    assert calm == act("infer", gpu_milli=-200)
    assert admitted == HOLD
    assert any(verdict.rule == "safe descent" and "infer" in verdict.reason for verdict in verdicts)


def test_no_descent_just_after_the_reflex() -> None:
    of = case(observation(WIDE))
    frozen = replace(of, learned=replace(of.learned, frozen_until_s=of.situation.now + 1))
    assert judge(act("infer", gpu_milli=-100), frozen)[0] == HOLD


def test_memory_is_not_lowered_because_nobody_measures_its_use() -> None:
    assert judge(act("infer", memory=-256), case(observation(WIDE)))[0] == HOLD


def test_starting_replicas_do_not_make_a_descent_safe() -> None:
    at = allocations(pre=4, infer=4, post=3, gpu_milli=300)
    ready = observation(at, 70.0, stages={"infer": {"ready": 4}})
    starting = observation(at, 70.0, stages={"infer": {"ready": 1, "starting": 3}})
    step = act("infer", gpu_milli=-100)
    assert judge(step, case(ready))[0] == step
    assert judge(step, case(starting))[0] == HOLD


def test_a_knob_does_not_turn_round_in_the_next_round() -> None:
    turned = last(case(observation(WIDE)), act("infer", gpu_milli=100))
    assert judge(act("infer", gpu_milli=-100), turned)[0] == HOLD
    assert judge(act("infer", cpu=-500), turned)[0] == act("infer", cpu=-500)
    assert outcome(act("infer", gpu_milli=-100), turned, "no reversal") == "rejected"


def test_in_a_breach_a_knob_may_turn_up_again() -> None:
    turned = last(case(observation(p99_s=0.3)), act("infer", gpu_milli=-100))
    assert judge(act("infer", gpu_milli=100), turned)[0] == act("infer", gpu_milli=100)


def test_the_budget_is_a_cap_on_what_rises_and_never_on_what_falls() -> None:
    poor = case(observation(WIDE), budget_per_hour=1.0)
    assert judge(act("infer", gpu_milli=100), poor)[0] == HOLD
    assert outcome(act("infer", gpu_milli=100), poor, "cost cap") == "rejected"
    assert judge(act("infer", gpu_milli=-100), poor)[0] == act("infer", gpu_milli=-100)


@pytest.mark.parametrize(
    "changes",
    [
        {"age_s": 30.1},
        {"age_s": math.nan},
        {"p99_s": None},
        {"arrivals_per_s": math.nan},
        {"stages": {"pre": {"service_s": None}}},
        {"stages": {"pre": {"queue_depth": math.inf}}},
        {"stages": {"infer": {"gpu_utilisation": -1.0}}},
    ],
)
def test_on_metrics_that_are_stale_or_missing_nothing_goes_down(changes: dict[str, Any]) -> None:
    seen = observation(WIDE, **changes)
    assert stale(case(seen).situation, 15.0) is not None
    assert judge(act("infer", gpu_milli=-100), case(seen))[0] == HOLD
    assert judge(act("infer", gpu_milli=100), case(seen))[0] == act("infer", gpu_milli=100)


def test_a_stage_without_metrics_holds_the_others_up() -> None:
    seen = observation(WIDE)
    partial: Observation = replace(seen, stages=seen.stages[:2])
    assert judge(act("infer", gpu_milli=-100), case(partial))[0] == HOLD


def test_a_replica_that_the_reserve_needs_stays_but_its_share_may_fall() -> None:
    at = allocations(pre=4, infer=3, post=3, gpu_milli=600, cpu=2000)
    peaky = replace(observation(at), arrivals_peak_per_s=260.0)
    knowledge = experienced(peaky, rounds_seen=1)
    calm = [observation(at, time_s=330.0 + 30 * number) for number in range(6)]
    for seen in calm:
        knowledge = rounds.observe(knowledge, chain(), seen, Tuning())
    of = case(calm[-1], room(held={"pre": 4, "infer": 3, "post": 3}), knowledge=knowledge)
    assert judge(act("infer", replicas=-1), of)[0] == HOLD
    assert outcome(act("infer", replicas=-1), of, "reserve") == "rejected"
    assert judge(act("infer", gpu_milli=-100), of)[0] == act("infer", gpu_milli=-100)


@given(actions, st.sampled_from(["breach", "stale", "missing", "frozen"]))
def test_whatever_is_proposed_nothing_goes_down_in_a_breach_or_in_the_dark(action: Action, trouble: str) -> None:
    seen = {
        "breach": observation(WIDE, p99_s=0.26),
        "stale": observation(WIDE, age_s=31.0),
        "missing": observation(WIDE, p99_s=None),
        "frozen": observation(WIDE),
    }[trouble]
    of = case(seen)
    if trouble == "frozen":
        of = replace(of, learned=replace(of.learned, frozen_until_s=of.situation.now + 5))
    assert not falls(judge(action, of)[0])


@given(actions, st.sampled_from([HOLD, act("infer", gpu_milli=100), act("pre", replicas=-1)]))
def test_what_is_admitted_is_admitted_again_and_keeps_every_promise(action: Action, before: Action) -> None:
    of = last(case(observation(WIDE), room(held={"pre": 4, "infer": 4, "post": 3})), before)
    admitted, verdicts = judge(action, of)
    assert judge(admitted, of)[0] == admitted
    assert len(verdicts) <= len(RULES)
    assert len(admitted.deltas) <= 2
    assert sum(delta.is_down for delta in admitted.deltas) <= 1
    for name, allocation in project_all(of.current, admitted).items():
        assert LIMITS.replicas_min <= allocation.replicas <= LIMITS.replicas_max
        assert LIMITS.cpu_min <= allocation.cpu <= LIMITS.cpu_max
        assert (allocation.gpu_rate is None) == (name != "infer")
    if falls(admitted):
        forecast = of.model.forecast(project_all(of.current, admitted), only_ready=True)
        assert forecast.p99_s <= of.situation.latency_limit_s


def test_before_anything_is_known_nothing_goes_down() -> None:
    blank = case(observation(WIDE))
    blind = replace(blank, learned=Learned("test/chain"), model=replace(blank.model, stages={}))
    assert judge(act("infer", gpu_milli=-100), blind)[0] == HOLD
