import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.observe.exposition import Observed, Scrape, parse_exposition
from controller.observe.histogram import Histogram
from sair.annotations import MetricsEndpoint
from sair.errors import MetricError

HONEST = """\
# HELP sair_stage_queue_depth Waiting.
# TYPE sair_stage_queue_depth gauge
sair_stage_queue_depth 3
# TYPE sair_stage_arrivals_total counter
sair_stage_arrivals_total{route="a"} 100
sair_stage_arrivals_total{route="b"} 20
# TYPE sair_stage_latency_seconds histogram
sair_stage_latency_seconds_bucket{le="0.1"} 50
sair_stage_latency_seconds_bucket{le="1"} 90
sair_stage_latency_seconds_bucket{le="+Inf"} 100
sair_stage_latency_seconds_sum 30.5
sair_stage_latency_seconds_count 100
sair_stage_service_seconds_sum 12.5
sair_stage_service_seconds_count 100
process_cpu_seconds_total 7.25
"""


def read(text: str) -> Scrape:
    return parse_exposition(text, MetricsEndpoint(), 5.0)


def arrived(scrape: Scrape) -> float:
    return sum(scrape.arrivals.values())


def without(name: str, text: str = HONEST) -> str:
    return "\n".join(line for line in text.splitlines() if name not in line) + "\n"


def test_what_a_stage_exports_is_read_over_all_label_sets() -> None:
    assert read(HONEST) == Scrape(
        time_s=5.0,
        queue=3.0,
        arrivals={(("route", "a"),): 100.0, (("route", "b"),): 20.0},
        latency={(): Histogram((0.1, 1.0, math.inf), (50.0, 90.0, 100.0))},
        services={(): Observed(12.5, 100.0)},
        cpu_s={(): 7.25},
    )


def test_names_of_the_metrics_are_the_users() -> None:
    text = HONEST.replace("sair_stage_queue_depth", "backlog").replace("sair_stage_latency_seconds", "took")
    seen = parse_exposition(text, MetricsEndpoint(queue="backlog", latency="took"), 5.0)
    assert (seen.queue, seen.latency[()].total) == (3.0, 100.0)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "1e18", "-1", "-0.001"])
@pytest.mark.parametrize(
    "line",
    [
        "sair_stage_queue_depth 3",
        'sair_stage_arrivals_total{route="b"} 20',
        'sair_stage_latency_seconds_bucket{le="1"} 90',
        "sair_stage_service_seconds_sum 12.5",
        "process_cpu_seconds_total 7.25",
    ],
)
def test_a_number_that_cannot_be_true_refuses_the_scrape(line: str, value: str) -> None:
    with pytest.raises(MetricError, match=line.replace("{", " ").split(maxsplit=1)[0]):
        read(HONEST.replace(line, f"{line.rsplit(maxsplit=1)[0]} {value}"))


@pytest.mark.parametrize("name", ["sair_stage_queue_depth", "sair_stage_arrivals_total", "sair_stage_latency_seconds"])
def test_a_needed_metric_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(MetricError, match=name):
        read(without(name))


def test_a_metric_that_is_declared_but_has_no_samples_yet_counts_as_nothing_so_far() -> None:
    text = "\n".join(line for line in HONEST.splitlines() if line.startswith("# TYPE") or "queue" in line)
    seen = read(text)
    assert (seen.arrivals, seen.latency) == ({}, {})


def test_optional_metrics_may_be_missing() -> None:
    seen = read(without("service", without("process")))
    assert (seen.services, seen.cpu_s) == ({}, {})


@pytest.mark.parametrize(
    "broken",
    [
        HONEST.replace('le="+Inf"} 100', 'le="+Inf"} 80'),
        without('le="+Inf"'),
        HONEST.replace('le="1"', 'le="NaN"'),
        HONEST.replace('le="1"', 'le="one"'),
        HONEST.replace('{le="1"}', ""),
    ],
    ids=["not cumulative", "no +Inf", "NaN bound", "no number", "no bound"],
)
def test_buckets_that_are_no_histogram_refuse_the_scrape(broken: str) -> None:
    with pytest.raises(MetricError, match="sair_stage_latency_seconds_bucket"):
        read(broken)


def test_series_have_buckets_of_their_own() -> None:
    rows = (("a", "0.1", 4), ("a", "+Inf", 10), ("b", "0.2", 6), ("b", "+Inf", 10))
    series = [f'sair_stage_latency_seconds_bucket{{model="{m}",le="{le}"}} {count}' for m, le, count in rows]
    seen = read(without("sair_stage_latency_seconds_bucket") + "\n".join(series) + "\n")
    assert seen.latency == {
        (("model", "a"),): Histogram((0.1, math.inf), (4.0, 10.0)),
        (("model", "b"),): Histogram((0.2, math.inf), (6.0, 10.0)),
    }


@pytest.mark.parametrize(
    "torn", ['sair_stage_arrivals_total{route="a', "sair_stage_arrivals_total{route=}", "sair_stage_arrivals_total"]
)
def test_a_torn_line_of_interest_refuses_the_scrape(torn: str) -> None:
    with pytest.raises(MetricError):
        read(HONEST + torn)


def test_whatever_else_is_exported_costs_nothing_and_harms_nothing() -> None:
    other = "".join(f'go_gc_{n}{{x="{n}"}} {"nonsense " * (n % 3)}\n' for n in range(50_000))
    assert read(other + HONEST) == read(HONEST)


def test_a_stage_with_absurdly_many_series_is_refused_before_they_are_parsed() -> None:
    many = "".join(f'sair_stage_arrivals_total{{user="{n}"}} 1\n' for n in range(6000))
    with pytest.raises(MetricError, match="5000 samples"):
        read(HONEST + many)


@given(st.text(max_size=300), st.integers(0, len(HONEST)))
def test_whatever_a_pod_says_it_is_read_or_refused(noise: str, place: int) -> None:
    try:
        seen = read(HONEST[:place] + noise + HONEST[place:])
    except MetricError:
        return
    assert 0 <= arrived(seen) <= 1e18
    assert 0 <= seen.queue <= 1e18
    for each in seen.latency.values():
        assert list(each.counts) == sorted(each.counts)


def test_batch_sizes_are_read_where_they_are_exported() -> None:
    seen = read(HONEST + "sair_stage_batch_size_sum 400\nsair_stage_batch_size_count 100\n")
    assert seen.batches == {(): Observed(400.0, 100.0)}
    assert read(HONEST).batches == {}


def test_service_times_are_told_apart_by_batch_size_where_they_carry_that_label() -> None:
    seen = read(
        without("sair_stage_service_seconds")
        + """\
sair_stage_service_seconds_sum{batch="4",model="a"} 2
sair_stage_service_seconds_count{batch="4",model="a"} 10
sair_stage_service_seconds_sum{batch="4",model="b"} 4
sair_stage_service_seconds_count{batch="4",model="b"} 20
sair_stage_service_seconds_bucket{batch="1",le="0.1"} 3
sair_stage_service_seconds_bucket{batch="1",le="+Inf"} 5
sair_stage_service_seconds_sum{batch="1"} 0.5
sair_stage_service_seconds_count{batch="1"} 5
sair_stage_service_seconds_sum{model="c"} 7
sair_stage_service_seconds_count{model="c"} 70
"""
    )
    assert seen.services == {
        (("batch", "4"), ("model", "a")): Observed(2.0, 10.0),
        (("batch", "4"), ("model", "b")): Observed(4.0, 20.0),
        (("batch", "1"),): Observed(0.5, 5.0, Histogram((0.1, math.inf), (3.0, 5.0))),
        (("model", "c"),): Observed(7.0, 70.0),
    }


@pytest.mark.parametrize("size", ["0", "-1", "1.5", "", "many", "10001", "9" * 50, "٣"])
def test_a_batch_size_that_cannot_be_is_named(size: str) -> None:
    with pytest.raises(MetricError, match=r"sair_stage_service_seconds\{batch\}.*a whole number from 1 to 10000"):
        read(HONEST + f'sair_stage_service_seconds_sum{{batch="{size}"}} 1\n')


@pytest.mark.parametrize(
    "line",
    [
        'sair_stage_arrivals_total{route="c d",} 5',
        'sair_stage_arrivals_total{route="\\"quoted\\" \\\\ \\n"} 5',
        'sair_stage_arrivals_total{route="}"} 5 1700000000000',
        "sair_stage_arrivals_total\t5 \r",
        'sair_stage_arrivals_total{ route = "x" } 5',
        "sair_stage_arrivals_total 5e0",
        "sair_stage_arrivals_total +5",
        "sair_stage_arrivals_total 5 1700000000.123",
        'sair_stage_arrivals_total{route="c"} 5 # {trace_id="a b"} 0.5',
        'sair_stage_arrivals_total{route="c"} 5 1.5 # {trace_id="}",x="\\"} 9"} 0.5 1.25',
        'sair_stage_arrivals_total{route="größe/日本"} 5',
        'sair_stage_arrivals_total{"http.route"="/x"} 5',
    ],
)
def test_samples_are_read_however_the_format_lets_them_be_written(line: str) -> None:
    assert arrived(read(HONEST + line + "\n")) == 125.0


def test_openmetrics_is_read_as_well_with_exemplars_times_and_when_each_counter_began() -> None:
    text = """\
# TYPE sair_stage_queue_depth gauge
# UNIT sair_stage_queue_depth requests
sair_stage_queue_depth 3 1700000000.5
# TYPE sair_stage_arrivals counter
sair_stage_arrivals_total{route="a"} 100 1700000000.5 # {trace_id="4bf92f"} 1 1700000000.1
sair_stage_arrivals_created{route="a"} 1700000000.0
# TYPE sair_stage_latency_seconds histogram
sair_stage_latency_seconds_bucket{le="0.1"} 50 # {trace_id="4bf92f"} 0.07
sair_stage_latency_seconds_bucket{le="+Inf"} 100 # {trace_id="4bf930"} 3.0 1700000000.1
sair_stage_latency_seconds_sum 30.5
sair_stage_latency_seconds_count 100
sair_stage_latency_seconds_created 1700000000.0
# EOF
"""
    seen = read(text)
    assert (seen.queue, arrived(seen)) == (3.0, 100.0)
    assert seen.latency == {(): Histogram((0.1, math.inf), (50.0, 100.0))}
    # Before its first request: OpenMetrics declares a counter without the suffix of its samples.
    assert read("\n".join(line for line in text.splitlines() if "arrivals_" not in line)).arrivals == {}
    with pytest.raises(MetricError, match="sair_stage_arrivals_total"):
        read("\n".join(line for line in text.splitlines() if "arrivals" not in line))


def test_of_a_series_that_is_there_twice_the_first_sample_counts() -> None:
    assert arrived(read(HONEST + 'sair_stage_arrivals_total{route="a"} 1000000\n')) == 120.0
    assert read(HONEST + "sair_stage_queue_depth 1000\n").queue == 3.0
    again = 'sair_stage_latency_seconds_bucket{le="1"} 95\nsair_stage_latency_seconds_bucket{le="+Inf"} 1000\n'
    assert read(HONEST + again) == read(HONEST)
    order = 'sair_stage_arrivals_total{a="1",b="2"} 5\nsair_stage_arrivals_total{b="2",a="1"} 7\n'
    assert arrived(read(HONEST + order)) == 125.0, "labels in another order are the same series"


@pytest.mark.parametrize(
    "line",
    [
        "sair_stage_arrivals_total" + "{" * 200_000,
        "sair_stage_arrivals_total{" + 'a="b",' * 100_000,
        "sair_stage_arrivals_total{" + 'a="' * 100_000,
        "sair_stage_arrivals_total " + "1" * 200_000,
        "sair_stage_arrivals_total " + " " * 200_000 + "x",
        'sair_stage_arrivals_total{a="' + "\\\\" * 2_000_000 + '"} 1',
        "sair_stage_arrivals_total{" + 'a="b",' * 600_000 + "} 1",
        "".join(f'sair_stage_arrivals_total{{a="{n}",b="{"x" * 500}"}} 1\n' for n in range(4_000)),
        "sair_stage_arrivals_total 1" + "_0" * 10,
        "sair_stage_arrivals_total 1e999",
        "sair_stage_arrivals_total --1",
    ],
    ids=[
        "braces",
        "labels",
        "quotes",
        "digits",
        "blanks",
        "escapes",
        "valid labels",
        "long values",
        "underscores",
        "beyond all numbers",
        "signs",
    ],
)
def test_a_line_made_to_be_hard_to_read_refuses_the_scrape(line: str) -> None:
    with pytest.raises(MetricError):
        read(HONEST + line + "\n")


def test_bytes_that_are_no_text_elsewhere_in_the_answer_harm_nothing() -> None:
    body = b'other_metric{x="\xff\xfe\x00"} 1\n' + HONEST.encode() + b"\x00\x01\n"
    assert read(body.decode("utf-8", errors="replace")) == read(HONEST)


def test_a_name_that_merely_begins_alike_is_another_metric() -> None:
    assert read(HONEST + "sair_stage_arrivals_total_created 5\nsair_stage_arrivals_total:sum 5\n") == read(HONEST)
