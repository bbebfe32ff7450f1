"""The true bottleneck, and how predictors are scored."""

from __future__ import annotations

import numpy as np
import pytest

from controller.simulation.bottleneck_truth import NONE, Truth, accuracy, busiest_stage, capacity_step, true_bottleneck
from controller.simulation.plant import Plant
from controller.simulation.service import ServiceLaw
from tests.controller.simulation.builders import cpu, seen, stage_seen, two_stages


def plant(first_s: float, second_s: float, rate: float = 10.0) -> Plant:
    rng = np.random.default_rng(1)
    arrivals = np.sort(rng.uniform(0, 200, int(200 * rate)))
    setup = two_stages(
        first_law=ServiceLaw(cpu_s=first_s, scv=0.5), second_law=ServiceLaw(item_s=second_s / 2, scv=0.5)
    )
    one = Plant(setup, arrivals, 1)
    one.advance(60)
    return one


@pytest.mark.parametrize(("first_s", "second_s", "expected"), [(0.09, 0.02, "pre"), (0.02, 0.09, "inf")])
def test_the_loaded_stage_is_the_bottleneck(first_s: float, second_s: float, expected: str) -> None:
    one = plant(first_s, second_s)
    truth = true_bottleneck(one)
    assert truth.stages == (expected,)
    assert truth.gains[expected] > 0.2
    assert busiest_stage(one.observe(30)) == expected
    assert one.replicas("pre") == (1, 0)


def test_where_nearly_everything_fails_the_step_that_saves_most_requests_tells() -> None:
    one = plant(0.3, 0.02, rate=6.0)
    truth = true_bottleneck(one)
    assert truth.p99_s >= one.setup.timeout_s
    assert truth.stages == ("pre",)


def test_an_idle_pipeline_has_none() -> None:
    assert true_bottleneck(plant(0.01, 0.01, rate=0.2)).stages == ()


def test_the_step_is_a_quarter_more_and_at_least_one() -> None:
    assert [capacity_step(cpu(replicas)) for replicas in (1, 3, 4, 9)] == [1, 1, 1, 2]


def test_the_busiest_stage_by_the_rule() -> None:
    slow = stage_seen("slow", allocation=cpu(4), arrivals_per_s=10, service_s=0.2)
    tight = stage_seen("tight", allocation=cpu(1), arrivals_per_s=10, service_s=0.08)
    unserved = stage_seen("unserved", arrivals_per_s=10)
    assert busiest_stage(seen(slow, tight, unserved).observation) == "tight"


def test_accuracy_counts_ties_and_none() -> None:
    tie, a, none = Truth(("a", "b"), {}, 1.0), Truth(("a",), {}, 1.0), Truth((), {}, 1.0)
    scored = accuracy([(tie, "b"), (a, "a"), (a, "b"), (none, NONE), (none, "a")])
    assert (scored.hits, scored.trials) == (3, 5)
    assert scored.confusion == {("b", "b"): 1, ("a", "a"): 1, ("a", "b"): 1, (NONE, NONE): 1, (NONE, "a"): 1}
    assert scored.interval.low < 0.6 < scored.interval.high
    with pytest.raises(ValueError, match="no cases"):
        accuracy([])
