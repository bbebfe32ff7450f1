"""The simulated world behind the interface that the cluster has too."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from controller.simulation.workloads import RateSeries, constant
from controller.state import Allocation
from controller.worlds.base import World
from controller.worlds.simulated import Faults, SimulatedWorld, real_time_pace
from sair.errors import ApiUnavailable, MetricsUnavailable, NotFound
from tests.controller.simulation.builders import cpu, gpu, two_stages

KEY = "simulated/small"


def world(**options: object) -> SimulatedWorld:
    return SimulatedWorld.of(two_stages(), constant(10.0, 600), 1, **options)  # type: ignore[arg-type]


async def test_it_is_a_world() -> None:
    one: World = world()
    view = await one.view(KEY)
    assert view is not None
    assert await one.view("no/such") is None
    assert (view.key, [stage.name for stage in view.stages]) == (KEY, ["pre", "inf"])
    assert view.stages[1].uses_gpu
    assert (await one.room(KEY)).nodes[0].gpus[0].held == {"inf": 1}


async def test_sleeping_makes_time_pass_and_nothing_else_does() -> None:
    one = world()
    assert one.clock.now() == 0
    await asyncio.sleep(0.01)
    assert one.clock.now() == 0
    await one.clock.sleep(42.5)
    assert one.clock.now() == 42.5
    assert one.plants[KEY].now == 42.5


async def test_a_round_as_the_controller_runs_it() -> None:
    one = world()
    await one.clock.sleep(30)
    before = await one.observe(KEY, 15)
    outcomes = await one.apply(KEY, {"inf": gpu(2, 700)}, reason="test")
    assert [(outcome.knob, outcome.granted) for outcome in outcomes] == [("replicas", 2), ("gpu_rate", 700)]
    await one.clock.sleep(30)
    after = await one.observe(KEY, 15)
    assert before.allocations["inf"] == gpu()
    assert after.allocations == {"pre": cpu(), "inf": gpu(2, 700)}
    assert after.cost_per_hour > before.cost_per_hour
    assert before.arrivals_per_s == pytest.approx(10, rel=0.5)
    assert before.age_s == 0
    assert [gauge.name for gauge in await one.gauges(KEY, 2.0)] == ["pre", "inf"]


async def test_what_enters_is_counted_to_the_request() -> None:
    one = world()
    await one.clock.sleep(30)
    arrivals = one.plants[KEY].engine.requests.arrivals
    young = sum(29.4 < at <= 30.0 for at in arrivals)
    assert await one.entering(KEY, 0.6) == pytest.approx(young / 0.6)
    first, _ = await one.gauges(KEY, 0.6)
    assert first.arrivals_per_s == pytest.approx(young / 0.6)


async def test_sleepers_wake_in_the_order_of_their_times() -> None:
    one = world()
    woken: list[tuple[str, float]] = []

    async def every(name: str, period_s: float, count: int) -> None:
        for _ in range(count):
            await one.clock.sleep(period_s)
            woken.append((name, one.clock.now()))

    await asyncio.gather(every("reflex", 2.0, 5), every("round", 5.0, 2))
    assert woken == [
        ("reflex", 2),
        ("reflex", 4),
        ("round", 5),
        ("reflex", 6),
        ("reflex", 8),
        ("round", 10),
        ("reflex", 10),
    ]


async def test_time_waits_for_a_participant_that_is_busy_with_something_real() -> None:
    one = world()
    seen: list[float] = []

    async def asks_a_model() -> None:
        async with one.clock.participant():
            await one.clock.sleep(10)
            await asyncio.sleep(0.05)
            seen.append(one.clock.now())

    async def reflex() -> None:
        for _ in range(20):
            await one.clock.sleep(2)

    await asyncio.gather(asks_a_model(), reflex())
    assert seen == [10]
    assert one.clock.now() == 40


async def test_a_cancelled_sleeper_does_not_hold_time_up() -> None:
    one = world()
    sleeper = asyncio.create_task(one.clock.sleep(1000))
    await one.clock.sleep(1)
    sleeper.cancel()
    await one.clock.sleep(5)
    assert one.clock.now() == 6


async def test_closing_the_clock_wakes_whoever_sleeps() -> None:
    one = SimulatedWorld.of(two_stages(), constant(10.0, 600), 1, pace=real_time_pace(0.001))
    sleeper = asyncio.create_task(one.clock.sleep(1000))
    await asyncio.sleep(0.01)
    await one.clock.aclose()
    with pytest.raises(asyncio.CancelledError):
        await sleeper


async def test_a_pace_holds_time_back() -> None:
    one = world(pace=real_time_pace(200.0))
    began = time.monotonic()
    await one.clock.sleep(25)
    assert time.monotonic() - began >= 0.09


async def test_a_view_is_told_of_each_step() -> None:
    steps: list[float] = []
    one = world(on_advance=steps.append)
    await one.clock.sleep(12)
    assert steps == [5, 10, 12]


async def test_an_error_in_a_view_reaches_whoever_sleeps() -> None:
    def broken(_: float) -> None:
        raise RuntimeError("the view is broken")

    with pytest.raises(RuntimeError, match="the view is broken"):
        await world(on_advance=broken).clock.sleep(1)


async def test_faults_are_what_a_cluster_would_raise() -> None:
    one = world(faults=Faults(metrics_down=((10, 20),), metrics_stale=((30, 60),), api_down=((70, 80),)))
    await one.clock.sleep(10)
    with pytest.raises(MetricsUnavailable):
        await one.observe(KEY, 15)
    with pytest.raises(MetricsUnavailable):
        await one.gauges(KEY, 2.0)
    await one.clock.sleep(15)
    fresh = await one.observe(KEY, 15)
    await one.clock.sleep(30)
    stale = await one.observe(KEY, 15)
    assert (stale.time_s, stale.age_s) == (fresh.time_s, 30)
    await one.clock.sleep(16)
    for call in (one.view(KEY), one.room(KEY), one.apply(KEY, {"pre": cpu(2)}, reason="")):
        with pytest.raises(ApiUnavailable):
            await call
    assert (await one.observe(KEY, 15)).allocations["pre"] == cpu()


async def test_stale_metrics_before_anything_was_seen_are_no_metrics() -> None:
    one = world(faults=Faults(metrics_stale=((0, 60),)))
    await one.clock.sleep(10)
    with pytest.raises(MetricsUnavailable, match="nothing has been scraped yet"):
        await one.observe(KEY, 15)


async def test_an_unknown_pipeline_is_not_found() -> None:
    one = world()
    wanted: dict[str, Allocation] = {}
    for call in (
        one.observe("a/b", 15),
        one.gauges("a/b", 2.0),
        one.entering("a/b", 2.0),
        one.room("a/b"),
        one.apply("a/b", wanted, reason=""),
    ):
        with pytest.raises(NotFound, match="pipeline a/b does not exist"):
            await call


async def test_the_peak_of_arrivals_counts_since_the_round_before() -> None:
    rates = np.full(120, 5.0)
    rates[35:42] = 80.0
    one = SimulatedWorld.of(two_stages(), RateSeries("blip", rates), 1)
    await one.clock.sleep(30)
    first = await one.observe(KEY, 10)
    await one.clock.sleep(30)
    second = await one.observe(KEY, 10)
    again = await one.observe(KEY, 10)
    await one.clock.sleep(30)
    third = await one.observe(KEY, 10)
    assert first.arrivals_peak_per_s < 20
    assert second.arrivals_peak_per_s > 60
    assert again.arrivals_peak_per_s > 60
    assert second.arrivals_per_s < 20
    assert third.arrivals_peak_per_s < 20
