"""The VPA's histogram and bounds, worked by hand."""

from __future__ import annotations

import math

import pytest

from controller.simulation.baselines.vpa import CpuHistogram, VerticalPodAutoscaler, bucket_of, bucket_start, recommend
from controller.state import PipelineView, StageView
from tests.controller.simulation.builders import cpu, seen, stage_seen

VIEW = PipelineView("simulated/test", (StageView("a", (), False),), 0.3)


def test_buckets_grow_by_five_percent_from_a_hundredth_of_a_core() -> None:
    assert [bucket_start(number) for number in range(4)] == pytest.approx([0, 0.01, 0.0205, 0.031525])
    for cores in (0.001, 0.0099, 0.0101, 0.5, 1.0, 7.3):
        bucket = bucket_of(cores)
        assert bucket_start(bucket) <= cores < bucket_start(bucket + 1)


def test_a_percentile_is_the_upper_edge_of_its_bucket() -> None:
    histogram = CpuHistogram()
    for number in range(100):
        histogram.add(0.2 if number < 95 else 0.8, 1.0, 0.0)
    assert histogram.percentile(0.9) == pytest.approx(bucket_start(bucket_of(0.2) + 1))
    assert histogram.percentile(0.96) == pytest.approx(bucket_start(bucket_of(0.8) + 1))


def test_samples_fade_with_a_half_life_of_a_day() -> None:
    histogram = CpuHistogram()
    histogram.add(0.2, 1.0, 0.0)
    histogram.add(0.8, 1.0, 86_400.0)
    old, new = (histogram.weights[bucket_of(cores)] for cores in (0.2, 0.8))
    assert new / old == pytest.approx(2)


def test_bounds_close_in_with_confidence() -> None:
    histogram = CpuHistogram()
    for minute in range(1441):
        histogram.add(0.5, 0.5, 60.0 * minute)
    edge = bucket_start(bucket_of(0.5) + 1)
    advice = recommend(histogram)
    assert advice is not None
    assert histogram.confidence == pytest.approx(1.0)
    assert advice.target == pytest.approx(edge * 1.15)
    assert advice.upper == pytest.approx(edge * 1.15 * 2)
    assert advice.lower == pytest.approx(edge * 1.15 * 1.001**-2)


def test_without_history_it_scales_up_but_hardly_down() -> None:
    vpa = VerticalPodAutoscaler(VIEW)
    downs = [vpa.decide(seen(stage_seen(allocation=cpu(2, 4000), cpu_utilisation=0.05)), 60.0 * m) for m in range(60)]
    assert not any(downs)
    assert recommend(CpuHistogram()) is None
    hot = VerticalPodAutoscaler(VIEW)
    grown = [hot.decide(seen(stage_seen(allocation=cpu(2, 500), cpu_utilisation=1.0)), 60.0 * m) for m in range(60)]
    wanted = next(one for one in grown if one)
    assert wanted["a"].cpu == round(1000 * bucket_start(bucket_of(0.5) + 1) * 1.15)


def test_with_a_day_of_history_it_scales_down_at_once() -> None:
    vpa = VerticalPodAutoscaler(VIEW, history={"a": [0.6] * 2880})
    wanted = vpa.decide(seen(stage_seen(allocation=cpu(2, 4000), cpu_utilisation=0.15)), 60.0)
    assert wanted is not None
    assert wanted["a"].cpu == round(1000 * bucket_start(bucket_of(0.6) + 1) * 1.15)


def test_a_single_replica_is_left_alone() -> None:
    vpa = VerticalPodAutoscaler(VIEW, history={"a": [0.6] * 2880})
    assert not vpa.decide(seen(stage_seen(allocation=cpu(1, 4000), cpu_utilisation=0.15)), 60.0)


def test_the_first_sample_leaves_the_bounds_open() -> None:
    histogram = CpuHistogram()
    histogram.add(0.5, 1.0, 0.0)
    advice = recommend(histogram)
    assert advice is not None
    assert (advice.lower, advice.upper) == (0.0, math.inf)
