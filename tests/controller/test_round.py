from dataclasses import replace

import numpy as np
import pytest

from controller import round as rounds
from controller.applying import Reflex
from controller.decision import Proposal, Situation
from controller.features import context_vector
from controller.guardrails import RULES
from controller.knowledge import Knowledge
from controller.refusing import REPETITION, objection
from controller.state import HOLD, Action, Allocation, KnobOutcome, Observation, StageDelta, project_all
from controller.tuning import Tuning
from sair.quantities import GpuRate, Millicores
from tests.controller.situations import allocations, chain, experienced, observation, room

TUNING, VIEW = Tuning(), chain()
WIDE = allocations(pre=4, infer=4, post=3, gpu_milli=600, cpu=2000)
RAISE = Action((StageDelta("infer", gpu_milli=100),))


def situation(seen: Observation) -> Situation:
    held = {name: each.replicas for name, each in seen.allocations.items()}
    return Situation(VIEW, seen, room(free_cpu=64000, held=held), seen.time_s)


def decided(action: Action, outcomes: list[KnobOutcome] | None = None) -> tuple[Knowledge, Situation]:
    """A round that decided an action, waiting for its outcome."""
    seen = situation(observation(WIDE))
    knowledge = experienced(observation(WIDE))
    menu = rounds.candidates(knowledge, seen, TUNING)
    decision = rounds.admit(knowledge, menu, Proposal(action, "in-context"), TUNING)
    return rounds.applied(knowledge, seen, decision, outcomes or [], TUNING), seen


def test_a_round_is_pure_and_the_same_seed_gives_the_same_decision() -> None:
    seen, knowledge = situation(observation(WIDE)), experienced(observation(WIDE))
    decisions = []
    for _ in range(2):
        menu = rounds.candidates(knowledge, seen, TUNING)
        proposal = rounds.choose(knowledge, menu, TUNING, np.random.default_rng(7))
        decisions.append(rounds.admit(knowledge, menu, proposal, TUNING))
    assert decisions[0] == decisions[1]
    assert knowledge.learned.round == 0


def test_a_decision_carries_every_rules_verdict_and_what_was_predicted() -> None:
    seen, knowledge = situation(observation(WIDE)), experienced(observation(WIDE))
    menu = rounds.candidates(knowledge, seen, TUNING)
    decision = rounds.admit(knowledge, menu, Proposal(RAISE, "llm", "more"), TUNING)
    assert [verdict.rule for verdict in decision.verdicts] == [rule.name for rule in RULES]
    assert decision.after == project_all(decision.before, RAISE)
    assert decision.predicted_p99_s is not None
    assert decision.predicted_cost_per_hour is not None
    assert decision.predicted_reward is not None
    assert decision.epsilon == 0.15


def test_a_wish_that_is_refused_is_recorded_and_nothing_is_applied() -> None:
    seen = observation(WIDE, p99_s=0.4)
    knowledge = experienced(observation(WIDE))
    menu = rounds.candidates(knowledge, situation(seen), TUNING)
    wish = Action((StageDelta("infer", replicas=-1),))
    decision = rounds.admit(knowledge, menu, Proposal(wish, "llm"), TUNING)
    assert decision.wished == wish
    assert decision.held
    assert decision.rejected
    assert decision.after == decision.before


def test_the_next_round_concludes_the_one_before_with_what_really_happened() -> None:
    knowledge, seen = decided(RAISE)
    after = observation(project_all(WIDE, RAISE), time_s=330.0, p99_s=0.05, cost_per_hour=4.0)
    experience = rounds.conclude(knowledge, after, VIEW, TUNING, writer="7")
    assert experience is not None
    assert experience.id == "00000000-7"
    assert experience.action == RAISE
    assert experience.context == context_vector(seen.observation, VIEW)
    assert experience.outcome.latency_ratio == pytest.approx(0.2)
    assert experience.outcome.cost_ratio == pytest.approx(0.2)
    assert experience.previous_latency_ratio == pytest.approx(0.4)
    assert experience.reward.latency == pytest.approx(0.15 * 0.5)
    assert experience.predicted_reward is not None


def test_what_the_reflex_added_meanwhile_is_part_of_the_experience() -> None:
    knowledge, _ = decided(RAISE)
    reflexed = {**WIDE, "infer": replace(WIDE["infer"], gpu_rate=GpuRate(1000))}
    experience = rounds.conclude(knowledge, observation(reflexed, time_s=330.0), VIEW, TUNING)
    assert experience is not None
    assert experience.action == Action((StageDelta("infer", gpu_milli=400),))


def test_a_wish_that_was_granted_in_part_is_remembered_as_granted_and_not_wished_again() -> None:
    grant = KnobOutcome("infer", "gpu_rate", 700, 650, "the card is full")
    knowledge, _ = decided(RAISE, [grant])
    pending = knowledge.learned.pending
    assert pending is not None
    assert pending.action == Action((StageDelta("infer", gpu_milli=50),))
    assert [(each.stage, each.knob) for each in knowledge.learned.refusals] == [("infer", "gpu_rate")]


WISHED = allocations(pre=4, infer=3, post=3, gpu_milli=400, cpu=2000)
"""The share was raised from 0.3 to 0.4 and the cards had no room for that."""


def refused_raise() -> tuple[Knowledge, Situation]:
    """A raise at the bottleneck that was refused, and the window after it."""
    had = allocations(pre=4, infer=3, post=3, gpu_milli=300, cpu=2000)
    seen, knowledge = situation(observation(had, 80.0)), experienced(observation(had, 80.0))
    menu = rounds.candidates(knowledge, seen, TUNING)
    decision = rounds.admit(knowledge, menu, Proposal(RAISE, "in-context"), TUNING)
    assert decision.action == RAISE
    grant = KnobOutcome("infer", "gpu_rate", 400, 300, "the card is full")
    knowledge = rounds.applied(knowledge, seen, decision, [grant], TUNING)
    service = observation(had, 80.0).stages[1].service_s
    later = observation(WISHED, 80.0, {"infer": {"granted": GpuRate(300), "service_s": service}}, time_s=330.0)
    return knowledge, situation(later)


def test_a_refused_raise_is_rewarded_as_the_hold_that_it_came_to_be() -> None:
    knowledge, later = refused_raise()
    experience = rounds.conclude(knowledge, later.observation, VIEW, TUNING)
    assert experience is not None
    assert experience.action == HOLD
    assert experience.reward.proactive == 0.0
    granted = replace(later.observation, stages=observation(WISHED, 80.0).stages)
    raised = rounds.conclude(knowledge, granted, VIEW, TUNING)
    assert raised is not None
    assert raised.action == RAISE
    assert raised.reward.proactive > 0.0


def test_after_a_refused_raise_a_replica_is_offered_and_chosen_instead() -> None:
    knowledge, later = refused_raise()
    more = replace(later, observation=replace(later.observation, arrivals_per_s=110.0, arrivals_peak_per_s=110.0))
    knowledge, _ = rounds.take_in(knowledge, VIEW, more.observation, TUNING)
    menu = rounds.candidates(knowledge, more, TUNING)
    assert not any(each.action.on("infer").gpu_milli > 0 for each in menu.candidates)
    assert any(each.action.on("infer").replicas > 0 for each in menu.candidates)
    chosen = rounds.choose(knowledge, menu, replace(TUNING, probing=False), np.random.default_rng(0))
    assert chosen.action.on("infer").replicas > 0


def test_a_share_that_is_wished_and_not_granted_is_no_capacity() -> None:
    knowledge, later = refused_raise()
    menu = rounds.candidates(knowledge, later, TUNING)
    stage = menu.case.model.stages["infer"]
    believed = stage.sojourn(80.0, 3, 1.0, 0.4, 0.0)
    assert believed == stage.sojourn(80.0, 3, 1.0, 0.3, 0.0)


def refused_replicas(starting: int = 0) -> tuple[Knowledge, Situation]:
    """Two more replicas at the bottleneck, of which some start and no room is found for the others; and the window after it."""
    had, wished = (allocations(pre=4, infer=count, post=3, gpu_milli=300, cpu=2000) for count in (3, 5))
    seen, knowledge = situation(observation(had, 80.0)), experienced(observation(had, 80.0))
    menu = rounds.candidates(knowledge, seen, TUNING)
    decision = rounds.admit(knowledge, menu, Proposal(Action((StageDelta("infer", replicas=2),)), "in-context"), TUNING)
    outcome = KnobOutcome("infer", "replicas", 5, 3 + starting, "2 of 5 replicas: exceeded quota")
    knowledge = rounds.applied(knowledge, seen, decision, [outcome], TUNING)
    service = observation(had, 80.0).stages[1].service_s
    stages = {"infer": {"ready": 3, "starting": starting, "service_s": service}}
    return knowledge, situation(observation(wished, 80.0, stages, time_s=330.0))


@pytest.mark.parametrize(("starting", "action"), [(0, HOLD), (1, Action((StageDelta("infer", replicas=1),)))])
def test_replicas_that_were_refused_are_no_part_of_the_action_that_is_rewarded(starting: int, action: Action) -> None:
    knowledge, later = refused_replicas(starting)
    assert knowledge.learned.last_action == action
    experience = rounds.conclude(knowledge, later.observation, VIEW, TUNING)
    assert experience is not None
    assert experience.action == action
    assert (experience.reward.proactive > 0.0) is bool(action)


@pytest.mark.parametrize("starting", [0, 1])
def test_replicas_that_were_refused_are_no_capacity_and_those_that_start_are(starting: int) -> None:
    knowledge, later = refused_replicas(starting)
    model = rounds.candidates(knowledge, later, TUNING).case.model
    stage = model.stages["infer"]
    there = stage.sojourn(80.0, 3 + starting, 1.0, 0.3, 0.0)
    assert stage.sojourn(80.0, 5, 1.0, 0.3, 0.0) == there
    assert stage.reachable_per_s(5) == stage.reachable_per_s(3 + starting)
    current = later.observation.allocations
    fewer = {**current, "infer": replace(current["infer"], replicas=3 + starting)}
    assert model.forecast(current).p99_s == model.forecast(fewer).p99_s


def test_after_refused_replicas_a_share_is_offered_and_chosen_instead() -> None:
    knowledge, later = refused_replicas()
    more = replace(later, observation=replace(later.observation, arrivals_per_s=110.0, arrivals_peak_per_s=110.0))
    # Even once the refusal itself is forgotten: what is wished for and does not come is not wished for once more.
    for before in (knowledge, replace(knowledge, learned=replace(knowledge.learned, refusals=()))):
        known, _ = rounds.take_in(before, VIEW, more.observation, TUNING)
        menu = rounds.candidates(known, more, TUNING)
        assert not any(each.action.on("infer").replicas > 0 for each in menu.candidates)
        chosen = rounds.choose(known, menu, replace(TUNING, probing=False), np.random.default_rng(0))
        assert chosen.action.on("infer").gpu_milli > 0


MORE_CPU = Action((StageDelta("pre", cpu=500),))


def deferred_cpu(outcomes: list[KnobOutcome]) -> tuple[Knowledge, Situation]:
    """Half a core more for the first stage, which its nodes do not give, and the window after it."""
    had, wished = (allocations(pre=3, infer=3, post=3, cpu=cpu) for cpu in (1000, 1500))
    wished = {**had, "pre": wished["pre"]}
    seen, knowledge = situation(observation(had, 80.0)), experienced(observation(had, 80.0))
    menu = rounds.candidates(knowledge, seen, TUNING)
    decision = rounds.admit(knowledge, menu, Proposal(MORE_CPU, "in-context"), TUNING)
    assert decision.action == MORE_CPU
    knowledge = rounds.applied(knowledge, seen, decision, outcomes, TUNING)
    before = observation(had, 80.0).stages[0]
    stages = {"pre": {"granted_cpu": Millicores(1000), "service_s": before.service_s}}
    return knowledge, situation(observation(wished, 80.0, stages, time_s=330.0))


@pytest.mark.parametrize(
    "outcomes",
    [[], [KnobOutcome("pre", "cpu", 1500, 1000, "1 of 3 replicas: Deferred: Node didn't have enough resource")]],
    ids=["taken for granted", "known"],
)
def test_cpu_that_nodes_did_not_give_is_rewarded_as_the_hold_that_it_came_to_be(outcomes: list[KnobOutcome]) -> None:
    knowledge, later = deferred_cpu(outcomes)
    experience = rounds.conclude(knowledge, later.observation, VIEW, TUNING)
    assert experience is not None
    assert experience.action == HOLD
    first, *others = later.observation.stages
    given = replace(later.observation, stages=(replace(first, granted_cpu=Millicores(1500)), *others))
    raised = rounds.conclude(knowledge, given, VIEW, TUNING)
    assert raised is not None
    assert raised.action == MORE_CPU


def test_cpu_that_nodes_did_not_give_is_no_capacity() -> None:
    knowledge, later = deferred_cpu([])
    model = rounds.candidates(knowledge, later, TUNING).case.model
    stage, current = model.stages["pre"], later.observation.allocations
    assert stage.sojourn(80.0, 3, 1.5, 1.0, 0.0) == stage.sojourn(80.0, 3, 1.0, 1.0, 0.0)
    assert stage.reachable_per_s(3) == stage.capacity_per_s(3, 1.0, 1.0)
    less = {**current, "pre": replace(current["pre"], cpu=Millicores(1000))}
    assert model.forecast(current).p99_s == model.forecast(less).p99_s


def test_service_times_are_learned_of_the_cpu_that_a_stage_really_has() -> None:
    knowledge, later = deferred_cpu([])
    seen = rounds.observe(knowledge, VIEW, later.observation, TUNING).learned.fits["pre"]
    had = observation(allocations(pre=3, infer=3, post=3), 80.0, time_s=330.0)
    assert seen == rounds.observe(knowledge, VIEW, had, TUNING).learned.fits["pre"]


def test_replicas_that_are_starting_are_not_ordered_a_second_time() -> None:
    one, four = (allocations(pre=4, infer=count, post=3, gpu_milli=500, cpu=2000) for count in (1, 4))
    calm = replace(TUNING, probing=False, reserve=False)

    def ordered(at: dict[str, Allocation]) -> int:
        struggling = {"infer": {"ready": 1, "starting": at["infer"].replicas - 1, "gpu_utilisation": 1.0}}
        seen = situation(observation(at, 90.0, struggling, p99_s=0.6))
        knowledge = experienced(observation(four, 90.0), tuning=calm)
        menu = rounds.candidates(knowledge, seen, calm)
        assert menu.plan is not None
        chosen = rounds.choose(knowledge, menu, calm, np.random.default_rng(0))
        return max(menu.plan.targets["infer"].replicas - at["infer"].replicas, chosen.action.on("infer").replicas)

    assert ordered(one) > 0
    assert ordered(four) <= 0


def test_a_refused_wish_leaves_no_action() -> None:
    knowledge, _ = decided(RAISE, [KnobOutcome("infer", "gpu_rate", 700, 600, "the card is full")])
    assert knowledge.learned.last_action == HOLD


def test_each_round_counts_once_and_fades_the_probes() -> None:
    knowledge, _ = decided(RAISE)
    assert knowledge.learned.round == 1
    assert knowledge.learned.last_action == RAISE


def test_before_the_first_decision_there_is_nothing_to_conclude() -> None:
    assert rounds.conclude(experienced(), observation(), VIEW, TUNING) is None


def test_a_forced_probe_says_so_and_is_one_of_the_safe_candidates() -> None:
    knowledge = experienced(observation(WIDE))
    menu = rounds.candidates(knowledge, situation(observation(WIDE)), TUNING)
    always = replace(TUNING, epsilon=1.0, epsilon_floor=1.0)
    proposal = rounds.choose(knowledge, menu, always, np.random.default_rng(1))
    assert proposal.policy == "probe"
    assert proposal.candidate in menu.safe
    assert rounds.probe(knowledge, menu, replace(TUNING, probing=False), np.random.default_rng(1)) is None


def test_a_window_in_which_the_reflex_moved_a_knob_does_not_teach_service_times() -> None:
    knowledge = rounds.reflexed(experienced(), RAISE, 325.0, TUNING)
    slow = observation(time_s=330.0, stages={"infer": {"service_s": 0.9}})
    assert rounds.observe(knowledge, VIEW, slow, TUNING).learned.fits == knowledge.learned.fits
    later = replace(slow, time_s=360.0)
    assert rounds.observe(knowledge, VIEW, later, TUNING).learned.fits != knowledge.learned.fits


def test_a_reflex_that_did_nothing_freezes_nothing() -> None:
    knowledge = experienced()
    assert rounds.reflexed(knowledge, HOLD, 325.0, TUNING) == knowledge
    assert rounds.reflexed(knowledge, RAISE, 325.0, TUNING).learned.frozen_until_s == 345.0


def test_fan_out_is_learned_from_what_leaves_above_and_arrives_below() -> None:
    stages = {"infer": {"arrivals_per_s": 120.0, "departures_per_s": 120.0}, "post": {"arrivals_per_s": 40.0}}
    knowledge = experienced(observation(stages=stages), rounds_seen=10)
    assert knowledge.learned.ratios["infer"] == pytest.approx(3.0)
    assert knowledge.learned.ratios["post"] == pytest.approx(1 / 3)


def test_a_saturated_stage_above_does_not_hide_the_load_of_those_below() -> None:
    knowledge = experienced(rounds_seen=10)
    jammed = {"pre": {"arrivals_per_s": 200.0, "departures_per_s": 80.0}, "infer": {"arrivals_per_s": 80.0}}
    seen = observation(arrivals=200.0, stages=jammed, time_s=330.0)
    knowledge = rounds.observe(knowledge, VIEW, seen, TUNING)
    assert knowledge.learned.ratios["infer"] == pytest.approx(1.0, abs=0.05)


def test_what_was_predicted_of_a_wish_is_no_measure_of_what_really_happened() -> None:
    knowledge, later = refused_raise()
    refused = rounds.conclude(knowledge, later.observation, VIEW, TUNING)
    assert refused is not None
    assert refused.action == HOLD
    assert refused.predicted_reward is None
    granted, _ = decided(RAISE)
    more = project_all(WIDE, Action.of([*RAISE.deltas, StageDelta("pre", cpu=500)]))
    for after, known in ((project_all(WIDE, RAISE), True), (more, False)):
        experience = rounds.conclude(granted, observation(after, time_s=330.0), VIEW, TUNING)
        assert experience is not None
        assert (experience.predicted_reward is not None) == known


def test_a_wish_that_was_refused_lately_is_not_admitted_again_whoever_wishes() -> None:
    knowledge, later = refused_raise()
    knowledge, _ = rounds.take_in(knowledge, VIEW, later.observation, TUNING)
    menu = rounds.candidates(knowledge, later, TUNING)
    again = objection(RAISE, menu.case)
    assert again is not None
    assert again.rule == REPETITION
    assert again.reason == "the cluster has not granted what was wished for lately: infer gpu_rate"
    decision = rounds.admit(knowledge, menu, Proposal(RAISE, "llm"), TUNING)
    assert (decision.wished, decision.action) == (RAISE, HOLD)
    assert [verdict.rule for verdict in decision.verdicts] == [REPETITION, *(rule.name for rule in RULES)]
    other = StageDelta("pre", cpu=500)
    both = Action.of([*RAISE.deltas, other])
    assert objection(both, menu.case) is None
    decision = rounds.admit(knowledge, menu, Proposal(both, "llm"), TUNING)
    assert decision.action == Action((other,))
    assert decision.verdicts[0].outcome == "changed"
    past = replace(knowledge, learned=replace(knowledge.learned, round=10))
    assert objection(RAISE, rounds.candidates(past, later, TUNING).case) is None


def test_what_the_reflex_was_refused_is_left_alone_and_freezes_nothing() -> None:
    knowledge, _ = decided(RAISE)
    short = KnobOutcome("infer", "gpu_rate", 800, 700, "the card is full")
    after = rounds.reacted(knowledge, [Reflex(325.0, "hold", (short,))], TUNING).learned
    assert after.frozen_until_s == 0.0
    # As if the round before had been refused it.
    assert [(each.stage, each.knob, each.until_round) for each in after.refusals] == [("infer", "gpu_rate", 3)]
    partly = rounds.reacted(knowledge, [Reflex(325.0, "infer: ρ +0.05", (short,))], TUNING).learned
    assert (partly.frozen_until_s, len(partly.refusals)) == (345.0, 1)
    ignored = rounds.reacted(knowledge, [Reflex(325.0, "infer: ρ +0.05", (short,))], replace(TUNING, reflex=False))
    assert ignored == knowledge
