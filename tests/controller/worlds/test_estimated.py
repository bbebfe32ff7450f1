from __future__ import annotations

import bisect
import heapq
import itertools
import math

import numpy as np
import pytest

from controller.observe.histogram import Histogram
from controller.worlds.estimated import estimated_service_s, mean_latency_s

BOUNDS = (*(0.001 * 1.2**step for step in range(50)), math.inf)
SERVICE_S = 0.02


def histogram(latencies: list[float]) -> Histogram:
    counts = [0] * len(BOUNDS)
    for each in latencies:
        counts[bisect.bisect_left(BOUNDS, each)] += 1
    return Histogram(BOUNDS, tuple(map(float, itertools.accumulate(counts))))


def queueing(
    load: float, replicas: int, seed: int, seconds: float = 60.0
) -> tuple[Histogram, tuple[int, int], float, float]:
    """A window of an M/M/c queue that has run for a while: latencies, queue at both ends, arrivals and departures per second."""
    rng, now = np.random.default_rng(seed), 0.0
    free = [0.0] * replicas
    spans: list[tuple[float, float, float]] = []
    while now < 2 * seconds:
        now += rng.exponential(SERVICE_S / (load * replicas))
        begins = max(now, heapq.heappop(free))
        ends = begins + rng.exponential(SERVICE_S)
        heapq.heappush(free, ends)
        spans.append((now, begins, ends))

    def waiting(at: float) -> int:
        return sum(came <= at < begins for came, begins, _ in spans)

    done = [ends - came for came, _, ends in spans if seconds < ends <= 2 * seconds]
    came = sum(seconds < came <= 2 * seconds for came, _, _ in spans)
    return histogram(done), (waiting(seconds), waiting(2 * seconds)), came / seconds, len(done) / seconds


@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize("load", [0.1, 0.4, 0.7, 0.9, 1.3])
def test_it_is_never_much_too_short_and_at_low_loads_and_in_overload_it_is_right(load: float, replicas: int) -> None:
    for seed in range(5):
        latency, queues, arrivals, departures = queueing(load, replicas, seed)
        found = estimated_service_s(latency, queues, arrivals, departures, replicas, None)
        if (
            found is None
        ):  # nothing waits at the ends, and without that the replicas would have been busier than they can be
            assert load >= 0.7
            continue
        assert found > 0.85 * SERVICE_S
        assert departures * found <= replicas * 1.0001
        if load < 0.15 or load > 1.0:
            assert found == pytest.approx(SERVICE_S, rel=0.25)


def test_a_replica_that_serves_several_at_once_is_known_by_its_cpu_time_or_not_at_all() -> None:
    calm = histogram([0.1] * 1000)
    assert estimated_service_s(calm, (0, 0), 50.0, 50.0, 1, 0.004) == 0.004
    assert estimated_service_s(calm, (0, 0), 50.0, 50.0, 1, None) is None


def test_cpu_time_is_the_least_a_request_takes() -> None:
    assert estimated_service_s(histogram([0.01] * 100), (0, 0), 5.0, 5.0, 1, 0.08) == 0.08


@pytest.mark.parametrize("broken", [math.nan, math.inf, -1.0, 0.0])
def test_numbers_that_make_no_sense_give_no_estimate(broken: float) -> None:
    latency = histogram([0.01] * 100)
    assert estimated_service_s(latency, (0, 0), 5.0, broken, 1, None) is None
    assert estimated_service_s(latency, (0, 0), broken, 5.0, 1, None) is None
    assert estimated_service_s(Histogram(), (0, 0), 5.0, 5.0, 1, None) is None
    assert estimated_service_s(latency, (0, 0), 5.0, 5.0, 0, None) is None


def test_a_mean_rests_on_the_middle_of_buckets_and_on_no_open_one() -> None:
    assert mean_latency_s(Histogram((0.1, 0.3, math.inf), (2.0, 4.0, 4.0))) == pytest.approx(0.125)
    assert mean_latency_s(Histogram((0.1, 0.3, math.inf), (2.0, 4.0, 5.0))) is None
