import math
from dataclasses import replace

import pytest

from controller.observe.histogram import Histogram
from controller.observe.series import StageWindow
from controller.state import PipelineView, StageView
from controller.worlds.latency import EndToEnd, end_to_end, entering, finished_per_s, sinks
from sair.errors import MetricsUnavailable

BOUNDS = (0.1, 0.2, 0.4, 0.8, math.inf)


def at(latency_s: float, count: float = 100.0) -> Histogram:
    return Histogram(BOUNDS, tuple(count if latency_s <= bound else 0.0 for bound in BOUNDS))


def window(latency: Histogram, pipeline: Histogram | None = None) -> StageWindow:
    return StageWindow(10, 10, 10, 0, 0, latency, pipeline or Histogram(), 0.1, None, 0)


def view(slo_s: float = 1.0, **after: tuple[str, ...]) -> PipelineView:
    return PipelineView("default/shop", tuple(StageView(name, ups, False) for name, ups in after.items()), slo_s)


DIAMOND = view(a=(), fast=("a",), slow=("a",), end=("fast", "slow"))


def test_stages_are_summed_along_the_slowest_path() -> None:
    windows = {name: window(at(latency)) for name, latency in (("a", 0.1), ("fast", 0.1), ("slow", 0.4), ("end", 0.2))}
    seen = end_to_end(DIAMOND, windows)
    # The upper parts of the buckets (0, 0.1], (0.2, 0.4] and (0.1, 0.2].
    assert seen.p99_s == pytest.approx(0.099 + 0.398 + 0.199)
    assert seen.p50_s == pytest.approx(0.05 + 0.3 + 0.15)
    assert seen.within == 1.0


def test_the_last_stages_own_histogram_of_the_whole_goes_before_sums() -> None:
    windows = {name: window(at(0.8)) for name in ("a", "fast", "slow")} | {"end": window(at(0.8), at(0.2))}
    assert end_to_end(DIAMOND, windows).p99_s == pytest.approx(0.199)


def test_of_several_last_stages_the_slowest_counts() -> None:
    forked = view(a=(), left=("a",), right=("a",))
    assert sinks(forked) == ["left", "right"]
    windows = {"a": window(at(0.1)), "left": window(at(0.1), at(0.8)), "right": window(at(0.1), at(0.2))}
    assert end_to_end(forked, windows).p99_s == pytest.approx(0.796)


def test_a_request_that_goes_through_every_branch_counts_once() -> None:
    forked = view(a=(), left=("a",), right=("a",))
    windows = {
        name: replace(window(at(0.1)), departures_per_s=rate)
        for name, rate in (("a", 9.0), ("left", 8.0), ("right", 7.0))
    }
    assert finished_per_s(forked, windows) == 7.0
    assert entering([9.0, 8.5]) == 9.0


def test_where_a_stage_finished_nothing_nothing_is_claimed() -> None:
    windows = {"a": window(at(0.1)), "b": window(Histogram())}
    assert end_to_end(view(a=(), b=("a",)), windows) == EndToEnd(None, None, None)


def test_requests_beyond_the_slo_are_missed() -> None:
    half = Histogram(BOUNDS, (50, 50, 50, 100, 100))
    assert end_to_end(view(0.4, a=()), {"a": window(half)}).within == 0.5


@pytest.mark.parametrize("own", [True, False], ids=["of the pipeline", "of a stage"])
def test_a_p99_above_all_buckets_is_unknown_unless_those_reach_the_slo(own: bool) -> None:
    late = window(at(0.1), at(5.0)) if own else window(at(5.0))
    with pytest.raises(MetricsUnavailable, match=r"highest bucket, 0.8 s; buckets up to the SLO of 1 s"):
        end_to_end(view(1.0, a=()), {"a": late})
    seen = end_to_end(view(0.5, a=()), {"a": late})
    assert seen.p99_s == 0.8
    assert seen.within == 0.0
