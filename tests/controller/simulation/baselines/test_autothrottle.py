"""The Tower's costs as published, and that it learns."""

from __future__ import annotations

import pytest

from controller.simulation.baselines.autothrottle import Autothrottle, Tower, tower_cost
from controller.simulation.baselines.runner import run_policy
from controller.simulation.workloads import constant
from tests.controller.simulation.builders import gpu, two_stages


@pytest.mark.parametrize(
    ("usd", "p99_s", "cost"),
    [(1.0, 0.1, 0.25), (4.0, None, 1.0), (9.0, 0.1, 1.0), (1.0, 0.3, 2.5), (1.0, 0.9, 3.0), (1.0, 0.2, 0.25)],
)
def test_costs_are_below_one_within_the_slo_and_above_two_beyond(usd: float, p99_s: float | None, cost: float) -> None:
    assert tower_cost(usd, 4.0, p99_s, 0.2) == pytest.approx(cost)


def test_the_tower_moves_one_notch_at_a_time_to_where_it_was_cheap() -> None:
    tower = Tower(1, epsilon=0.0)
    for arm in tower.arms:
        tower.learn(50.0, arm, 2.5 if arm[1] > 0.6 else 1 - sum(arm) / 2)
    arm = (0.3, 0.3)
    visited = [arm := tower.choose(50.0, arm) for _ in range(8)]
    assert visited[0] == (0.4, 0.4)
    assert visited[-1] == (0.8, 0.5)  # not 0.6: its neighbour missed the SLO


def test_what_was_learned_at_one_load_says_little_about_another() -> None:
    tower = Tower(1)
    for _ in range(5):
        tower.learn(10.0, (0.5, 0.5), 3.0)
    assert tower.expected_cost(10.0, (0.5, 0.5)) > 2.5
    assert tower.expected_cost(200.0, (0.5, 0.5)) < 1.0


def test_it_lowers_the_cost_of_a_steady_load_within_the_slo() -> None:
    setup = two_stages(second=gpu(1, 1000))
    run = run_policy(setup, constant(15.0, 900), 1, Autothrottle(setup, 1))
    cost = run.recording.effective_usd_per_hour
    assert cost[-60:].mean() < 0.6 * cost[0]
    assert run.summary.miss_ratio < 0.05
