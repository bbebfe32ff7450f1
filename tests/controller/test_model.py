import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.model import (
    ServiceCurve,
    StageLoad,
    capacity_per_s,
    gamma_quantile,
    path_count,
    paths,
    pipeline_p99_s,
    sojourn,
    utilisation,
    waiting,
)
from controller.state import PipelineView, StageView

rates = st.floats(0.1, 200.0)
services = st.floats(0.001, 0.5)
counts = st.integers(1, 30)
scvs = st.floats(0.0, 4.0)


def erlang_c(servers: int, offered: float) -> float:
    """Probability of waiting in M/M/c, from its definition."""
    top = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return top / (sum(offered**k / math.factorial(k) for k in range(servers)) + top)


def diamond() -> PipelineView:
    stages = (
        StageView("a", (), uses_gpu=False),
        StageView("b", ("a",), uses_gpu=True),
        StageView("c", ("a",), uses_gpu=False),
        StageView("d", ("b", "c"), uses_gpu=False),
    )
    return PipelineView("test/diamond", stages, 1.0)


def test_a_service_time_is_its_parts_at_the_cores_and_the_share() -> None:
    curve = ServiceCurve(0.001, 0.004, 0.010, setup_s=0.002, setup_gpu_s=0.006)
    assert float(curve.service_s(2.0, 0.5)) == pytest.approx(0.001 + 0.002 + 0.020 + 0.002 + 0.012)
    assert float(curve.service_s(2.0, 0.5, batch=4.0)) == pytest.approx(0.001 + 0.002 + 0.020 + (0.002 + 0.012) / 4)


def test_capacity_is_reached_with_full_batches() -> None:
    curve = ServiceCurve(0.0, 0.0, 0.005, setup_gpu_s=0.006, batch_max=8)
    assert capacity_per_s(curve, 2, 1.0, 1.0) == pytest.approx(2 / (0.005 + 0.006 / 8))


def test_a_single_server_is_exact_for_poisson_arrivals_and_exponential_service() -> None:
    delayed, wait = waiting(StageLoad(8.0), 1, 0.1, 1.0)
    assert float(delayed) == pytest.approx(0.8)
    assert float(wait) == pytest.approx(0.8 / (10 - 8))


def test_a_single_server_with_any_variance_is_pollaczek_and_khinchine() -> None:
    for scv in (0.0, 0.5, 3.0):
        _, wait = waiting(StageLoad(7.0), 1, 0.1, scv)
        assert float(wait) == pytest.approx(7.0 * 0.1**2 * (1 + scv) / (2 * (1 - 0.7)))


@pytest.mark.parametrize(("servers", "load"), [(2, 0.5), (4, 0.7), (8, 0.9), (16, 0.95)])
def test_many_servers_are_within_a_tenth_of_erlang_c(servers: int, load: float) -> None:
    _, wait = waiting(StageLoad(load * servers / 0.1), servers, 0.1, 1.0)
    exact = erlang_c(servers, load * servers) * 0.1 / (servers * (1 - load))
    assert float(wait) == pytest.approx(exact, rel=0.10)


@given(rates, services, counts, scvs)
def test_more_load_never_shortens_a_stay(rate: float, service: float, servers: int, scv: float) -> None:
    low, high = (sojourn(StageLoad(each), servers, service, scv) for each in (rate, 1.1 * rate))
    assert float(high[0]) >= float(low[0]) - 1e-12
    assert float(high[1]) >= float(low[1]) - 1e-12


@given(rates, services, counts, scvs)
def test_one_more_server_never_lengthens_a_stay(rate: float, service: float, servers: int, scv: float) -> None:
    few, more = (sojourn(StageLoad(rate), count, service, scv)[0] for count in (servers, servers + 1))
    assert float(more) <= float(few) + 1e-12


@given(rates, services, counts, scvs)
def test_a_faster_server_never_lengthens_a_stay(rate: float, service: float, servers: int, scv: float) -> None:
    slow, fast = (sojourn(StageLoad(rate), servers, each, scv)[0] for each in (service, 0.9 * service))
    assert float(fast) <= float(slow) + 1e-12


@given(rates, services, counts, scvs)
def test_even_in_overload_every_prediction_is_a_number(rate: float, service: float, servers: int, scv: float) -> None:
    mean, variance = sojourn(StageLoad(1000 * rate, fan_out=4.0), servers, service, scv)
    assert math.isfinite(float(mean))
    assert math.isfinite(float(variance))
    assert float(variance) >= 0


def test_utilisation_is_offered_work_per_server() -> None:
    assert float(utilisation(StageLoad(30.0), 4, 0.1)) == pytest.approx(0.75)


@pytest.mark.parametrize("scv", [0.2, 0.5, 1.0])
def test_the_quantile_of_a_gamma_distribution_is_right_to_three_percent(scv: float) -> None:
    drawn = np.random.default_rng(1).gamma(1 / scv, scv, 400_000)
    assert float(gamma_quantile(1.0, scv)) == pytest.approx(float(np.percentile(drawn, 99)), rel=0.03)


def test_means_and_variances_add_up_along_a_chain() -> None:
    view = PipelineView("test/two", (StageView("a", (), uses_gpu=False), StageView("b", ("a",), uses_gpu=False)), 1.0)
    expected = float(gamma_quantile(0.3, 0.05))
    assert pipeline_p99_s(view, {"a": (0.1, 0.02), "b": (0.2, 0.03)}) == pytest.approx(expected)


def test_of_two_branches_the_slower_counts_at_a_stricter_quantile() -> None:
    view = diamond()
    assert paths(view) == ((0, 1, 3), (0, 2, 3))
    fast = {"a": (0.1, 0.01), "b": (0.3, 0.02), "c": (0.01, 0.0), "d": (0.1, 0.01)}
    assert pipeline_p99_s(view, fast) == pytest.approx(float(gamma_quantile(0.5, 0.04, 0.995)))


def test_in_a_wide_graph_the_slowest_path_counts_wherever_it_lies() -> None:
    layers = [[f"{side}{layer}" for side in "ab"] for layer in range(6)]
    above = [(), *map(tuple, layers)]
    stages = tuple(StageView(name, above[at], uses_gpu=False) for at, both in enumerate(layers) for name in both)
    view = PipelineView("test/wide", stages, 1.0)
    assert path_count({each.name: each.after for each in stages}) == len(paths(view)) == 64
    for slow in itertools.product("ab", repeat=6):
        stays = {name: (0.5 if name[0] == slow[at] else 0.1, 0.0) for at, both in enumerate(layers) for name in both}
        assert pipeline_p99_s(view, stays) == pytest.approx(3.0, rel=1e-3)


@given(st.lists(st.tuples(st.floats(0.001, 1.0), st.floats(0.0, 0.5)), min_size=4, max_size=4), st.integers(0, 3))
def test_a_slower_stage_never_makes_the_pipeline_faster(stays: list[tuple[float, float]], which: int) -> None:
    view = diamond()
    names = [stage.name for stage in view.stages]
    slower = list(stays)
    # The same shape, everything half as long again.
    slower[which] = (stays[which][0] * 1.5, stays[which][1] * 2.25)
    before = pipeline_p99_s(view, dict(zip(names, stays, strict=True)))
    after = pipeline_p99_s(view, dict(zip(names, slower, strict=True)))
    assert after >= before * (1 - 1e-9)
