import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.features import ACTION_FEATURES, PIPELINE_FEATURES, STAGE_FEATURES, action_vector, context_vector, unit
from controller.state import Action, StageDelta
from tests.controller.situations import allocations, chain, observation

VIEW = chain()
wild = st.floats(allow_nan=True, allow_infinity=True)


def test_a_context_has_one_place_for_each_feature_of_the_pipeline_and_of_each_stage() -> None:
    assert len(context_vector(observation(), VIEW)) == len(PIPELINE_FEATURES) + 3 * len(STAGE_FEATURES)


@given(wild, wild, wild, wild)
def test_hostile_numbers_stay_inside_the_unit_cube(a: float, b: float, c: float, d: float) -> None:
    stages = {"infer": {"queue_depth": a, "queue_slope": b, "cpu_utilisation": c, "service_s": d}}
    seen = observation(stages=stages, arrivals_slope=a, p99_s=b, cost_per_hour=c, goodput_per_s=d)
    assert all(0.0 <= value <= 1.0 for value in context_vector(seen, VIEW))


def test_a_stage_that_was_not_observed_is_all_zeros() -> None:
    seen = observation()
    partial = replace(seen, stages=seen.stages[:2])
    assert context_vector(partial, VIEW)[-len(STAGE_FEATURES) :] == (0.0,) * len(STAGE_FEATURES)


def test_the_same_state_keeps_its_embedding_whatever_else_was_seen() -> None:
    first = context_vector(observation(), VIEW)
    context_vector(observation(arrivals=4000.0), VIEW)
    assert context_vector(observation(), VIEW) == first


def test_the_gpu_share_stands_as_it_is() -> None:
    context = context_vector(observation(allocations(gpu_milli=300)), VIEW)
    assert context[len(PIPELINE_FEATURES) + len(STAGE_FEATURES) + STAGE_FEATURES.index("gpu_rate")] == 0.3


@given(st.integers(-10, 10), st.integers(-9000, 9000), st.integers(-9000, 9000), st.integers(-1000, 1000))
def test_actions_are_scaled_by_the_grid_and_bounded(replicas: int, cpu: int, memory: int, gpu: int) -> None:
    action = Action.of([StageDelta("infer", replicas, cpu, memory, gpu)])
    vector = action_vector(action, ["pre", "infer", "post"])
    assert len(vector) == 3 * len(ACTION_FEATURES)
    assert all(-2.0 <= value <= 2.0 for value in vector)
    assert vector[:4] == (0.0,) * 4


def test_one_step_of_each_knob_counts_the_same() -> None:
    action = Action((StageDelta("pre", 1, 500, 256, 100),))
    assert action_vector(action, ["pre"]) == (0.5, 0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("value", "expected"), [(None, 0.0), (math.nan, 0.0), (math.inf, 1.0), (-math.inf, 0.0), (3.0, 0.75)]
)
def test_scaling_clips_and_takes_what_is_missing_as_nothing(value: float | None, expected: float) -> None:
    assert unit(value, 4.0) == expected
