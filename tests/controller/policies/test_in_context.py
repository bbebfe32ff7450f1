import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import round as rounds
from controller.decision import Situation
from controller.menu import Menu
from controller.planning import exchange
from controller.policies.hold import hold
from controller.policies.in_context import decide
from controller.state import HOLD, Allocation, Observation, StageDelta, project_all
from controller.tuning import Tuning
from tests.controller.situations import allocations, chain, experienced, observation, packed_room, placed, room

TUNING = Tuning(probing=False)


def menu(
    at: dict[str, Allocation],
    arrivals: float = 40.0,
    on_cards: tuple[int, ...] | None = None,
    tuning: Tuning = TUNING,
    **seen: object,
) -> Menu:
    observed: Observation = observation(at, arrivals, **seen)  # type: ignore[arg-type]
    situation = Situation(chain(), observed, packed_room(at, on_cards), observed.time_s)
    return rounds.candidates(experienced(observed), situation, tuning)


def walk(at: dict[str, Allocation], arrivals: float, steps: int) -> tuple[Menu, list[bool]]:
    """Let the policy decide round after round while the load stays; tells the menu at the end and in which rounds it held."""
    held = []
    cards: tuple[int, ...] | None = None
    for _ in range(steps):
        infer = at["infer"]
        cards = placed(cards or (0,) * 6, infer.replicas, infer.gpu_rate.milli if infer.gpu_rate else 0)
        action = decide(menu(at, arrivals, cards)).action
        held.append(action == HOLD)
        at = project_all(at, action)
    infer = at["infer"]
    cards = placed(cards or (0,) * 6, infer.replicas, infer.gpu_rate.milli if infer.gpu_rate else 0)
    return menu(at, arrivals, cards), held


def test_a_pipeline_that_is_far_too_large_shrinks_within_ten_rounds() -> None:
    start = allocations(pre=6, infer=3, post=4, gpu_milli=900, cpu=2000)
    of, _ = walk(start, 40.0, 10)
    begin = menu(start).case.model.forecast(start).cost_per_hour
    assert of.hold.digest.cost_per_hour < 0.4 * begin
    assert of.hold.digest.safe


def test_a_pipeline_that_is_far_too_small_grows_within_five_rounds() -> None:
    start = allocations(pre=1, infer=1, post=1, gpu_milli=200)
    of, _ = walk(start, 90.0, 5)
    forecast = of.case.model.forecast(of.case.current)
    assert forecast.p99_s <= 0.85 * 0.25
    assert max(forecast.utilisations.values()) <= 0.9


@settings(max_examples=10)
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([300, 500, 800]), st.floats(10.0, 80.0))
def test_under_a_steady_load_it_settles(pre: int, infer: int, milli: int, rate: float) -> None:
    _, held = walk(allocations(pre, infer, 2, milli), rate, 30)
    assert sum(held[-8:]) >= 6


def test_a_pipeline_that_lacks_nothing_is_left_alone_for_less_than_two_percent() -> None:
    of, _ = walk(allocations(), 40.0, 25)
    proposal = decide(of)
    assert proposal.action == HOLD
    assert of.plan is not None
    assert of.plan.cost_per_hour > 0.98 * of.hold.digest.cost_per_hour


def test_what_misses_least_goes_before_what_costs_least() -> None:
    of = menu(allocations(pre=1, infer=1, post=1, gpu_milli=200), 90.0)
    chosen = of[decide(of).candidate or 0]
    assert chosen.digest.violation == min(each.digest.violation for each in of.candidates)


def test_a_replica_is_judged_by_what_it_does_once_it_is_ready() -> None:
    # All of a card is not enough, so that until a replica is ready nothing helps.
    of = menu(allocations(pre=6, infer=1, post=4, gpu_milli=1000), 100.0, tuning=replace(TUNING, reserve=False))
    assert of.hold.digest.violation > 1
    assert min(each.digest.violation for each in of.candidates) == pytest.approx(of.hold.digest.violation, rel=1e-3)
    assert decide(of).action.on("infer").replicas > 0


def test_replicas_wait_while_something_that_acts_at_once_helps() -> None:
    of = menu(allocations(pre=6, infer=1, post=4, gpu_milli=800), 90.0, tuning=replace(TUNING, reserve=False))
    assert of.hold.digest.violation_later > 0.5
    action = decide(of).action.on("infer")
    assert action.gpu_milli > 0
    assert action.replicas == 0


def test_an_exchange_goes_before_small_releases_and_ends_with_a_replica_less() -> None:
    view, calm = chain(slo_s=0.08), replace(TUNING, reserve=False)

    def tight(at: dict[str, Allocation]) -> Menu:
        observed = observation(at, 30.0, slo_s=0.08, p99_s=0.05)
        situation = Situation(view, observed, packed_room(at), observed.time_s)
        return rounds.candidates(experienced(observed, slo_s=0.08), situation, calm)

    at = allocations(pre=3, infer=2, post=2, gpu_milli=600)
    begin = tight(at)
    chosen, now = begin[decide(begin).candidate or 0], begin.hold.digest
    assert chosen.origin == "exchange"
    assert str(chosen.action) == "infer: ρ +0.2"
    assert any(each.origin == "plan" and each.digest.cost_per_hour < now.cost_per_hour for each in begin.candidates)
    assert chosen.digest.cost_per_hour > now.cost_per_hour > (chosen.leads_to_usd or math.inf)
    assert f"by way of ${chosen.leads_to_usd:.2f}/h with a replica less" in decide(begin).reason
    then = tight(project_all(at, chosen.action))
    last = then[decide(then).candidate or 0]
    assert last.action.on("infer").replicas == -1
    assert last.digest.cost_per_hour == pytest.approx(chosen.leads_to_usd, rel=0.05)


def test_where_one_step_will_do_no_exchange_is_offered() -> None:
    of = menu(allocations(pre=2, infer=2, post=1, gpu_milli=400), 30.0, tuning=replace(TUNING, reserve=False))
    assert of.plan is not None
    assert exchange(of.case.model, of.case.current, of.plan, 0.2125, of.case.situation.room) is not None
    assert any(each.action.on("infer").replicas < 0 for each in of.candidates)
    assert not any(each.origin == "exchange" for each in of.candidates)


def test_a_replica_is_not_added_for_what_a_single_window_shows() -> None:
    at = allocations(pre=6, infer=1, post=4, gpu_milli=1000)
    tuning = replace(TUNING, reserve=False)
    high = observation(at, 100.0)
    situation = Situation(chain(), high, packed_room(at), high.time_s)

    def later(high_rounds: int) -> Menu:
        knowledge = experienced(replace(observation(at, 60.0), time_s=high.time_s - 30 * high_rounds))
        for ago in range(high_rounds - 1, -1, -1):
            knowledge = rounds.observe(knowledge, chain(), replace(high, time_s=high.time_s - 30 * ago), tuning)
        return rounds.candidates(knowledge, situation, tuning)

    once, twice = later(1), later(2)
    assert once.hold.digest.violation > 1
    assert decide(once).action.on("infer").replicas == 0
    assert decide(twice).action.on("infer").replicas > 0


def test_room_is_not_spent_on_next_to_nothing() -> None:
    of = menu(allocations(pre=1, infer=1, post=1, gpu_milli=200), 90.0)
    step, hold = next(each for each in of.candidates if each.action.on("post").is_up), of.hold

    def with_step(left: float) -> Menu:
        lacking = left * hold.digest.violation, left * hold.digest.violation_later
        digest = replace(step.digest, violation=lacking[0], violation_later=lacking[1])
        only = replace(step, origin="bottleneck", digest=digest, number=0), replace(hold, number=1)
        return replace(of, candidates=only)

    assert decide(with_step(0.995)).action == HOLD
    assert decide(with_step(0.98)).action == step.action


def test_a_proposal_names_its_candidate_and_says_why() -> None:
    of = menu(allocations())
    proposal = decide(of)
    assert proposal.candidate is not None
    assert of[proposal.candidate].action == proposal.action
    assert "ms" in proposal.reason
    assert proposal.policy == "in-context"


def test_before_every_stage_was_measured_nothing_is_released() -> None:
    seen = observation(allocations(pre=6, infer=4, post=4))
    blind = replace(seen, stages=tuple(replace(stage, service_s=None) for stage in seen.stages))
    knowledge = rounds.observe(rounds.begin(chain()), chain(), blind, TUNING)
    of = rounds.candidates(knowledge, Situation(chain(), blind, room(), blind.time_s), TUNING)
    assert not any(delta.is_down for delta in decide(of).action.deltas)


def test_holding_changes_nothing_and_says_why() -> None:
    of = menu(allocations())
    proposal = hold(of, "the metrics are away")
    assert proposal.action == HOLD
    assert (proposal.policy, proposal.reason) == ("hold", "the metrics are away")
    assert of[proposal.candidate or 0].action == HOLD


def test_a_breach_is_answered_at_the_bottleneck() -> None:
    of = menu(allocations(pre=4, infer=1, post=3, gpu_milli=300), 70.0, p99_s=0.6)
    assert of.bottleneck == "infer"
    delta: StageDelta = decide(of).action.on("infer")
    assert delta.is_up
