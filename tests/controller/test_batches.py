import math
from heapq import heapify, heappop, heappush

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.batches import batch_sojourn, request_scv
from controller.model import StageLoad, gamma_quantile, sojourn

services = st.floats(0.001, 0.5)
counts = st.integers(1, 12)
scvs = st.floats(0.0, 2.0)


def simulated(rate: float, servers: int, once: float, each: float, most: int, scv: float) -> tuple[float, ...]:
    """Mean and P99 of the stay, mean batch and the services' squared coefficient of variation; 30,000 requests one after another."""
    generator = np.random.default_rng(5)
    arrivals = np.cumsum(generator.exponential(1 / rate, 30_000))
    demands = generator.gamma(1 / scv, scv, arrivals.size)
    free = [0.0] * servers
    heapify(free)
    stays, sizes, durations, first = [], [], [], 0
    while first < arrivals.size:
        start = max(heappop(free), arrivals[first])
        last = min(int(np.searchsorted(arrivals, start, side="right")), first + most)
        duration = (once + each * (last - first)) * demands[first:last].mean()
        stays.extend(start + duration - arrivals[first:last])
        sizes.append(last - first)
        durations.append(duration)
        heappush(free, start + duration)
        first = last
    spread = float(np.var(durations) / np.mean(durations) ** 2)
    return float(np.mean(stays)), float(np.percentile(stays, 99)), float(np.mean(sizes)), spread


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("busy", [0.3, 0.55, 0.75])
@pytest.mark.parametrize(("once", "most", "scv"), [(0.5, 8, 0.15), (0.5, 16, 0.4), (0.8, 8, 0.6)])
def test_stays_in_a_stage_that_batches_agree_with_simulation(
    servers: int, busy: float, once: float, most: int, scv: float
) -> None:
    each = 1.0 - once
    rate = busy * servers / (once / most + each)
    mean, p99, size, _ = simulated(rate, servers, once, each, most, scv)
    found, variance, batch = batch_sojourn(StageLoad(rate), servers, once, each, scv, float(most))
    assert float(found) == pytest.approx(mean, rel=0.15)
    assert float(gamma_quantile(found, variance)) == pytest.approx(p99, rel=0.20)
    assert float(batch) == pytest.approx(size, rel=0.15)


@pytest.mark.parametrize(("servers", "busy"), [(1, 0.4), (1, 0.7), (2, 0.5)])
def test_what_requests_vary_is_told_from_what_batches_vary(servers: int, busy: float) -> None:
    rate = busy * servers / (0.5 / 8 + 0.5)
    _, _, size, spread = simulated(rate, servers, 0.5, 0.5, 8, 0.4)
    assert request_scv(spread, size, 0.5, 0.5) == pytest.approx(0.4, rel=0.25)
    assert request_scv(spread, 1.0, 0.5, 0.5) == spread


def test_with_hardly_any_load_a_request_is_served_at_once_and_alone() -> None:
    mean, variance, batch = batch_sojourn(StageLoad(0.01), 2, 0.2, 0.3, 0.5, 8.0)
    alone, alone_variance = sojourn(StageLoad(0.01), 2, 0.5, 0.5)
    assert float(mean) == pytest.approx(float(alone), rel=0.01)
    assert float(variance) == pytest.approx(float(alone_variance), rel=0.05)
    assert float(batch) == pytest.approx(1.0, abs=0.01)


@given(st.floats(0.05, 0.8), services, services, counts, scvs)
def test_more_load_never_shortens_a_stay(busy: float, once: float, each: float, servers: int, scv: float) -> None:
    rate = busy * servers / (once / 8 + each)
    low, high = (batch_sojourn(StageLoad(rate * part), servers, once, each, scv, 8.0)[0] for part in (1.0, 1.1))
    assert float(high) >= float(low) * (1 - 1e-2)


@given(st.floats(0.1, 5.0), services, services, counts, scvs, st.floats(1.0, 5.0))
def test_even_in_overload_every_prediction_is_a_number(
    busy: float, once: float, each: float, servers: int, scv: float, fan_out: float
) -> None:
    rate = busy * servers / (once / 8 + each)
    mean, variance, batch = batch_sojourn(StageLoad(rate, fan_out), servers, once, each, scv, 8.0)
    assert math.isfinite(float(mean))
    assert float(mean) >= (once + each) * 0.99
    assert math.isfinite(float(variance))
    assert float(variance) >= 0
    assert 1.0 <= float(batch) <= max(8.0, fan_out) + 1e-9


def test_tasks_that_arrive_together_are_served_together() -> None:
    _, _, batch = batch_sojourn(StageLoad(0.3, 3.0), 1, 0.5, 0.5, 0.2, 8.0)
    assert 3.0 <= float(batch) <= 3.5
