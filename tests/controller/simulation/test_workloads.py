"""Rates over time, and the arrivals drawn from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from controller.simulation.workloads import (
    WORKLOADS,
    RateSeries,
    draw_arrivals,
    recurring_bursts,
    trace,
    workload_named,
)
from sair.errors import InvalidInput


@pytest.mark.parametrize("name", WORKLOADS)
def test_arrivals_follow_the_rate(name: str) -> None:
    series = workload_named(name, 50.0, 1800, 3)
    arrivals = draw_arrivals(series, 3)
    assert series.duration_s == 1800
    assert np.all(np.diff(arrivals) >= 0)
    assert 0 <= arrivals[0] <= arrivals[-1] <= 1800
    expected = series.rates_per_s.reshape(-1, 60).sum(axis=1)
    counted = np.histogram(arrivals, np.arange(0, 1801, 60))[0]
    assert np.abs(counted - expected).max() < 5 * np.sqrt(expected.max())


def test_constant_arrivals_are_a_poisson_process() -> None:
    gaps = np.diff(draw_arrivals(workload_named("poisson", 100.0, 2000, 1), 1))
    assert gaps.mean() == pytest.approx(0.01, rel=0.02)
    assert gaps.var() == pytest.approx(0.01**2, rel=0.05)


def test_the_same_seed_gives_the_same_arrivals_and_another_one_others() -> None:
    series = workload_named("ramp", 20.0, 100, 1)
    assert np.array_equal(draw_arrivals(series, 1), draw_arrivals(series, 1))
    assert not np.array_equal(draw_arrivals(series, 1)[:10], draw_arrivals(series, 2)[:10])


def test_nothing_arrives_while_the_rate_is_nothing() -> None:
    rates = np.array([10.0] * 50 + [0.0] * 50 + [10.0] * 50)
    arrivals = draw_arrivals(RateSeries("gap", rates), 1)
    assert not np.any((arrivals > 50.001) & (arrivals < 99.999))


def burst_lengths(rates: np.ndarray[tuple[int], np.dtype[np.float64]], above: float) -> list[int]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (rates > above).astype(int), [0]])))
    return [int(end - begin) for begin, end in edges.reshape(-1, 2)]


def test_recurring_bursts_have_the_stated_heights_lengths_and_gaps() -> None:
    rates = recurring_bursts(10.0, 7200, 1, times="regular").rates_per_s
    lengths = burst_lengths(rates, 25.0)
    assert 17 <= len(lengths) <= 19
    assert all(39 <= length <= 61 for length in lengths)
    assert 30 <= rates.max() <= 50
    starts = np.flatnonzero(np.diff((rates > 25.0).astype(int)) == 1)
    assert np.ptp(np.diff(starts)) <= 1


def test_a_precursor_comes_a_minute_before_each_burst() -> None:
    rates = recurring_bursts(10.0, 7200, 2, times="precursor").rates_per_s
    starts = np.flatnonzero(np.diff((rates > 25.0).astype(int)) == 1) + 1
    assert len(starts) > 10
    for start in starts:
        assert np.all(rates[start - 60 : start - 41] == 15.0)
        assert np.all(rates[start - 39 : start] == 10.0)


def test_bursts_at_poisson_times_are_irregular() -> None:
    rates = recurring_bursts(10.0, 36_000, 1, times="poisson").rates_per_s
    gaps = np.diff(np.flatnonzero(np.diff((rates > 25.0).astype(int)) == 1))
    assert gaps.std() > 0.4 * gaps.mean()


def test_a_trace_file_is_a_rate_per_second(tmp_path: Path) -> None:
    path = tmp_path / "my-trace.txt"
    path.write_text("3\n4.5\n0\n7\n")
    assert trace(path).rates_per_s.tolist() == [3, 4.5, 0, 7]
    assert trace(path).name == "my-trace"
    assert trace(path, 2).rates_per_s.tolist() == [3, 4.5]


def test_an_unknown_workload_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"workload: 'nothing' is not allowed; expected one of poisson, ramp"):
        workload_named("nothing", 1.0, 10, 1)


@pytest.mark.parametrize("duration_s", [0.0, -5.0, float("nan"), 1e12])
def test_a_duration_that_is_none_is_refused(duration_s: float) -> None:
    with pytest.raises(InvalidInput, match="duration"):
        workload_named("poisson", 1.0, duration_s, 1)


def test_more_requests_than_fit_into_memory_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at most 20000000 in one run"):
        draw_arrivals(RateSeries("huge", np.full(1000, 1e5)), 1)
