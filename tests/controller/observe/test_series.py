import math
from typing import Any

import pytest

from controller.observe.exposition import Observed, Scrape
from controller.observe.histogram import Histogram
from controller.observe.series import KEPT_S, PodSeries, now_of, peak_of, window_of


def scrape(time_s: float, arrivals: float, queue: float = 0.0, **more: Any) -> Scrape:
    done = Histogram((0.1, math.inf), (arrivals, arrivals))
    return Scrape(time_s, queue, {(): arrivals}, {(): done}, **more)


def cpu(seconds: float) -> dict[Any, float]:
    return {(): seconds}


def plain(total: float, count: float) -> dict[Any, Observed]:
    return {(): Observed(total, count)}


def by_size(**sizes: Observed) -> dict[Any, Observed]:
    return {(("batch", name.removeprefix("of_")),): seen for name, seen in sizes.items()}


def series(*scrapes: Scrape) -> PodSeries:
    made = PodSeries()
    for each in scrapes:
        made.append(each)
    return made


def test_rates_are_growth_over_the_time_between_scrapes_and_add_up_over_pods() -> None:
    one = series(scrape(0, 100), scrape(5, 150), scrape(10, 200, 4.0))
    two = series(scrape(0, 0, 2.0), scrape(10, 50, 2.0))
    seen = window_of({"a": one, "b": two}, 10, 10)
    assert seen is not None
    assert (seen.arrivals_per_s, seen.departures_per_s) == (15.0, 15.0)
    assert (seen.queue, seen.queue_slope) == (6.0, 0.4)
    assert seen.latency.total == 150


def test_a_counter_that_fell_began_anew_at_nothing() -> None:
    seen = window_of({"a": series(scrape(0, 1000), scrape(5, 1050), scrape(10, 30))}, 10, 10)
    assert seen is not None
    assert seen.arrivals_per_s == pytest.approx((50 + 30) / 10)
    assert seen.departures_per_s == pytest.approx((50 + 30) / 10)


def test_service_time_and_cpu_are_ratios_of_growth() -> None:
    one = series(
        scrape(0, 0, services=plain(1.0, 10.0), cpu_s=cpu(5.0)),
        scrape(10, 40, services=plain(3.0, 50.0), cpu_s=cpu(8.0)),
    )
    seen = window_of({"a": one}, 10, 10)
    assert seen is not None
    assert seen.service_s == pytest.approx(0.05)
    assert seen.cpu_cores == pytest.approx(0.3)


def test_services_are_counted_by_batch_size_over_pods_and_restarts() -> None:
    one = series(
        scrape(0, 0, services=by_size(of_1=Observed(5.0, 50.0), of_4=Observed(1.0, 10.0))),
        scrape(5, 0, services=by_size(of_1=Observed(6.0, 60.0), of_4=Observed(3.0, 20.0))),
        scrape(10, 0, services=by_size(of_1=Observed(0.4, 5.0))),
    )
    two = series(
        scrape(0, 0, services=by_size(of_4=Observed(1.0, 5.0))),
        scrape(10, 0, services=by_size(of_4=Observed(3.0, 15.0))),
    )
    seen = window_of({"a": one, "b": two}, 10, 10)
    assert seen is not None
    assert [(each.size, each.services) for each in seen.batches] == [(1, 15.0), (4, 20.0)]
    assert [each.mean_s for each in seen.batches] == pytest.approx([1.4 / 15, 4.0 / 20])
    assert seen.service_s == pytest.approx((1.4 + 4.0) / (15 + 80))
    assert seen.mean_batch == pytest.approx(95 / 35)


def test_variation_is_read_from_the_buckets_of_each_size() -> None:
    def said(low: float, high: float) -> dict[Any, Observed]:
        return by_size(of_4=Observed(0.1 * high, high, Histogram((0.1, 0.2, math.inf), (low, high, high))))

    seen = window_of({"a": series(scrape(0, 0, services=said(5, 5)), scrape(10, 0, services=said(105, 205)))}, 10, 10)
    assert seen is not None
    # Even between 0 and 0.2 s: variance 0.2²/12 about a mean of 0.1 s.
    assert seen.batches[0].scv == pytest.approx(1 / 3)


def test_one_scrape_is_no_window() -> None:
    assert window_of({"a": series(scrape(10, 5))}, 10, 10) is None
    assert window_of({}, 10, 10) is None


def test_the_age_is_that_of_the_pod_that_was_silent_longest() -> None:
    seen = window_of({"a": series(scrape(0, 0), scrape(10, 10)), "b": series(scrape(0, 0), scrape(3, 9))}, 10, 5)
    assert seen is not None
    assert seen.oldest_s == 3


def test_scrapes_out_of_order_are_ignored_and_old_ones_forgotten() -> None:
    one = series(scrape(10, 10), scrape(10, 99), scrape(9, 99), scrape(11, 12))
    assert one.last is not None
    assert (one.last.time_s, one.last.arrivals) == (11, 2)
    one.append(scrape(11 + KEPT_S + 1, 50))
    assert [(each.time_s, each.arrivals) for each in one.between(0, 1000)] == [(11 + KEPT_S + 1, 38)]


def test_the_peak_is_the_highest_rate_of_all_pods_together_over_five_seconds() -> None:
    steady = series(*(scrape(t, 10.0 * t) for t in range(0, 31, 2)))
    burst = series(*(scrape(t, 100.0 * max(0, min(t, 15) - 10)) for t in range(31)))
    assert peak_of({"a": steady}, 30, 30) == pytest.approx(10)
    assert peak_of({"a": steady, "b": burst}, 30, 30) == pytest.approx(110)
    assert peak_of({"b": burst}, 30, 10) == 0
    assert peak_of({}, 30, 30) == 0


def test_the_mean_batch_is_that_of_the_window_over_all_pods_that_say() -> None:
    one = series(scrape(0, 0, batches=plain(100.0, 50.0)), scrape(10, 40, batches=plain(160.0, 60.0)))
    two = series(scrape(0, 0, batches=plain(0.0, 0.0)), scrape(10, 40, batches=plain(20.0, 10.0)))
    mute = series(scrape(0, 0), scrape(10, 40))
    seen = window_of({"a": one, "b": two, "c": mute}, 10, 10)
    assert seen is not None
    assert seen.mean_batch == pytest.approx((60 + 20) / (10 + 10))
    silent = window_of({"c": mute}, 10, 10)
    assert silent is not None
    assert silent.mean_batch is None


def test_the_look_between_rounds_sees_all_pods_queues_and_the_arrivals_of_their_last_scrapes() -> None:
    pods = {
        # A restart: all that it says is new.
        "a": series(scrape(0, 100), scrape(9.4, 150), scrape(9.9, 30, 4.0)),
        # Scraped less often, as by a Prometheus server: since the scrape before.
        "b": series(scrape(2, 0, 2.0), scrape(7, 50, 3.0)),
        "c": series(scrape(9, 5, 1.0)),
    }
    now = now_of(pods, 10, 0.5)
    assert now is not None
    assert now.arrivals_per_s == pytest.approx(30 / 0.5 + 50 / 5)
    assert (now.queue, now.oldest_s) == (8.0, 7)
    assert now_of({"c": pods["c"]}, 10, 0.5) is None
    assert now_of({}, 10, 0.5) is None


def test_scrapes_twice_a_second_take_no_more_memory_than_one_and_lose_nothing() -> None:
    def grown(number: int) -> Scrape:
        return scrape(
            0.5 * number,
            3.0 * number,
            float(number % 7),
            services=by_size(of_2=Observed(0.1 * number, 1.0 * number)),
            batches=plain(2.0 * number, 1.0 * number),
            cpu_s=cpu(0.2 * number),
        )

    often = series(*(grown(number) for number in range(401)))
    seldom = series(*(grown(number) for number in range(0, 401, 2)))
    assert len(often.between(0, 200)) <= len(seldom.between(0, 200)) + 8
    # The last two minutes, the last half of them, and a stretch at whose ends both have a scrape.
    for now, seconds in ((200, 100), (200, 14), (190, 20)):
        one, other = window_of({"a": often}, now, seconds), window_of({"a": seldom}, now, seconds)
        assert one is not None
        assert other is not None
        assert one.arrivals_per_s == pytest.approx(6)
        assert one.mean_batch == pytest.approx(other.mean_batch)
        assert one.service_s == pytest.approx(other.service_s)
        assert one.cpu_cores == pytest.approx(0.4)
        assert one.latency.total == pytest.approx(other.latency.total, rel=0.1)
        assert one.queue == other.queue
    assert peak_of({"a": often}, 200, 60) == pytest.approx(6)


def test_a_look_a_little_early_is_no_look_over_twice_the_time() -> None:
    pods = {"a": series(scrape(0, 0), scrape(0.5, 0), scrape(0.95, 45))}
    now = now_of(pods, 1, 0.5)
    assert now is not None
    assert now.arrivals_per_s == pytest.approx(100)
