import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.experience import Outcome, RewardTerms
from controller.memory.codec import LARGEST, from_fields, to_fields
from controller.state import Action, StageDelta
from sair.errors import EntryError
from tests.builders import experience

KEY = "sair:{default/vision}:experience:0000000001"

finite = st.floats(-LARGEST, LARGEST, width=64)
ratios = st.floats(0.0, LARGEST, width=64)
deltas = st.builds(
    StageDelta,
    stage=st.sampled_from(["pre", "inference", "post"]),
    replicas=st.integers(-1, 2),
    cpu=st.sampled_from([-500, 0, 500]),
    memory=st.sampled_from([-256, 0, 256]),
    gpu_milli=st.sampled_from([-200, -100, 0, 100, 200]),
)


@given(
    action=st.lists(deltas, unique_by=lambda delta: delta.stage).map(Action.of),
    outcome=st.builds(Outcome, ratios, ratios, ratios),
    reward=st.builds(RewardTerms, finite, finite, finite, finite, finite),
    surprisal=finite,
    predicted=st.none() | finite,
    note=st.text(max_size=100),
)
def test_an_experience_survives_redis(
    action: Action, outcome: Outcome, reward: RewardTerms, surprisal: float, predicted: float | None, note: str
) -> None:
    original = experience(
        action=action, outcome=outcome, reward=reward, surprisal=surprisal, predicted_reward=predicted, note=note
    )
    assert from_fields(KEY, original.pipeline, original.id, to_fields(original)) == original


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
        ("reward_sla", "-1e308"),
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
        ("context_json", "[" + "1," * 300 + "1]"),
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
