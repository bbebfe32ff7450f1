"""What Prometheus answers is untrusted: labels, values and times may be anything."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from controller.observe.answer import Series, by_pod, missing_of, parse_declared, parse_matrix, scrapes_of
from controller.observe.histogram import Histogram
from controller.observe.series import PodSeries
from sair.annotations import MetricsEndpoint
from sair.errors import MetricsUnavailable, WireError

ENDPOINT = MetricsEndpoint()
QUEUE, ARRIVALS, LATENCY = ENDPOINT.queue, ENDPOINT.arrivals, f"{ENDPOINT.latency}_bucket"


def series(name: str, *values: tuple[float, str], **labels: str) -> Series:
    return Series(
        {"__name__": name, "namespace": "ns", "pod": "p", "job": "pods", "instance": "i:1", **labels}, list(values)
    )


def honest(time_s: float = 10.0, arrived: str = "100") -> list[Series]:
    return [
        series(QUEUE, (time_s, "3")),
        series(ARRIVALS, (time_s, arrived), route="a"),
        series(LATENCY, (time_s, "90"), le="0.1"),
        series(LATENCY, (time_s, "100"), le="+Inf"),
    ]


def read(found: list[Series], *, declared: tuple[str, ...] = (), after_s: float = -math.inf) -> Any:
    return scrapes_of(found, ENDPOINT, declared, after_s)


def test_what_a_pod_said_at_one_moment_is_put_together_again() -> None:
    (scrape,) = read(honest()).scrapes
    assert (scrape.time_s, scrape.queue, sum(scrape.arrivals.values())) == (10.0, 3.0, 100.0)
    assert list(scrape.latency.values()) == [Histogram((0.1, math.inf), (90.0, 100.0))]


def test_only_what_is_new_is_given_oldest_first() -> None:
    both = [Series(each.metric, [*each.values, (20.0, each.values[0][1])]) for each in honest()]
    assert [scrape.time_s for scrape in read(both).scrapes] == [10.0, 20.0]
    assert [scrape.time_s for scrape in read(both, after_s=10.0).scrapes] == [20.0]


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "1e18", "-3", "", "x", "0x10"])
def test_a_value_that_cannot_be_leaves_that_moment_out_and_is_said(value: str) -> None:
    answer = read([*honest(), *honest(20.0, value)])
    assert [scrape.time_s for scrape in answer.scrapes] == [10.0]
    assert ARRIVALS in answer.problem


def test_a_histogram_without_infinity_or_that_falls_is_none() -> None:
    rest = honest()[:2]
    assert "+Inf" in read([*rest, series(LATENCY, (10.0, "5"), le="0.1")]).problem
    falling = [series(LATENCY, (10.0, "5"), le="0.1"), series(LATENCY, (10.0, "4"), le="+Inf")]
    assert "cumulative" in read([*rest, *falling]).problem
    assert "le" in read([*rest, series(LATENCY, (10.0, "5"), le="much")]).problem


def test_what_was_never_said_is_named_unless_it_is_known_to_be_declared() -> None:
    rest = [each for each in honest() if each.metric["__name__"] != ARRIVALS]
    assert missing_of(rest, ENDPOINT) == [ARRIVALS]
    assert ARRIVALS in read(rest).problem
    (scrape,) = read(rest, declared=(ARRIVALS,)).scrapes
    assert scrape.arrivals == {}


def test_of_several_that_export_the_same_the_one_scraped_last_counts_alone() -> None:
    older = [Series({**each.metric, "instance": "i:2"}, [(9.0, each.values[0][1])]) for each in honest()]
    sidecar = series("process_cpu_seconds_total", (11.0, "5"), instance="i:3")
    (scrape,) = read([*older, sidecar, *honest()]).scrapes
    assert (scrape.time_s, list(scrape.arrivals.values()), scrape.cpu_s) == (10.0, [100.0], {})


def test_where_now_one_job_counts_and_now_another_each_has_its_own_counters() -> None:
    other = [Series({**each.metric, "instance": "i:2"}, [(12.0, each.values[0][1])]) for each in honest(arrived="7")]
    pod = PodSeries()
    for found in (honest(10.0), other, honest(14.0, "103")):
        (scrape,) = read(found).scrapes
        pod.append(scrape)
    assert [each.arrivals for each in pod.between(0.0, 20.0)] == [0.0, 0.0, 3.0]


def test_nothing_at_all_says_what_to_look_at() -> None:
    assert "does it scrape the pod" in read([]).problem
    assert "does it scrape the pod" in read([Series({"__name__": QUEUE}, [])]).problem


def test_too_many_samples_at_one_moment_are_refused() -> None:
    many = [series(ARRIVALS, (10.0, "1"), route=str(number)) for number in range(5_001)]
    assert "at most 5000" in read([*honest(), *many]).problem


def test_series_are_sorted_by_pod_and_those_of_nobody_left_out() -> None:
    other = Series({"__name__": QUEUE, "namespace": "ns", "pod": "q"}, [(1.0, "1")])
    nobody = [Series({"__name__": QUEUE, "pod": "p"}, [(1.0, "1")]), Series({}, [])]
    found = by_pod([*honest(), other, *nobody], "namespace", "pod")
    assert {place: len(each) for place, each in found.items()} == {("ns", "p"): 4, ("ns", "q"): 1}


def test_a_matrix_is_read_and_native_histograms_are_left_aside() -> None:
    result = [{"metric": {"a": "b"}, "values": [[1.5, "2"]]}, {"metric": {}, "histograms": [[1.0, {"count": "1"}]]}]
    body = json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}, "warnings": ["w"]})
    assert parse_matrix(body.encode()) == [Series({"a": "b"}, [(1.5, "2")]), Series({}, [])]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b'{"status": 1}',
        b'{"status": "success"}',
        b'{"status": "success", "data": {"resultType": "vector", "result": []}}',
        b'{"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {"a": 1}}]}}',
        b'{"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {}, "values": [[1]]}]}}',
        b'{"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {}, "values": [["1", 1]]}]}}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        parse_matrix(body)


def test_the_server_s_own_words_are_passed_on_and_cut_short() -> None:
    body = json.dumps({"status": "error", "errorType": "bad_data", "error": "no " * 1000}).encode()
    with pytest.raises(MetricsUnavailable, match="Prometheus: no no") as raised:
        parse_matrix(body)
    assert len(str(raised.value)) < 250


def test_a_metric_is_declared_if_there_is_anything_about_it() -> None:
    assert parse_declared(b'{"status": "success", "data": {"x": [{"type": "counter"}]}}')
    assert not parse_declared(b'{"status": "success", "data": {}}')
    with pytest.raises(WireError):
        parse_declared(b'{"status": "success", "data": []}')
