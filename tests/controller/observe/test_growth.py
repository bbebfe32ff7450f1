"""Label sets come, vanish, come back and begin anew: none of that is traffic. Judged by what really happened in the pod."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.observe.exposition import MAX_SAMPLES, Labels, Observed, Scrape, parse_exposition
from controller.observe.growth import KEPT_S, Counters, Growth
from controller.observe.histogram import Histogram
from controller.observe.series import PodSeries, now_of, peak_of, window_of
from sair.annotations import MetricsEndpoint

BOUNDS = ("0.1", "1", "+Inf")
TYPES = """\
# TYPE sair_stage_queue_depth gauge
# TYPE sair_stage_arrivals_total counter
# TYPE sair_stage_latency_seconds histogram
"""


@dataclass
class Route:
    """One label set of a pod: how many requests fell into each bucket since it began."""

    inside: list[int] = field(default_factory=lambda: [0] * len(BOUNDS))

    def lines(self, name: str, bounds: tuple[str, ...] = BOUNDS) -> list[str]:
        upto = dict(zip(BOUNDS, (sum(self.inside[: place + 1]) for place in range(len(BOUNDS))), strict=True))
        own, total = f'route="{name}"', upto["+Inf"]
        size = f'batch="{len(name)}",{own}'
        return [
            f"sair_stage_arrivals_total{{{own}}} {total}",
            *(f'sair_stage_latency_seconds_bucket{{{own},le="{bound}"}} {upto[bound]}' for bound in bounds),
            f"sair_stage_service_seconds_sum{{{size}}} {total * 0.5}",
            f"sair_stage_service_seconds_count{{{size}}} {total}",
            *(f'sair_stage_service_seconds_bucket{{{size},le="{bound}"}} {upto[bound]}' for bound in bounds),
            f"process_cpu_seconds_total{{{own}}} {total}",
        ]


@dataclass(frozen=True)
class Step:
    """What happened before one scrape, and what the pod shows in it."""

    came: dict[str, list[int]]
    restarted: frozenset[str]
    hidden: frozenset[str]
    without: frozenset[str]
    """Buckets that are left out."""
    order: int


names = st.sampled_from(("a", "b", "cc"))
steps = st.lists(
    st.builds(
        Step,
        came=st.dictionaries(names, st.lists(st.integers(0, 50), min_size=3, max_size=3)),
        restarted=st.frozensets(names, max_size=1),
        hidden=st.frozensets(names),
        without=st.frozensets(st.sampled_from(BOUNDS[:-1]), max_size=1),
        order=st.integers(0, 1000),
    ),
    min_size=2,
    max_size=8,
)


def lived(
    story: list[Step], began_s: float | None = None, *, shuffled: bool = False, routes: dict[str, Route] | None = None
) -> tuple[list[Growth], list[dict[str, int]]]:
    """What is made of a pod's scrapes, two seconds apart, and how many requests each route really had before each."""
    routes = {} if routes is None else routes
    series, truth = PodSeries(), []
    for number, step in enumerate(story):
        truth.append({name: sum(came) for name, came in step.came.items()})
        for name in step.restarted:
            routes.pop(name, None)
        for name, came in step.came.items():
            one = routes.setdefault(name, Route())
            one.inside = [old + new for old, new in zip(one.inside, came, strict=True)]
        bounds = tuple(bound for bound in BOUNDS if bound not in step.without)
        lines = [line for name, one in routes.items() if name not in step.hidden for line in one.lines(name, bounds)]
        if shuffled and lines:
            turn = step.order % len(lines)
            lines = [*lines[turn:], *lines[:turn]][::-1]
        text = TYPES + "sair_stage_queue_depth 0\n" + "\n".join(lines) + "\n"
        series.append(parse_exposition(text, MetricsEndpoint(), 2.0 * number), began_s)
    return series.between(-1.0, math.inf), truth


def counted(growth: Growth) -> list[float]:
    """The same number by each of the metrics that tell it."""
    services = growth.services.values()
    return [
        growth.arrivals,
        growth.latency.total,
        sum(each.count for each in services),
        sum(each.buckets.total for each in services),
        growth.cpu_s or 0.0,
    ]


@given(steps)
def test_growth_is_never_negative_and_never_more_than_what_happened(story: list[Step]) -> None:
    grown, truth = lived(story)
    for upto in range(1, len(story) + 1):
        happened = sum(sum(each.values()) for each in truth[1:upto])
        for place in range(5):
            parts = [counted(each)[place] for each in grown[:upto]]
            assert all(part >= 0 for part in parts)
            assert sum(parts) <= happened
    for each in grown:
        for shape in (each.latency, *(seen.buckets for seen in each.services.values())):
            assert list(shape.counts) == sorted(shape.counts)
            assert not shape.bounds or shape.bounds[-1] == math.inf
        for seen in each.services.values():
            assert seen.sum == pytest.approx(0.5 * seen.count), "sum and count begin anew together"


@given(steps)
def test_of_a_container_that_has_just_begun_no_more_is_counted_than_it_ever_had(story: list[Step]) -> None:
    grown, truth = lived(story, began_s=-1.0)
    for place in range(5):
        assert sum(counted(each)[place] for each in grown) <= sum(sum(each.values()) for each in truth)


@given(steps)
def test_the_order_of_samples_says_nothing(story: list[Step]) -> None:
    plain, shuffled = lived(story), lived(story, shuffled=True)
    assert [counted(each) for each in plain[0]] == [counted(each) for each in shuffled[0]]
    assert [each.latency for each in plain[0]] == [each.latency for each in shuffled[0]]


@given(steps)
def test_while_all_series_are_shown_and_none_begins_anew_everything_is_counted(story: list[Step]) -> None:
    quiet = frozenset[str]()
    calm = [Step(step.came, quiet, quiet, quiet, step.order) for step in story]
    grown, truth = lived(calm, routes={name: Route([5, 5, 5]) for name in ("a", "b", "cc")})
    for each, happened in zip(grown[1:], truth[1:], strict=True):
        assert counted(each) == [sum(happened.values())] * 5


def scrape(time_s: float, **arrivals: float) -> Scrape:
    return Scrape(time_s, 0.0, {(("route", route),): count for route, count in arrivals.items()})


def arrivals(*scrapes: Scrape, began_s: float | None = None) -> list[float]:
    counters = Counters()
    return [counters.grown(each, began_s).arrivals for each in scrapes]


def test_a_label_set_that_vanishes_and_returns_is_no_burst() -> None:
    assert arrivals(scrape(0, a=1e6, b=20), scrape(2, b=25), scrape(4, a=1e6 + 7, b=25)) == [0, 5, 7]


def test_a_label_set_that_was_never_seen_counts_from_its_first_sample() -> None:
    assert arrivals(scrape(0, a=5), scrape(2, a=5, b=1e6), scrape(4, a=5, b=1e6 + 3)) == [0, 0, 3]
    # All of them at once, as when an exporter finds its server again.
    assert arrivals(scrape(0), scrape(2, a=1e6, b=1e6), scrape(4, a=1e6 + 1, b=1e6 + 1)) == [0, 0, 2]


def test_of_a_container_that_has_just_begun_a_new_label_set_counts_in_full() -> None:
    shown = (scrape(10), scrape(12, a=30), scrape(14, a=35, b=2))
    assert arrivals(*shown, began_s=5.0) == [0, 30, 7]
    assert arrivals(*shown, began_s=12 - KEPT_S - 0.1) == [0, 0, 5]
    assert arrivals(*shown, began_s=60.0) == [0, 0, 5], "clocks differ: nothing is known"
    assert arrivals(scrape(12, a=30), began_s=5.0) == [0], "there is nothing to compare the first scrape with"


def test_one_series_that_begins_anew_leaves_the_others_as_they_are() -> None:
    assert arrivals(scrape(0, a=1000, b=1000), scrape(2, a=4, b=1001)) == [0, 5]
    assert arrivals(scrape(0, a=1000, b=10), scrape(2, a=4, b=2000)) == [0, 4 + 1990]


def test_a_window_over_a_label_set_that_comes_and_goes_shows_the_rate_there_was() -> None:
    series = PodSeries()
    for number in range(16):
        shown = {"a": 1e6 + 20.0 * number, "b": 5e5 + 20.0 * number}
        if number % 3 == 2:
            del shown["b"]
        series.append(scrape(2.0 * number, **shown))
    window, now, peak = (
        window_of({"p": series}, 30, 30),
        now_of({"p": series}, 30, 6),
        peak_of({"p": series}, 30, 30),
    )
    assert window is not None and now is not None
    assert window.arrivals_per_s == pytest.approx(20.0)
    # What came while it was hidden is seen when it is back.
    assert now.arrivals_per_s <= 30.0
    assert peak <= 30.0


def test_what_vanished_is_forgotten_after_a_while_and_then_counts_from_its_first_sample() -> None:
    within, after = KEPT_S - 1, KEPT_S + 3
    assert arrivals(scrape(0, a=5, b=1), scrape(within, b=1), scrape(within + 1, a=9, b=1)) == [0, 0, 4]
    assert arrivals(scrape(0, a=5, b=1), scrape(after, b=1), scrape(after + 1, a=9, b=1)) == [0, 0, 0]


def test_a_pod_whose_label_sets_are_always_others_fills_no_memory() -> None:
    counters, per_scrape = Counters(), MAX_SAMPLES // 2
    for number in range(12):
        shown = {f"r{number}-{place}": 1.0 for place in range(per_scrape)}
        counters.grown(scrape(float(number), **shown), None)
        assert len(counters._arrivals._last) <= 2 * MAX_SAMPLES + per_scrape


def test_cpu_of_a_pod_that_does_not_say_is_unknown_and_not_none_used() -> None:
    counters = Counters()
    said: list[dict[Labels, float]] = [{(): 4.0}, {}, {(): 4.5}, {(): 4.5}]
    seen = [counters.grown(Scrape(float(second), 0.0, {}, cpu_s=cpu), None).cpu_s for second, cpu in enumerate(said)]
    assert seen == [None, None, 0.5, 0.0]


def test_a_histogram_begins_anew_as_a_whole_and_alone() -> None:
    def said(a: tuple[float, ...], b: tuple[float, ...]) -> Scrape:
        shapes: dict[Labels, Histogram] = {
            (("m", name),): Histogram((0.1, math.inf), counts) for name, counts in (("a", a), ("b", b))
        }
        return Scrape(a[-1], 0.0, {}, shapes)

    counters = Counters()
    counters.grown(said((50, 100), (7, 1000)), None)
    # Of a only the +Inf bucket shows it, and b has had one request.
    assert counters.grown(said((50, 99 + 1e-9), (7, 1001)), None).latency.counts == pytest.approx((50, 100))


def test_a_sum_that_fell_begins_its_count_anew_too() -> None:
    def said(time_s: float, total: float, count: float) -> Scrape:
        return Scrape(time_s, 0.0, {}, services={(): Observed(total, count)})

    counters = Counters()
    counters.grown(said(0, 100.0, 10), None)
    # Restarted, and by now more and shorter services than before.
    assert counters.grown(said(2, 3.0, 12), None).services == {None: Observed(3.0, 12)}


def test_sizes_are_told_apart_and_summed_over_models() -> None:
    def said(time_s: float, count: float) -> Scrape:
        services = {
            (("batch", "4"), ("model", "a")): Observed(count, count),
            (("batch", "4"), ("model", "b")): Observed(3 * count, count),
            (("model", "c"),): Observed(count, 2 * count),
        }
        return Scrape(time_s, 0.0, {}, services=services)

    counters = Counters()
    counters.grown(said(0, 10), None)
    assert counters.grown(said(2, 15), None).services == {4: Observed(20, 10), None: Observed(5, 10)}
