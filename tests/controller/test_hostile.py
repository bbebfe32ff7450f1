"""Whatever the metrics say, a round ends in a decision, and on nonsense nothing goes down."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import round as rounds
from controller.decision import Situation
from controller.knowledge import Knowledge, begin
from controller.memory.codec import from_fields, to_fields
from controller.plausible import check_learned
from controller.state import BatchTimes, Observation
from controller.tuning import Tuning
from tests.controller.situations import allocations, chain, experienced, observation, packed_room

VIEW, TUNING = chain(), Tuning()
WIDE = allocations(pre=4, infer=4, post=3, gpu_milli=600, cpu=2000)
NONSENSE = (math.nan, math.inf, -math.inf, 1e18, -1e18, -1.0, 1e300, 5e-324)

stage_numbers = (
    "queue_depth",
    "queue_slope",
    "arrivals_per_s",
    "departures_per_s",
    "cpu_utilisation",
    "gpu_utilisation",
    "service_s",
    "service_scv",
    "p99_s",
    "mean_batch",
)
whole_numbers = (
    "age_s",
    "arrivals_per_s",
    "arrivals_slope",
    "arrivals_peak_per_s",
    "p50_s",
    "p99_s",
    "goodput_per_s",
    "cost_per_hour",
)


@st.composite
def poisoned(draw: st.DrawFn) -> tuple[Observation, set[str]]:
    """A calm observation with some numbers replaced; gives the names of those."""
    bad = st.sampled_from(NONSENSE)
    whole = draw(st.dictionaries(st.sampled_from(whole_numbers), bad, max_size=3))
    per_stage: dict[str, dict[str, Any]] = draw(
        st.dictionaries(
            st.sampled_from(["pre", "infer", "post"]),
            st.dictionaries(st.sampled_from(stage_numbers), bad, max_size=3),
            max_size=3,
        )
    )
    counts = draw(st.dictionaries(st.sampled_from(["completed", "missed"]), st.sampled_from([-5, 10**18]), max_size=2))
    batches = draw(
        st.lists(
            st.builds(
                BatchTimes,
                size=st.sampled_from([-1, 0, 1, 4, 10**18]),
                services=bad | st.just(20.0),
                mean_s=bad | st.just(0.02),
                scv=st.none() | bad | st.just(0.5),
            ),
            max_size=4,
        )
    )
    if batches:
        per_stage.setdefault("infer", {})["batches"] = tuple(batches)
    per_stage.setdefault("infer", {})["gpu_measured"] = draw(st.booleans())
    names = {*whole, *counts, *(name for changes in per_stage.values() for name in changes)}
    return observation(WIDE, stages=per_stage, **whole, **counts), names


def test_every_number_of_a_stage_is_among_those_that_are_poisoned() -> None:
    seen = observation(WIDE)
    assert {each.name for each in fields(seen.stages[0])} == {
        *stage_numbers,
        "batches",
        *("name", "allocation", "ready", "starting", "granted", "granted_cpu", "gpu_measured"),
    }


@settings(max_examples=60)
@given(poisoned(), st.booleans())
def test_whatever_the_metrics_say_a_round_is_decided_and_kept_and_the_next_one_too(
    given_observation: tuple[Observation, set[str]], known: bool
) -> None:
    seen, names = given_observation
    knowledge: Knowledge = experienced(observation(WIDE)) if known else begin(VIEW)
    for turn in range(2):
        now = replace(seen, time_s=330.0 + 30.0 * turn)
        situation = Situation(VIEW, now, packed_room(WIDE), now.time_s)
        with np.errstate(all="ignore"):
            knowledge, lived = rounds.take_in(knowledge, VIEW, now, TUNING)
            if lived is not None:
                kept = from_fields("key", lived.pipeline, lived.id, to_fields(lived))
                assert (kept.id, kept.action, kept.context) == (lived.id, lived.action, _rounded(lived.context))
            menu = rounds.candidates(knowledge, situation, TUNING)
            proposal = rounds.choose(knowledge, menu, TUNING, np.random.default_rng(turn))
            decision = rounds.admit(knowledge, menu, proposal, TUNING)
            knowledge = rounds.applied(knowledge, situation, decision, (), TUNING)
        check_learned(knowledge.learned)
        insane = {"arrivals_per_s", "cost_per_hour", "queue_depth", "cpu_utilisation", "gpu_utilisation", "age_s"}
        dark = any(
            not math.isfinite(number) or number < 0
            for number in (
                now.arrivals_per_s,
                now.cost_per_hour,
                *(each for stage in now.stages for each in (stage.queue_depth, stage.arrivals_per_s)),
                *(each for stage in now.stages for each in (stage.cpu_utilisation, stage.gpu_utilisation)),
            )
        )
        if dark and insane & names:
            assert not any(delta.is_down for delta in decision.action.deltas)
        for stage in VIEW.stages:
            after = decision.after[stage.name]
            assert stage.limits.replicas_min <= after.replicas <= stage.limits.replicas_max
            assert after.replicas <= WIDE[stage.name].replicas + 2


def _rounded(context: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in context)


def test_after_the_nonsense_is_over_a_pipeline_is_scaled_as_before() -> None:
    mad = observation(
        WIDE,
        arrivals_per_s=1e18,
        arrivals_peak_per_s=1e18,
        p99_s=-1.0,
        stages={"infer": {"service_s": 1e18, "queue_depth": -5.0, "departures_per_s": math.nan}},
    )
    knowledge = experienced(observation(WIDE))
    knowledge, _ = rounds.take_in(knowledge, VIEW, replace(mad, time_s=330.0), TUNING)
    for turn in range(1, 400):
        calm = observation(WIDE, time_s=330.0 + 30.0 * turn)
        knowledge, _ = rounds.take_in(knowledge, VIEW, calm, TUNING)
    situation = Situation(VIEW, calm, packed_room(WIDE), calm.time_s)
    model = rounds.candidates(knowledge, situation, TUNING).case.model
    # Three hours and a half later its replicas may go again.
    assert model.reserve_per_s == pytest.approx(
        rounds.candidates(experienced(calm, rounds_seen=40), situation, TUNING).case.model.reserve_per_s, rel=0.5
    )


def test_an_absurd_rate_in_the_very_first_window_keeps_no_replica_once_it_is_over() -> None:
    absurd = observation(WIDE, arrivals_per_s=9e13, arrivals_peak_per_s=9e13)
    knowledge = rounds.observe(begin(VIEW), VIEW, absurd, TUNING)
    check_learned(knowledge.learned)
    # Forty a second were answered.
    assert knowledge.learned.peaks.remembered <= 20 * 40.0
    busy = observation(WIDE, arrivals_per_s=400.0, arrivals_peak_per_s=400.0)
    assert rounds.observe(begin(VIEW), VIEW, busy, TUNING).learned.peaks.recent[-1][1] == pytest.approx(400.0, rel=0.1)


def test_a_p99_of_next_to_nothing_leaves_a_state_that_can_be_read() -> None:
    knowledge = experienced(observation(WIDE))
    for turn in range(20):
        seen = observation(WIDE, time_s=330.0 + 30.0 * turn, p99_s=5e-324, completed=600)
        knowledge, _ = rounds.take_in(knowledge, VIEW, seen, TUNING)
    assert knowledge.learned.residual < 0.0
    check_learned(knowledge.learned)


def test_a_burst_of_ten_times_the_usual_rate_is_believed() -> None:
    knowledge = experienced(observation(WIDE))
    burst = observation(WIDE, time_s=330.0, arrivals_per_s=400.0, arrivals_peak_per_s=400.0)
    knowledge, _ = rounds.take_in(knowledge, VIEW, burst, TUNING)
    assert knowledge.learned.peaks.remembered == pytest.approx(400.0, rel=0.05)
