import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.observe.histogram import Histogram, add, increase, is_open, quantile, scv, share_below

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, math.inf)
latencies = st.lists(st.floats(0, 5, allow_nan=False), max_size=200)


def counted(samples: list[float], bounds: tuple[float, ...] = BOUNDS) -> Histogram:
    return Histogram(bounds, tuple(float(sum(sample <= bound for sample in samples)) for bound in bounds))


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9, 0.99])
def test_a_quantile_is_within_the_bucket_that_numpy_finds_it_in(q: float) -> None:
    samples = np.random.default_rng(1).gamma(2.0, 0.05, 10_000)
    truth = float(np.quantile(samples, q))
    found = quantile(counted(list(samples)), q)
    place = int(np.searchsorted(BOUNDS, truth))
    assert found is not None
    assert BOUNDS[place - 1] <= found <= BOUNDS[place]


def test_with_samples_spread_evenly_in_their_buckets_a_quantile_is_exact() -> None:
    samples = list(np.linspace(0, 1, 10_001))
    fine = (*(float(bound) for bound in np.linspace(0.05, 1, 20)), math.inf)
    for q in (0.25, 0.5, 0.99):
        assert quantile(counted(samples, fine), q) == pytest.approx(q, abs=1e-3)


def test_nothing_counted_has_no_quantile_and_no_share() -> None:
    for empty in (Histogram(), counted([])):
        assert quantile(empty, 0.99) is None
        assert share_below(empty, 1.0) is None
        assert not is_open(empty, 0.99)


def test_above_the_highest_bucket_only_a_lower_limit_is_known() -> None:
    seen = counted([0.1] * 90 + [60.0] * 10)
    assert quantile(seen, 0.99) == 2.5
    assert is_open(seen, 0.99)
    assert not is_open(seen, 0.9)
    assert share_below(seen, 30.0) == 0.9


def test_without_any_finite_bucket_nothing_is_known() -> None:
    seen = Histogram((math.inf,), (10.0,))
    assert quantile(seen, 0.5) is None
    assert is_open(seen, 0.5)


@given(latencies)
def test_a_higher_quantile_is_never_lower(samples: list[float]) -> None:
    values = [quantile(counted(samples), q / 20) or 0.0 for q in range(21)]
    assert values == sorted(values)


@given(latencies, st.floats(0, 6))
def test_a_share_is_at_a_bound_what_was_counted_and_grows(samples: list[float], limit: float) -> None:
    seen = counted(samples)
    for bound in BOUNDS[:-1]:
        if samples:
            assert share_below(seen, bound) == sum(sample <= bound for sample in samples) / len(samples)
    if samples:
        assert 0 <= (share_below(seen, limit) or 0) <= (share_below(seen, limit + 1) or 0) <= 1


@given(latencies, latencies)
def test_growth_between_two_scrapes_is_what_came_between_them(before: list[float], more: list[float]) -> None:
    assert increase(counted(before), counted(before + more)) == counted(more)


def test_after_a_restart_everything_counted_is_new() -> None:
    assert increase(counted([0.1] * 50), counted([0.2] * 3)) == counted([0.2] * 3)


@given(latencies, latencies, st.sets(st.sampled_from(BOUNDS[:-1])), st.sets(st.sampled_from(BOUNDS[:-1])))
def test_where_buckets_are_left_out_growth_is_exact_at_those_that_were_always_there(
    before: list[float], more: list[float], here: set[float], there: set[float]
) -> None:
    old, new = ((*sorted(bounds), math.inf) for bounds in (here, there))
    grown = increase(counted(before, old), counted(before + more, new))
    assert grown.bounds == new
    assert list(grown.counts) == sorted(grown.counts)
    for bound, count in zip(grown.bounds, grown.counts, strict=True):
        if bound in old:
            assert count == sum(each <= bound for each in more)


def test_a_restart_is_seen_in_the_buckets_that_both_have() -> None:
    assert increase(counted([0.1] * 9, (0.2, math.inf)), counted([0.1] * 3)) == counted([0.1] * 3)
    assert increase(Histogram(), counted([0.1])) == counted([0.1])
    assert increase(counted([0.1]), Histogram()) == Histogram()


def test_buckets_read_while_requests_end_stay_cumulative() -> None:
    before = Histogram((1.0, 2.0, math.inf), (5.0, 10.0, 10.0))
    after = Histogram((1.0, 2.0, math.inf), (8.0, 11.0, 12.0))
    assert increase(before, after).counts == (3.0, 3.0, 3.0)


@given(latencies, latencies)
def test_of_equal_bounds_a_sum_is_exact(a: list[float], b: list[float]) -> None:
    assert add(counted(a), counted(b)) == counted(a + b)


@given(latencies, latencies)
def test_of_different_bounds_a_sum_keeps_totals_and_order(a: list[float], b: list[float]) -> None:
    both = add(counted(a), counted(b, (0.03, 0.3, 3.0, math.inf)))
    assert both.total == len(a) + len(b)
    assert list(both.counts) == sorted(both.counts)
    assert both.bounds == tuple(sorted({*BOUNDS, 0.03, 0.3, 3.0}))
    assert add(Histogram(), both) == both == add(both, Histogram())


@pytest.mark.parametrize("truth", [0.1, 0.5, 1.0])
def test_variation_is_that_of_the_samples_as_far_as_the_buckets_tell(truth: float) -> None:
    samples = np.random.default_rng(7).gamma(1.0 / truth, 0.2 * truth, 4000).tolist()
    fine, coarse = (*(0.005 * 1.35**n for n in range(25)), math.inf), BOUNDS
    assert scv(counted(samples, fine)) == pytest.approx(np.var(samples) / np.mean(samples) ** 2, rel=0.2)
    # What a bucket hides counts as spread evenly over it: too much rather than too little.
    assert (scv(counted(samples, coarse)) or 0.0) >= 0.9 * truth


def test_of_a_few_samples_no_variation_is_told() -> None:
    assert scv(counted([0.1] * 7)) is None
    assert scv(Histogram()) is None
    assert scv(Histogram((math.inf,), (100.0,))) is None
