"""Summaries and intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controller.simulation.baselines.runner import drain, run_policy
from controller.simulation.plant import Plant
from controller.simulation.service import ServiceLaw
from controller.simulation.statistics import mean_interval, paired_interval, summarise, wilson_interval
from controller.simulation.workloads import constant
from tests.controller.simulation.builders import cpu, two_stages


def test_a_run_without_load_problems_misses_nothing() -> None:
    summary = run_policy(two_stages(), constant(10.0, 300), 1, None).summary
    assert summary.missed == summary.failed == 0
    assert summary.finished == summary.requests
    assert summary.goodput_per_s == pytest.approx(summary.requests / 300)
    assert summary.effective_usd_per_1k == pytest.approx(
        summary.effective_usd_per_hour / 12 / summary.requests * 1000, rel=1e-6
    )
    assert summary.whole_card_usd_per_hour > summary.effective_usd_per_hour
    assert summary.p50_s < summary.p99_s < summary.slo_s


def test_drops_and_timeouts_count_as_misses_and_never_look_fast() -> None:
    setup = two_stages(first_law=ServiceLaw(cpu_s=0.2))
    one = Plant(setup, np.arange(0.05, 100, 0.1), 1)
    one.advance(100)
    drain(one)
    summary = summarise(one, "x", 1, until_s=100)
    assert summary.requests == 1000
    assert summary.failed > 400
    assert summary.missed == summary.requests - round(summary.goodput_per_s * 100)
    assert summary.p99_s >= setup.timeout_s


def test_only_the_asked_stretch_counts() -> None:
    one = Plant(two_stages(), np.arange(0.05, 100, 0.1), 1)
    one.advance(50)
    one.apply({"pre": cpu(3)})
    one.advance(100)
    drain(one)
    late, all_of_it = summarise(one, "x", 1, since_s=60, until_s=100), summarise(one, "x", 1, until_s=100)
    assert (late.requests, all_of_it.requests) == (400, 1000)
    assert late.effective_usd_per_hour > all_of_it.effective_usd_per_hour


def test_the_cost_of_draining_is_not_billed() -> None:
    one = Plant(two_stages(), np.array([1.0]), 1)
    one.advance(100)
    before = one.spent.effective_usd
    drain(one)
    assert summarise(one, "x", 1, until_s=100).effective_usd_per_hour == pytest.approx(before * 36)


def test_students_interval_at_a_known_point() -> None:
    interval = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval.mean == 3
    assert interval.high - 3 == pytest.approx(2.776445 * np.sqrt(2.5 / 5), rel=1e-5)
    assert interval.excludes_zero


def test_pairing_takes_the_seeds_common_part_away() -> None:
    ours, theirs = [10.0, 20.0, 30.0], [11.0, 21.1, 30.9]
    assert paired_interval(ours, theirs).excludes_zero
    assert not paired_interval(ours, theirs[::-1]).excludes_zero
    with pytest.raises(ValueError, match="zip"):
        paired_interval(ours, theirs[:2])
    with pytest.raises(ValueError, match="at least two"):
        mean_interval([1.0])


def test_wilsons_interval_at_a_known_point() -> None:
    interval = wilson_interval(172, 200)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.86, 0.8051, 0.9014), abs=2e-4)


def test_a_summary_without_requests_is_no_division_by_zero() -> None:
    one = Plant(two_stages(), np.array([]), 1)
    one.advance(10)
    summary = summarise(one, "x", 1)
    assert (summary.requests, summary.miss_ratio, summary.p99_s) == (0, 0, 0)
    assert replace(summary, requests=4, missed=1).miss_ratio == 0.25
