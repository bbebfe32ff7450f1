from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import round as rounds
from controller.decision import Situation
from controller.experience import RewardTerms
from controller.features import context_vector
from controller.guardrails import judge
from controller.knowledge import Knowledge, Refusal, learn
from controller.menu import Menu
from controller.planning import violation
from controller.state import HOLD, Action, Allocation, ClusterRoom, Observation, StageDelta, project_all
from controller.tuning import Tuning
from tests.builders import experience
from tests.controller.situations import allocations, chain, experienced, observation, packed_room, room

TUNING = Tuning()
WIDE = allocations(pre=4, infer=4, post=3, gpu_milli=600, cpu=2000)


def menu(
    seen: Observation | None = None,
    knowledge: Knowledge | None = None,
    at_room: ClusterRoom | None = None,
    tuning: Tuning = TUNING,
) -> Menu:
    seen = seen or observation(WIDE)
    here = at_room or (packed_room(seen.allocations) if len(seen.stages) == 3 else room())
    situation = Situation(chain(), seen, here, seen.time_s)
    return rounds.candidates(knowledge or experienced(seen), situation, tuning)


shapes = st.builds(
    allocations, st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.sampled_from([100, 300, 500, 900])
)


@settings(max_examples=25)
@given(shapes, st.floats(1.0, 150.0), st.sampled_from([0.05, 0.2, 0.6]))
def test_every_candidate_is_one_that_the_guardrails_let_through_unchanged(
    at: dict[str, Allocation], rate: float, p99: float
) -> None:
    of = menu(observation(at, rate, p99_s=p99))
    for candidate in of.candidates:
        assert judge(candidate.action, of.case)[0] == candidate.action


@settings(max_examples=25)
@given(shapes, st.floats(1.0, 150.0))
def test_candidates_are_distinct_numbered_and_hold_is_always_among_them(at: dict[str, Allocation], rate: float) -> None:
    of = menu(observation(at, rate))
    assert [candidate.number for candidate in of.candidates] == list(range(len(of.candidates)))
    assert len({candidate.action for candidate in of.candidates}) == len(of.candidates)
    assert of.hold.action == HOLD
    assert len(of.candidates) <= TUNING.menu_max


def test_where_that_much_is_possible_at_least_six_are_offered() -> None:
    assert len(menu().candidates) >= 6


def test_a_digest_says_what_the_model_predicts_at_the_present_rate() -> None:
    of = menu()
    for candidate in of.candidates:
        after = project_all(of.case.current, candidate.action)
        expected = of.case.model.forecast(after, arrivals_per_s=40.0, only_ready=True, caution=0.0)
        assert candidate.digest.p99_s == expected.p99_s
        assert candidate.digest.cost_per_hour == expected.cost_per_hour
        peak = of.case.model.forecast(after, only_ready=True)
        assert candidate.digest.safe == (violation(of.case.model, peak, of.case.situation.latency_limit_s) <= 1e-6)


def test_a_cheaper_candidate_that_stays_fast_promises_more_reward() -> None:
    of = menu()
    cheaper = [each for each in of.candidates if each.digest.cost_per_hour < 0.95 * of.hold.digest.cost_per_hour]
    assert cheaper
    assert all(each.digest.reward > of.hold.digest.reward for each in cheaper if each.digest.p99_s < 0.2)


def test_what_was_learned_about_an_action_moves_its_digest_and_is_counted_as_support() -> None:
    of = menu()
    tried = next(each for each in of.candidates if each.action)
    knowledge = experienced(observation(WIDE))
    context = context_vector(observation(WIDE), chain())
    for number in range(20):
        disappointing = experience(
            number,
            context=context,
            action=tried.action,
            predicted_reward=2.0,
            pipeline="test/chain",
        )
        knowledge, _ = learn(knowledge, disappointing, TUNING)
    wiser = menu(knowledge=knowledge).find(tried.action)
    assert wiser is not None
    assert wiser.digest.support > 15.0
    assert tried.digest.support == 0.0
    assert wiser.digest.reward < tried.digest.reward - 0.5
    assert wiser.digest.last_outcome == experience(1).outcome
    assert tried.digest.last_outcome is None


def test_what_the_cluster_refused_lately_is_not_offered_again() -> None:
    seen = observation(allocations(gpu_milli=300), 80.0)
    rising = [each.action for each in menu(seen).candidates if each.action.on("infer").gpu_milli > 0]
    assert rising
    knowledge = experienced(seen)
    refusal = Refusal("infer", "gpu_rate", knowledge.learned.round + 3)
    barred = replace(knowledge, learned=replace(knowledge.learned, refusals=(refusal,)))
    assert not any(each.action.on("infer").gpu_milli > 0 for each in menu(seen, barred).candidates)
    past = replace(barred, learned=replace(barred.learned, round=10))
    assert any(each.action.on("infer").gpu_milli > 0 for each in menu(seen, past).candidates)


def test_probes_are_drawn_from_what_is_safe_and_not_dear() -> None:
    of = menu()
    assert of.safe
    for number in of.safe:
        assert of[number].digest.safe
        assert of[number].action
        assert of[number].digest.cost_per_hour <= 1.1 * of.hold.digest.cost_per_hour


def test_in_a_breach_nothing_is_safe_to_probe_and_nothing_falls() -> None:
    of = menu(observation(WIDE, p99_s=0.4))
    assert of.safe == ()
    assert not any(delta.is_down for each in of.candidates for delta in each.action.deltas)


def test_the_bottleneck_is_the_busiest_stage() -> None:
    assert menu(observation(allocations(pre=6, infer=1, post=3), 40.0)).bottleneck == "infer"


def test_a_stage_without_metrics_leaves_a_menu_without_a_plan_and_without_falls() -> None:
    seen = observation(WIDE)
    partial = replace(seen, stages=seen.stages[:2])
    of = menu(partial, experienced(seen))
    assert of.plan is None
    assert of.hold.action == HOLD
    assert not any(delta.is_down for each in of.candidates for delta in each.action.deltas)


def test_remembered_actions_are_offered_as_the_guardrails_leave_them() -> None:
    seen = observation(WIDE)
    knowledge = experienced(seen)
    wild = Action.of([StageDelta("post", replicas=2, gpu_milli=100)])
    for number in range(3):
        # Equal outcomes would surprise nobody and not be recollected.
        reward = RewardTerms(latency=0.02, cost=-1.0 - number, sla=0.0, proactive=0.1, pareto=1.05)
        life = experience(
            number, context=context_vector(seen, chain()), action=wild, pipeline="test/chain", reward=reward
        )
        knowledge, _ = learn(knowledge, life, TUNING)
    of = menu(seen, knowledge, tuning=replace(TUNING, least_reward=-100.0))
    assert any(each.action == Action.of([StageDelta("post", replicas=2)]) for each in of.candidates)


@pytest.mark.parametrize("most", [3, 6, 10])
def test_a_menu_is_never_longer_than_asked_for(most: int) -> None:
    assert len(menu(tuning=replace(TUNING, menu_max=most)).candidates) <= most
