"""The plant: capacity that takes its time, windows that show what happened, a bill that adds up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controller.simulation.cluster import NodePlan
from controller.simulation.plant import Plant
from controller.simulation.service import ServiceLaw
from controller.state import Allocation
from sair.errors import InvalidInput
from sair.quantities import GpuRate, Mebibytes, Millicores
from tests.controller.simulation.builders import cpu, gpu, two_stages

EVERY_100_MS = np.arange(0.05, 200, 0.1)


def plant(**changes: object) -> Plant:
    return Plant(two_stages(**changes), EVERY_100_MS, seed=1)  # type: ignore[arg-type]


def test_a_new_replica_starts_for_its_cold_start_and_then_serves() -> None:
    one = plant()
    one.advance(10)
    (outcome,) = one.apply({"inf": gpu(2)})
    assert (outcome.knob, outcome.wished, outcome.granted, outcome.reason) == ("replicas", 2, 2, "")
    assert one.replicas("inf") == (1, 1)
    one.advance(29.9)
    assert one.replicas("inf") == (1, 1)
    one.advance(30)
    assert one.replicas("inf") == (2, 0)


def test_a_share_takes_effect_after_a_tenth_of_a_second() -> None:
    one = plant(second=gpu(1, 250))
    one.advance(10)
    before = one.observe(5).stage("inf")
    one.apply({"inf": gpu(1, 1000)})
    one.advance(20)
    after = one.observe(5).stage("inf")
    assert before is not None
    assert after is not None
    assert before.service_s == pytest.approx(0.02 / 0.25)
    assert after.service_s == pytest.approx(0.02)
    assert (after.granted, before.granted) == (GpuRate(1000), GpuRate(250))


def test_a_window_shows_rates_utilisation_and_latency() -> None:
    one = plant()
    one.advance(60)
    seen = one.observe(20)
    pre, inf = seen.stages
    assert seen.window_s == 20
    assert seen.arrivals_per_s == pytest.approx(10)
    assert seen.arrivals_peak_per_s == pytest.approx(10, abs=0.21)
    assert seen.arrivals_slope == pytest.approx(0, abs=0.05)
    assert pre.cpu_utilisation == pytest.approx(10 * 0.02)
    assert (pre.gpu_utilisation, pre.granted) == (0, None)
    assert inf.gpu_utilisation == pytest.approx(10 * 0.02 / 0.5)
    assert inf.departures_per_s == pytest.approx(10)
    assert inf.service_scv == pytest.approx(0, abs=1e-9)
    assert pre.p99_s == pytest.approx(0.02)
    assert seen.p50_s == pytest.approx(0.06)
    assert seen.p99_s == pytest.approx(0.06)
    assert (seen.completed, seen.missed) == (200, 0)
    assert seen.goodput_per_s == pytest.approx(10)


def test_nothing_finished_means_no_percentile() -> None:
    one = Plant(two_stages(), np.array([50.0]), seed=1)
    one.advance(20)
    seen = one.observe(15)
    assert (seen.p50_s, seen.p99_s, seen.completed, seen.arrivals_per_s) == (None, None, 0, 0)
    assert seen.stages[0].service_s is None
    assert seen.stages[0].p99_s is None


def test_requests_that_have_waited_longer_than_the_slo_count_as_missed() -> None:
    one = plant(first_law=ServiceLaw(cpu_s=0.2))
    one.advance(3)
    seen = one.observe(3)
    assert seen.completed == pytest.approx(3 * 5, abs=2)
    assert seen.missed == 27 - 1  # all that are older than the SLO but the first, which needed 0.24 s
    assert seen.stages[0].queue_slope == pytest.approx(5, abs=0.5)
    assert one.gauges(2.0)[0].queue_depth == pytest.approx(15, abs=2)
    assert one.gauges(2.0)[0].arrivals_per_s == pytest.approx(10)


def test_what_does_not_fit_is_said_and_granted_later() -> None:
    one = plant(second=gpu(2, 800))
    (outcome,) = one.apply({"inf": gpu(3, 800)})
    assert (outcome.wished, outcome.granted) == (3, 2)
    assert "no node has room" in outcome.reason
    one.advance(30)
    assert one.replicas("inf") == (2, 0)
    one.apply({"inf": gpu(3, 400)})
    one.advance(32)
    assert one.replicas("inf") == (2, 1)
    one.advance(60)
    assert one.replicas("inf") == (3, 0)


def test_a_raise_on_a_full_card_is_reserved() -> None:
    setup = two_stages(nodes=(NodePlan("n", Millicores(8000), Mebibytes(32_768), cards=1),), second=gpu(2, 500))
    one = Plant(setup, EVERY_100_MS, seed=1)
    (outcome,) = one.apply({"inf": gpu(2, 700)})
    assert (outcome.knob, outcome.wished, outcome.granted) == ("gpu_rate", 700, 500)
    assert outcome.reason == "the replica's card is full: reserved"
    one.apply({"inf": gpu(1, 700)})
    one.advance(5)
    stage = one.observe(2).stage("inf")
    assert stage is not None
    assert stage.granted == GpuRate(700)


def test_cpu_that_the_node_has_not_is_refused_until_it_has() -> None:
    setup = two_stages(nodes=(NodePlan("n", Millicores(4000), Mebibytes(32_768), cards=1),))
    one = Plant(setup, EVERY_100_MS, seed=1)
    (outcome,) = one.apply({"pre": cpu(1, 3500)})
    assert (outcome.knob, outcome.wished, outcome.granted) == ("cpu", 3500, 1000)
    assert outcome.reason == "n has not 2500m CPU left"
    one.advance(10)
    before = one.observe(5).stages[0].service_s
    one.apply({"inf": gpu(1, 500, 500)})
    one.advance(20)
    after = one.observe(5).stages[0].service_s
    assert before == pytest.approx(0.02)
    assert after == pytest.approx(0.02 * (0.2 + 0.8 / 3.5))


def test_scaling_down_takes_what_is_starting_first_and_loses_no_request() -> None:
    one = plant(second=gpu(2, 400))
    one.advance(20.02)
    one.apply({"inf": gpu(3, 200)})
    one.apply({"inf": gpu(1, 200)})
    assert one.replicas("inf") == (1, 0)
    one.advance(220)
    assert len(one.engine.done_id) == len(EVERY_100_MS)


def test_the_bill_is_the_sum_over_time_of_what_is_held() -> None:
    setup = two_stages()
    one = Plant(setup, np.array([]), seed=1)
    one.advance(100)
    one.apply({"inf": gpu(2)})
    one.advance(150)
    one.apply({"inf": gpu(1, 1000)})
    one.advance(200)
    prices = setup.prices

    def hourly(*held: Allocation) -> float:
        return sum(
            (one.gpu_rate.fraction if one.gpu_rate else 0) * prices.gpu
            + one.cpu / 1000 * prices.vcpu
            + one.memory / 1024 * prices.gibibyte
            for one in held
        )

    expected = 100 * hourly(cpu(), gpu()) + 50 * hourly(cpu(), gpu(), gpu()) + 50 * hourly(cpu(), gpu(1, 1000))
    assert one.spent.effective_usd == pytest.approx(expected / 3600)
    whole = (
        200 * prices.gpu
        + 200 * hourly(cpu(), replace(cpu(), memory=Mebibytes(1024)))
        + 50 * hourly(replace(cpu(), memory=Mebibytes(1024)))
    )
    assert one.spent.whole_card_usd == pytest.approx(whole / 3600)
    assert one.observe(50).cost_per_hour == pytest.approx(hourly(cpu(), gpu(1, 1000)))


@pytest.mark.parametrize(
    ("wanted", "field"),
    [({"nobody": cpu()}, "stage"), ({"pre": gpu()}, "pre gpu rate"), ({"inf": cpu()}, "inf gpu rate")],
)
def test_a_stage_or_knob_that_does_not_exist_is_refused(wanted: dict[str, Allocation], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        plant().apply(wanted)
    assert caught.value.field == field


def test_initial_allocations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidInput, match="initial allocation of inf"):
        plant(second=gpu(3, 900))


def test_a_copy_goes_on_as_its_original_and_leaves_it_alone() -> None:
    rng = np.random.default_rng(1)
    original = Plant(two_stages(first_law=ServiceLaw(cpu_s=0.05, scv=1.0)), np.sort(rng.uniform(0, 300, 4000)), 1)
    original.advance(100)
    original.apply({"inf": gpu(2, 300), "pre": cpu(2)})
    original.advance(105.5)
    copy, other = original.copy(), original.copy()
    other.apply({"pre": cpu(1, 500)})
    for one in (original, copy, other):
        one.advance(200)
        one.apply({"inf": gpu(1, 900)})
        one.advance(300)
    assert copy.observe(60) == original.observe(60)
    assert copy.spent == original.spent
    assert other.observe(60) != original.observe(60)


def test_where_a_run_is_stopped_on_the_way_makes_no_difference() -> None:
    def run(stops: list[float]) -> Plant:
        rng = np.random.default_rng(2)
        one = Plant(two_stages(second=gpu(2, 900)), np.sort(rng.uniform(0, 200, 2500)), 2)
        for moment in sorted([*stops, 50.0, 90.25]):
            one.advance(moment)
            if moment == 50.0:
                one.apply({"inf": gpu(3, 900)})
            elif moment == 90.25:
                one.apply({"inf": gpu(3, 600)})
        one.advance(200)
        return one

    smooth, stopped = run([]), run(np.arange(0.3, 199, 0.7).tolist())
    assert stopped.observe(100) == smooth.observe(100)
    assert stopped.spent.effective_usd == pytest.approx(smooth.spent.effective_usd)


def test_arrivals_do_not_depend_on_who_scales() -> None:
    rng = np.random.default_rng(3)
    arrivals = np.sort(rng.uniform(0, 100, 1000))
    one, other = Plant(two_stages(), arrivals, 1), Plant(two_stages(), arrivals, 1)
    other.apply({"pre": cpu(3), "inf": gpu(2, 1000)})
    for each in (one, other):
        each.advance(100)
    assert one.engine.requests.demands == other.engine.requests.demands
    assert [sample.arrived for sample in one.engine.samples[0]] == [
        sample.arrived for sample in other.engine.samples[0]
    ]
