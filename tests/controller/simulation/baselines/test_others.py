"""KEDA, Knative, Ray Serve, thresholds and the ρ-target law, each against a trace worked by hand."""

from __future__ import annotations

import pytest

from controller.simulation.baselines.hpa import Behaviour
from controller.simulation.baselines.keda import Fallback, Keda, Trigger
from controller.simulation.baselines.knative import Knative, KpaState, kpa_desired
from controller.simulation.baselines.ray_serve import Delays, RayServe, ServeState, serve_desired
from controller.simulation.baselines.rho_target import RateTarget
from controller.simulation.baselines.threshold import Threshold, Thresholds, step_of
from controller.state import Limits, PipelineView, StageView
from sair.quantities import GpuRate
from tests.controller.simulation.builders import cpu, gpu, seen, stage_seen

VIEW = PipelineView("simulated/test", (StageView("a", (), False, Limits(replicas_max=50)),), 0.3)
GPU_VIEW = PipelineView("simulated/test", (StageView("a", (), True),), 0.3)


def test_keda_takes_the_larger_demand_of_its_triggers() -> None:
    keda = Keda(VIEW, {"a": Trigger(arrivals_per_s=10, queue=5)})
    assert keda.decide(seen(stage_seen(allocation=cpu(2), arrivals_per_s=35)), 0.0) == {"a": cpu(4)}
    assert keda.decide(seen(stage_seen(allocation=cpu(2), arrivals_per_s=5, queue_depth=26)), 15.0) == {"a": cpu(6)}


def test_keda_goes_idle_five_minutes_after_the_last_activity() -> None:
    keda = Keda(VIEW, {"a": Trigger(10, 5)}, behaviour=Behaviour(down_stabilisation_s=3600))
    keda.decide(seen(stage_seen(allocation=cpu(4), arrivals_per_s=35)), 0.0)
    assert not keda.decide(seen(stage_seen(allocation=cpu(4))), 300.0)
    assert keda.decide(seen(stage_seen(allocation=cpu(4))), 301.0) == {"a": cpu(1)}


@pytest.mark.parametrize(
    ("fallback", "replicas"),
    [
        (Fallback(6), 6),
        (Fallback(6, behaviour="currentReplicas"), 4),
        (Fallback(6, behaviour="currentReplicasIfHigher"), 6),
        (Fallback(2, behaviour="currentReplicasIfHigher"), 4),
        (None, 4),
    ],
)
def test_keda_falls_back_after_three_failures(fallback: Fallback | None, replicas: int) -> None:
    keda = Keda(VIEW, {"a": Trigger(10, 5)}, fallback=fallback)
    stale = seen(stage_seen(allocation=cpu(4), arrivals_per_s=500), age_s=120.0)
    assert not keda.decide(stale, 0.0)
    assert not keda.decide(stale, 15.0)
    wanted = keda.decide(stale, 30.0) or {"a": cpu(4)}
    assert wanted == {"a": cpu(replicas)}


def kpa(concurrency: list[float], ready: int = 2, target: float = 7.0) -> list[int]:
    state = KpaState()
    return [kpa_desired(state, ready, value, target, 2.0 * step) for step, value in enumerate(concurrency)]


def test_knative_follows_the_stable_average() -> None:
    assert kpa([14.0] * 5) == [2] * 5
    assert kpa([21.0] * 3)[-1] == 3


def test_knative_panics_when_the_short_window_wants_twice_the_pods() -> None:
    calm = [14.0] * 30
    # Last three samples 14, 42, 42: mean 32.7 → 5 pods ≥ 2 · 2; the stable window alone would want ceil((28·14 + 2·42)/30/7) = 3.
    assert kpa([*calm, 42.0, 42.0])[-2:] == [4, 5]


def test_knative_never_shrinks_in_panic_and_leaves_it_a_minute_after_the_last_crossing() -> None:
    wanted = kpa([14.0] * 30 + [42.0] * 3 + [14.0] * 40)
    panic = wanted.index(6)
    assert wanted[panic : panic + 30] == [6] * 30
    assert wanted[-1] == 2


def test_knative_at_most_halves() -> None:
    assert kpa([0.0], ready=8) == [4]


def test_knative_sets_a_stage_by_its_concurrency() -> None:
    knative = Knative(VIEW, {"a": 10.0})
    assert knative.decide(seen(stage_seen(allocation=cpu(2)), ongoing={"a": 21}), 0.0) == {"a": cpu(3)}


def serve(ongoing: list[float], running: int = 2) -> list[int]:
    state = ServeState()
    return [
        serve_desired(state, running, running, value, target=2.0, delays=Delays(), now=float(second))
        for second, value in enumerate(ongoing)
    ]


def test_ray_serve_acts_after_half_a_minute_of_wanting_more() -> None:
    wanted = serve([12.0] * 40)
    assert wanted[:30] == [2] * 30
    assert wanted[30] == 6


def test_ray_serve_starts_counting_again_when_the_wish_is_interrupted() -> None:
    assert set(serve([4.0] * 30 + [12.0] * 5 + [0.0] * 12 + [12.0] * 20)) == {2}


def test_ray_serve_gives_up_replicas_after_ten_minutes() -> None:
    wanted = serve([0.0] * 602)
    assert wanted[:600] == [2] * 600
    assert wanted[600] == 1


def test_ray_serve_counts_on_what_is_ongoing() -> None:
    policy = RayServe(VIEW, delays=Delays(0.0, 600.0))
    assert policy.decide(seen(stage_seen(allocation=cpu(2)), ongoing={"a": 9}), 1.0) == {"a": cpu(5)}


@pytest.mark.parametrize(
    ("utilisation", "queue", "step"), [(0.81, 0, 1), (0.8, 0, 0), (0.3, 0, 0), (0.29, 0, -1), (0.1, 21, 1)]
)
def test_threshold_steps(utilisation: float, queue: float, step: int) -> None:
    assert step_of(Thresholds(), utilisation, queue, 2) == step


def test_threshold_rests_for_a_minute_after_a_step() -> None:
    policy = Threshold(VIEW)
    hot = seen(stage_seen(allocation=cpu(2), cpu_utilisation=0.9))
    assert [bool(policy.decide(hot, now)) for now in (0.0, 15.0, 59.0, 60.0)] == [True, False, False, True]


def rates(law: RateTarget, used: list[float], start: int = 400) -> list[int]:
    milli, taken = start, []
    for step, demand in enumerate(used):
        utilisation = min(1.0, demand / milli)
        wanted = law.decide(seen(stage_seen(allocation=gpu(1, milli), gpu_utilisation=utilisation)), 100 + 5.0 * step)
        rate = wanted["a"].gpu_rate if wanted else None
        milli = rate.milli if rate else milli
        taken.append(milli)
    return taken


def test_the_share_goes_up_at_once_and_down_after_a_minute() -> None:
    law = RateTarget(GPU_VIEW, target=0.5)
    taken = rates(law, [200.0] * 2 + [300.0] * 2 + [100.0] * 14)
    assert taken[:4] == [400, 400, 600, 600]
    assert taken[4:15] == [600] * 11
    assert taken[15:] == [200] * 3


def test_a_saturated_stage_grows_by_one_over_the_target_per_step() -> None:
    assert rates(RateTarget(GPU_VIEW, target=0.5), [5000.0] * 4, start=100) == [200, 400, 800, 1000]


def test_a_cpu_stage_follows_in_cores() -> None:
    law = RateTarget(VIEW, target=0.5)
    assert law.decide(seen(stage_seen(cpu_utilisation=0.9)), 100.0) == {"a": cpu(1, 1800)}


def test_small_changes_are_left_alone() -> None:
    law = RateTarget(GPU_VIEW, target=0.5)
    assert not law.decide(seen(stage_seen(allocation=gpu(1, 400), gpu_utilisation=0.52)), 100.0)
    assert law.decide(seen(stage_seen(allocation=gpu(1, 400), gpu_utilisation=0.54)), 105.0) == {
        "a": gpu(1, GpuRate(432).milli)
    }
