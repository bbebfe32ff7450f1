import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.experience import Experience, Outcome, RewardTerms
from controller.features import PIPELINE_FEATURES, STAGE_FEATURES
from controller.frontier import Frontier
from controller.memory.codec import bounded, from_fields, to_fields
from controller.reward import LATENCY_RATIO_CAP, reward_terms
from controller.state import Action, StageDelta
from controller.tuning import Tuning
from sair.errors import EntryError
from tests.builders import allocation, experience

KEY = "sair:{default/vision}:experience:0000000001"

anything = st.floats(width=64)
latencies, costs = st.floats(1e-6, LATENCY_RATIO_CAP), st.floats(1e-6, 20.0)
outcomes = st.builds(Outcome, latencies, costs, st.floats(0.0, 1.0))
frontiers = st.lists(st.tuples(latencies, costs), max_size=5).map(Frontier.of)
deltas = st.builds(
    StageDelta,
    stage=st.sampled_from(["pre", "inference", "post"]),
    replicas=st.integers(-1, 2),
    cpu=st.sampled_from([-500, 0, 500]),
    memory=st.sampled_from([-256, 0, 256]),
    gpu_milli=st.sampled_from([-200, -100, 0, 100, 200]),
)


def read_back(original: Experience) -> Experience:
    return from_fields(KEY, original.pipeline, original.id, to_fields(original))


@given(
    action=st.lists(deltas, unique_by=lambda delta: delta.stage).map(Action.of),
    outcome=outcomes,
    before=latencies,
    frontier=frontiers,
    foresight=st.booleans(),
    surprisal=st.floats(0.0, 50.0),
    predicted=st.none() | st.floats(-100.0, 3.0),
    note=st.text(max_size=100),
)
def test_an_experience_survives_redis(
    action: Action,
    outcome: Outcome,
    before: float,
    frontier: Frontier,
    foresight: bool,
    surprisal: float,
    predicted: float | None,
    note: str,
) -> None:
    original = experience(
        action=action,
        outcome=outcome,
        previous_latency_ratio=before,
        reward=reward_terms(outcome, before, frontier, foresight=foresight, tuning=Tuning()),
        surprisal=surprisal,
        predicted_reward=predicted,
        note=note,
    )
    assert read_back(original) == original


@given(
    outcome=st.builds(Outcome, anything, anything, anything),
    reward=st.builds(RewardTerms, anything, anything, anything, anything, anything),
    others=st.fixed_dictionaries(
        dict.fromkeys(("time_s", "previous_latency_ratio", "surprisal", "predicted_reward", "arrivals_per_s"), anything)
    ),
    text=st.sampled_from(["", "llm", "x" * 200_000]),
)
def test_whatever_the_metrics_said_what_is_written_is_read_back(
    outcome: Outcome, reward: RewardTerms, others: dict[str, Any], text: str
) -> None:
    original = experience(outcome=outcome, reward=reward, policy=text, note=text, bottleneck=text or None, **others)
    assert read_back(original) == bounded(original) == bounded(bounded(original))


def test_a_pipeline_of_as_many_stages_as_a_pipeline_may_have_survives_redis() -> None:
    names = [f"stage-{number:02d}-{'x' * 54}" for number in range(64)]
    original = experience(
        context=(0.123456,) * (len(PIPELINE_FEATURES) + 64 * len(STAGE_FEATURES)),
        action=Action.of(StageDelta(name, replicas=1, cpu=500) for name in names),
        before=tuple((name, allocation()) for name in names),
    )
    assert read_back(original) == original


def test_a_replica_of_the_largest_quantity_of_kubernetes_survives_redis() -> None:
    original = experience(before=(("inference", allocation(memory=2**43)),))
    assert read_back(original) == original


def test_a_round_without_requests_has_no_latency_and_survives_redis() -> None:
    original = experience(arrivals_per_s=0.0, outcome=Outcome(0.0, 0.4), load_bucket=0)
    assert read_back(original) == original


def test_a_cost_of_nothing_is_written_as_next_to_nothing() -> None:
    outcome = read_back(experience(outcome=Outcome(0.0, 0.0))).outcome
    assert 0.0 < outcome.cost_ratio < 1e-6
    assert 0.0 < outcome.latency_ratio < 1e-6


def test_the_fields_read_well_for_people() -> None:
    fields = to_fields(experience())
    assert fields["action"] == "inference: ρ +0.1"
    assert fields["time"].startswith("2023-11-14T")
    assert fields["policy"] == "in-context"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("round", "-1"),
        ("round", "many"),
        ("latency_ratio", "nan"),
        ("latency_ratio", "-0.5"),
        ("cost_ratio", "-1"),
        ("miss_ratio", "-0.001"),
        ("cost_ratio", "inf"),
        ("cost_ratio", "0.0"),
        ("cost_ratio", "1e6"),
        ("latency_ratio", "0.0"),
        ("latency_ratio", "4.1"),
        ("miss_ratio", "1.5"),
        ("previous_latency_ratio", "-0.1"),
        ("arrivals_per_s", "nan"),
        ("arrivals_per_s", "-1"),
        ("reward_latency", "11"),
        ("reward_cost", "-4.1"),
        ("reward_cost", "0.1"),
        ("reward_sla", "-0.1"),
        ("reward_sla", "-1e308"),
        ("reward_proactive", "-0.1"),
        ("reward_pareto", "2.3"),
        ("reward_pareto", "-1e12"),
        ("predicted_reward", "-1e12"),
        ("predicted_reward", "1e3"),
        ("surprisal", "-0.1"),
        ("surprisal", "1e12"),
        ("load_bucket", "9" * 400),
        ("time_s", "-1"),
        ("time_s", "1e12"),
        ("round", "1" + "0" * 30),
        ("context_json", "[1e30]"),
        ("action_json", '{"inference": {"replicas": 100000000000000000000}}'),
        ("before_json", '{"inference": {"replicas": -1, "cpu_m": 1, "memory_mi": 1}}'),
        ("action_json", "{" + ",".join(f'"s{n}": {{"replicas": 1}}' for n in range(101)) + "}"),
        ("context_json", "[1, null]"),
        ("context_json", "[" * 100_000),
        ("context_json", "[" + "1," * 1_006 + "1]"),
        ("action_json", '{"inference": {"gpu_milli": "x"}}'),
        ("action_json", '{"inference": {"sudo": 1}}'),
        ("before_json", '{"inference": {"replicas": 1, "cpu_m": 1, "memory_mi": 1, "gpu_milli": 5000}}'),
        ("reward_pareto", ""),
        ("load_bucket", "0x1"),
    ],
)
def test_a_damaged_field_is_named_with_its_key(field: str, value: str) -> None:
    with pytest.raises(EntryError) as refused:
        from_fields(KEY, "default/vision", "1", to_fields(experience()) | {field: value})
    assert refused.value.field == f"{KEY} {field}"


def test_a_missing_field_is_named_with_its_key() -> None:
    fields = to_fields(experience())
    del fields["surprisal"]
    with pytest.raises(EntryError, match="surprisal: None is not allowed; expected the field to be there"):
        from_fields(KEY, "default/vision", "1", fields)


@given(st.dictionaries(st.sampled_from(sorted(to_fields(experience()))), st.text(max_size=50)))
def test_hostile_fields_are_read_or_refused_and_never_give_a_number_that_is_not_finite(changes: dict[str, str]) -> None:
    try:
        read = from_fields(KEY, "default/vision", "1", to_fields(experience()) | changes)
    except EntryError:
        return
    assert math.isfinite(read.reward.total)
    assert math.isfinite(read.surprisal)
