"""The HPA's published formulas, worked by hand."""

from __future__ import annotations

import pytest

from controller.simulation.baselines.hpa import (
    Behaviour,
    HorizontalPodAutoscaler,
    ScaleHistory,
    desired_for_external,
    desired_for_resource,
    limit_rate,
)
from controller.state import Limits, PipelineView, StageView
from tests.controller.simulation.builders import cpu, seen, stage_seen

VIEW = PipelineView("simulated/test", (StageView("a", (), False, Limits(replicas_max=50)),), 0.3)


@pytest.mark.parametrize(
    ("current", "ready", "unready", "usage", "target", "expected"),
    [
        (4, 4, 0, 0.8, 0.5, 7),  # ceil(1.6 · 4)
        (4, 4, 0, 0.54, 0.5, 4),  # within the tolerance: 1.08
        (4, 4, 0, 0.56, 0.5, 5),  # just outside: ceil(1.12 · 4)
        (4, 4, 0, 0.2, 0.5, 2),  # ceil(0.4 · 4)
        (4, 0, 4, 0.0, 0.5, 4),  # nobody is ready
        (8, 4, 4, 0.9, 0.5, 8),  # diluted: 0.9 · 4/8 / 0.5 = 0.9, the direction has flipped
        (6, 4, 2, 0.9, 0.5, 8),  # diluted: 0.9 · 4/6 / 0.5 = 1.2; ceil(1.2 · 6)
        (6, 4, 2, 0.2, 0.5, 2),  # below 1 those that start are ignored: ceil(0.4 · 4)
    ],
)
def test_desired_pods_by_cpu(
    current: int, ready: int, unready: int, usage: float, target: float, expected: int
) -> None:
    assert desired_for_resource(current, ready, unready, usage, target) == expected


@pytest.mark.parametrize(
    ("pods", "total", "target", "expected"),
    [(2, 30, 10, 3), (3, 31, 10, 3), (3, 34, 10, 4), (3, 0, 10, 0), (0, 5, 10, 1)],
)
def test_desired_pods_by_an_external_metric(pods: int, total: float, target: float, expected: int) -> None:
    assert desired_for_external(pods, total, target) == expected


def test_at_most_four_pods_or_double_per_period() -> None:
    assert limit_rate(Behaviour(), 1, 30) == 5
    assert limit_rate(Behaviour(), 6, 30) == 12
    assert limit_rate(Behaviour(down_percent=50), 6, 1) == 3
    assert limit_rate(Behaviour(), 6, 0) == 0


def test_scaling_down_follows_the_highest_recommendation_of_five_minutes() -> None:
    history, behaviour = ScaleHistory(), Behaviour()
    assert history.stabilise(behaviour, 0, 4, 6) == 6
    assert history.stabilise(behaviour, 15, 6, 3) == 6
    assert history.stabilise(behaviour, 299, 6, 3) == 6
    assert history.stabilise(behaviour, 301, 6, 2) == 3
    assert history.stabilise(behaviour, 620, 3, 2) == 2


def test_scaling_up_can_be_made_to_wait_for_the_lowest_recommendation() -> None:
    history, behaviour = ScaleHistory(), Behaviour(up_stabilisation_s=60)
    assert history.stabilise(behaviour, 0, 2, 8) == 2
    assert history.stabilise(behaviour, 30, 2, 6) == 2
    assert history.stabilise(behaviour, 61, 2, 7) == 6


def test_a_trace_of_the_whole_controller() -> None:
    hpa = HorizontalPodAutoscaler(VIEW)
    replicas, taken = 2, []
    for step, usage in enumerate([0.8, 1.0, 1.0, 0.4, 0.4]):
        wanted = hpa.decide(
            seen(stage_seen(allocation=cpu(replicas), ready=2 if step < 3 else replicas, cpu_utilisation=usage)),
            15.0 * step,
        )
        if wanted:
            replicas = wanted["a"].replicas
        taken.append(replicas)
    # 0.8 is on target; 1.0/0.8 · 2 → 3; then 1.0 · 2/3 / 0.8 = 0.83 has flipped: hold; down is held for 300 s.
    assert taken == [2, 3, 3, 3, 3]


def test_at_its_defaults_it_never_leaves_its_bounds() -> None:
    hpa = HorizontalPodAutoscaler(VIEW, targets={"a": 0.01})
    replicas = 1
    for step in range(10):
        wanted = hpa.decide(seen(stage_seen(allocation=cpu(replicas), cpu_utilisation=1.0)), 15.0 * step)
        replicas = wanted["a"].replicas if wanted else replicas
    assert replicas == 50
