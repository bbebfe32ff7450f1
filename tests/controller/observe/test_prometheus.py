"""The metrics of the same pods, asked of themselves and read from a real Prometheus server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from controller.observe.fetching import Fetcher
from controller.observe.prometheus import PrometheusServer, PrometheusSource
from controller.observe.scraper import Scraper
from controller.observe.series import window_of
from controller.observe.source import Source, Target
from sair.annotations import MetricsEndpoint
from tests.controller.observe.servers import Exporting, Prometheus, exporting, prometheus_server
from tests.controlplane import give_up
from tests.e2e.cluster.errors import Unavailable

pytestmark = pytest.mark.blocking_allowed  # a server is started

TYPES = """\
# TYPE sair_stage_queue_depth gauge
# TYPE sair_stage_arrivals_total counter
# TYPE sair_stage_latency_seconds histogram
"""


def said(arrived: int, queue: str = "2", more: str = "", route: str = "a") -> str:
    """What a pod says that has had so many requests, nine tenths of them fast."""
    return (
        TYPES
        + f"""\
sair_stage_queue_depth {queue}
sair_stage_arrivals_total{{route="{route}"}} {arrived}
sair_stage_latency_seconds_bucket{{le="0.1"}} {arrived * 0.9}
sair_stage_latency_seconds_bucket{{le="1"}} {arrived}
sair_stage_latency_seconds_bucket{{le="+Inf"}} {arrived}
sair_stage_service_seconds_sum {arrived * 0.05}
sair_stage_service_seconds_count {arrived}
sair_stage_batch_size_sum {arrived}
sair_stage_batch_size_count {arrived / 4}
process_cpu_seconds_total {arrived * 0.04}
{more}"""
    )


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Prometheus]:
    try:
        async with prometheus_server(tmp_path) as running:
            yield running
    except Unavailable as reason:
        give_up(reason)


@pytest_asyncio.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


def target(namespace: str, pod: str, one: Exporting) -> Target:
    return Target(f"{namespace}/{pod}/uid", "127.0.0.1", MetricsEndpoint(port=one.port))


def source(session: aiohttp.ClientSession, server: Prometheus, refresh_s: float = 0.2) -> PrometheusSource:
    return PrometheusSource(session, PrometheusServer(server.url), time.time, refresh_s=refresh_s, unseen_s=0.2)


async def until(one: Source, targets: Sequence[Target], what: str) -> None:
    """Ask until every pod has answered, or has something that is wrong with it."""
    async with asyncio.timeout(30.0):
        while not all(each.key in getattr(one, what) for each in targets):
            await one.scrape(targets)
            await asyncio.sleep(0.1)


def totals(one: Source, target: Target) -> list[float]:
    """What arrived, was fast, was served and was spent in all, and the queue now: the server tells some of it before the rest."""
    growths = one.series[target.key].between(0.0, time.time())
    return [
        sum(growth.arrivals for growth in growths),
        sum(growth.latency.counts[0] for growth in growths if growth.latency.counts),
        sum(each.count for growth in growths for each in growth.services.values()),
        sum(growth.cpu_s or 0.0 for growth in growths),
        growths[-1].queue,
    ]


async def test_both_sources_leave_the_same_series_of_the_same_pods(
    server: Prometheus, session: aiohttp.ClientSession
) -> None:
    whole = 'sair_pipeline_latency_seconds_bucket{le="0.5"} 7\nsair_pipeline_latency_seconds_bucket{le="+Inf"} 9\n'
    says = {
        # Grows, is restarted, and grows again.
        "steady": [said(100), said(130, "0"), said(20), said(45)],
        # A second route appears; a value that cannot be stands for nothing.
        "odd": [
            said(10),
            said(20, more='sair_stage_arrivals_total{route="b"} 5\n'),
            said(30, "NaN"),
            said(40, "-1"),
            said(50, "1e18"),
            said(60, more=whole),
        ],
        # Nothing but declarations until the first request.
        "fresh": [TYPES + "sair_stage_queue_depth 0\n", said(3)],
    }
    async with exporting(says["steady"][0]) as a, exporting(says["odd"][0]) as b, exporting(says["fresh"][0]) as c:
        pods = {("team-a", "steady"): a, ("team-a", "odd"): b, ("team-b", "fresh"): c}
        targets = [target(*name, pod) for name, pod in pods.items()]
        fetcher = Fetcher()
        asked, read = Scraper(fetcher, time.time), source(session, server)
        server.scrape(pods)
        await until(read, targets, "series")
        for step in range(6):
            for (_, name), pod in pods.items():
                pod.text = says[name][min(step, len(says[name]) - 1)]
            before = {name: pod.asked for name, pod in pods.items()}
            async with asyncio.timeout(20.0):
                # Asked by the server twice and by us once or more: whatever was under way at the change is over.
                while any(pod.asked < before[name] + 4 for name, pod in pods.items()):
                    await asyncio.gather(asked.scrape(targets), read.scrape(targets))
                    await asyncio.sleep(0.25)
        await asyncio.sleep(1.0)
        await read.scrape(targets)
        for one, (name, arrivals) in zip(
            targets, (("steady", 30 + 20 + 25), ("odd", 60 - 10), ("fresh", 0)), strict=True
        ):
            assert totals(asked, one) == pytest.approx(totals(read, one)), name
            assert totals(read, one)[0] == arrivals, name
        assert asked.problems.keys() == read.problems.keys() == set()
        await read.aclose()
        await fetcher.aclose()


async def test_a_value_that_cannot_be_is_a_problem_of_that_pod_alone(
    server: Prometheus, session: aiohttp.ClientSession
) -> None:
    async with exporting(said(5, "NaN")) as bad, exporting(said(5)) as good:
        pods = {("ns", "bad"): bad, ("ns", "good"): good}
        server.scrape(pods)
        read = source(session, server)
        targets = [target(*name, pod) for name, pod in pods.items()]
        async with asyncio.timeout(30.0):
            # Until the server has scraped the pod, that it has no samples of it is the problem.
            while "sair_stage_queue_depth: nan" not in read.problems.get("ns/bad/uid", ""):
                await read.scrape(targets)
                await asyncio.sleep(0.1)
        await until(read, targets[1:], "series")
        assert read.series.keys() == {"ns/good/uid"}
        bad.text = said(6)
        await until(read, targets[:1], "series")
        await read.aclose()


async def test_names_and_labels_are_literals_however_they_look(
    server: Prometheus, session: aiohttp.ClientSession
) -> None:
    hostile = ['a"} or vector(1) #', "b\\", "c.*", "d|e", "f\n", "ü{}[]()^$+?*", ".*", "c.x"]
    async with exporting(said(7, more='other{pod="x"} 1\n')) as pod, exporting(said(11, "3")) as other:
        pods = {("n", name): pod for name in hostile[:-1]} | {("n", "c.x"): other}
        server.scrape(pods)
        read = source(session, server)
        targets = [target("n", name, one) for (_, name), one in pods.items()]
        await until(read, targets, "series")
        for one in targets:
            last = read.series[one.key].last
            assert last is not None
            assert last.queue == (3 if one.pod[1] == "c.x" else 2), one.key
        assert read.problems == {}
        await read.aclose()


async def test_a_metric_that_nothing_declares_is_named_and_one_that_is_only_declared_counts_as_nothing(
    server: Prometheus, session: aiohttp.ClientSession
) -> None:
    async with exporting(TYPES + "sair_stage_queue_depth 1\n") as pod:
        server.scrape({("ns", "pod"): pod})
        good = target("ns", "pod", pod)
        misspelt = replace(good, key="ns/pod/other", endpoint=MetricsEndpoint(port=pod.port, arrivals="request_total"))
        read = source(session, server)
        await until(read, [good], "series")
        await until(read, [misspelt], "problems")
        assert "request_total" in read.problems[misspelt.key]
        last = read.series[good.key].last
        assert last is not None
        assert (last.arrivals, last.queue, last.latency.total) == (0.0, 1.0, 0.0)
        await read.aclose()


async def test_two_jobs_that_scrape_the_same_pod_do_not_count_twice(
    server: Prometheus, session: aiohttp.ClientSession
) -> None:
    async with (
        exporting(said(8)) as pod,
        exporting(said(8)) as again,
        exporting("process_cpu_seconds_total 5\n") as side,
    ):
        server.scrape({("ns", "pod"): pod, ("ns ", "pod"): again, ("ns  ", "pod"): side})
        # Three endpoints of one pod: that of the stage, one that exports the same, and a sidecar's.
        text = server._targets.read_text()
        server._targets.write_text(text.replace('"ns  "', '"ns"').replace('"ns "', '"ns"'))
        read = source(session, server)
        one = target("ns", "pod", pod)
        await until(read, [one], "series")
        await asyncio.sleep(1.2)
        await read.scrape([one])
        window = window_of({"a": read.series[one.key]}, time.time(), 30.0)
        assert window is not None
        assert window.arrivals_per_s == 0.0
        assert window.queue == 2.0
        await read.aclose()


async def test_a_server_that_is_gone_leaves_what_is_known_and_is_asked_again(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    try:
        async with prometheus_server(tmp_path) as server, exporting(said(8)) as pod:
            server.scrape({("ns", "pod"): pod})
            read = source(session, server)
            one = target("ns", "pod", pod)
            await until(read, [one], "series")
    except Unavailable as reason:
        give_up(reason)
    last = read.series[one.key].last
    await until(read, [one], "problems")
    assert read.series[one.key].last == last
    assert read.failures >= 1
    await read.aclose()


async def test_a_thousand_who_ask_at_once_are_answered_by_few_queries(
    server: Prometheus, session: aiohttp.ClientSession
) -> None:
    async with exporting(said(8)) as pod:
        pods = {("ns", f"pod-{number}"): pod for number in range(100)}
        server.scrape(pods)
        read = source(session, server, refresh_s=2.0)
        targets = [target(*name, one) for name, one in pods.items()]
        await until(read, targets, "series")
        await asyncio.sleep(2.0)
        before = read.queries
        await asyncio.gather(*(read.scrape([targets[number % 100]]) for number in range(1000)))
        assert read.queries - before <= 2
        await read.aclose()
