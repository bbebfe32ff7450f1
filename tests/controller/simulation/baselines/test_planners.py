"""What sizes ahead: static in hindsight, model-predictive control, the oracle, tuning."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from controller.simulation.baselines.mpc import ModelPredictive, plan
from controller.simulation.baselines.queueing import settled_batch, stage_latency
from controller.simulation.baselines.runner import run_policy
from controller.simulation.baselines.static import right_size
from controller.simulation.baselines.tuning import (
    TUNED,
    HpaSetting,
    RateTargetSetting,
    hpa_grid,
    mpc_grid,
    rate_target_grid,
    tune,
)
from controller.simulation.oracle import Clairvoyant, best_clairvoyant
from controller.simulation.pipelines import GRAPHS, PIPELINES, pipeline_named
from controller.simulation.service import ServiceLaw
from controller.simulation.sizing import cheapest, sizes_of
from controller.simulation.workloads import constant, draw_arrivals, step
from controller.state import Allocation
from sair.errors import InvalidInput
from tests.controller.simulation.builders import gpu, two_stages

LAW = ServiceLaw(batch_s=0.01, item_s=0.01, max_batch=4, scv=1.0)


def test_sizes_get_dearer_and_larger() -> None:
    setup = two_stages()
    sizes = sizes_of(setup.stages[1], setup.slo_s, setup.prices)
    assert all(
        one.usd_per_hour < other.usd_per_hour and one.capacity_per_s < other.capacity_per_s
        for one, other in pairwise(sizes)
    )
    size = cheapest(sizes, 100)
    assert size.capacity_per_s >= 100
    assert all(one.usd_per_hour >= size.usd_per_hour for one in sizes if one.capacity_per_s >= 100)
    assert cheapest(sizes, 1e9) == sizes[-1]


def test_no_size_lets_one_service_take_the_whole_slo() -> None:
    setup = two_stages(second_law=ServiceLaw(item_s=0.09))
    assert all(
        size.allocation.gpu_rate is not None and 0.09 / size.allocation.gpu_rate.fraction <= 0.35 * setup.slo_s
        for size in sizes_of(setup.stages[1], setup.slo_s, setup.prices)
        if size.capacity_per_s > 0
    )


def test_a_right_sized_static_allocation_passes_and_is_much_cheaper_than_an_ample_one() -> None:
    setup, series = two_stages(), constant(40.0, 300)
    fitted = setup.starting_at(right_size(setup, series, 1))
    ample = setup.starting_at({"inf": gpu(2, 1000)})
    own, other = (run_policy(one, series, 1, None).summary for one in (fitted, ample))
    assert own.miss_ratio <= 0.001
    assert own.effective_usd_per_hour < 0.6 * other.effective_usd_per_hour


def test_a_load_the_cluster_cannot_serve_is_said_so() -> None:
    with pytest.raises(InvalidInput, match="can serve"):
        right_size(two_stages(), constant(2000.0, 20), 1)


def test_batches_settle_where_the_stage_keeps_up() -> None:
    assert settled_batch(LAW, 10.0, 1, 1.0, 1.0) == 1
    assert settled_batch(LAW, 50.0, 1, 1.0, 1.0) == 2
    assert settled_batch(LAW, 500.0, 1, 1.0, 1.0) == 4
    quiet, busy = (stage_latency(LAW, rate, 1, 1.0, 1.0) for rate in (10.0, 55.0))
    assert quiet.mean_s == pytest.approx(0.02 + 0.2 / 0.8 * 0.02)  # M/M/1 at u = 0.2
    assert busy.utilisation > quiet.utilisation
    assert busy.mean_s > quiet.mean_s


def test_a_plan_meets_its_limit_for_less_than_a_stricter_one() -> None:
    setup = pipeline_named("image-classification")
    rates = {stage.plan.name: 60.0 for stage in setup.stages}
    nothing = dict.fromkeys(rates, 0.0)
    loose, strict = (plan(setup, rates, nothing, dict.fromkeys(rates, 1), limit) for limit in (0.2, 0.1))

    def price(planned: dict[str, Allocation]) -> float:
        shares = (one.replicas * (one.gpu_rate.fraction if one.gpu_rate else 0) for one in planned.values())
        return sum(shares) * setup.prices.gpu + sum(one.replicas * one.cpu / 1000 * 0.0316 for one in planned.values())

    assert price(loose) < price(strict)
    reserved = plan(setup, rates, dict.fromkeys(rates, 400.0), dict.fromkeys(rates, 1), 0.2)
    assert reserved["inference"].replicas >= 3


def test_mpc_holds_a_steady_load_within_the_slo_for_less_than_it_began_with() -> None:
    setup = pipeline_named("image-classification")
    series = constant(40.0, 420)
    mpc, static = (run_policy(setup, series, 1, policy).summary for policy in (ModelPredictive(setup), None))
    assert mpc.miss_ratio < 0.005
    assert mpc.effective_usd_per_hour < static.effective_usd_per_hour


def test_the_oracle_is_ready_before_the_step_comes() -> None:
    setup = two_stages()
    series = step(30.0, 300)
    arrivals = draw_arrivals(series, 1)
    policy = Clairvoyant(setup, arrivals, 1.5)
    run = run_policy(setup.starting_at(policy.first()), series, 1, policy)
    pre = run.recording.stages[0]
    before, during = 98 // 5, 150 // 5
    assert pre.ready[before] * pre.cores[before] >= 0.8 * pre.ready[during] * pre.cores[during]
    assert run.summary.miss_ratio < 0.01


def test_the_best_oracle_passes_and_costs_no_more_than_static_in_hindsight() -> None:
    setup, series = two_stages(), step(40.0, 300)
    oracle = best_clairvoyant(setup, series, 1, misses_allowed=0.005, bisections=4)
    static = run_policy(setup.starting_at(right_size(setup, series, 1, misses_allowed=0.005)), series, 1, None)
    assert oracle.summary.miss_ratio <= 0.005
    assert oracle.summary.effective_usd_per_hour <= static.summary.effective_usd_per_hour


def test_every_baseline_has_the_same_tuning_budget_and_every_pipeline_its_settings() -> None:
    assert len(hpa_grid()) == len(rate_target_grid()) == len(mpc_grid()) == 24
    assert set(TUNED) == {*PIPELINES, *GRAPHS}
    for settings in TUNED.values():
        assert settings.hpa in hpa_grid()
        assert settings.rate_target in rate_target_grid()
        assert settings.mpc in mpc_grid()


def test_tuning_takes_the_cheapest_setting_that_misses_little() -> None:
    tried: list[tuple[HpaSetting, float, float]] = []
    grid = [HpaSetting(target, 0.5, 60.0) for target in (0.2, 0.25, 0.9)]
    best = tune(two_stages(first_law=ServiceLaw(cpu_s=0.06)), grid, lambda *run: tried.append(run))
    assert [setting for setting, _, _ in tried] == grid
    passing = {setting: usd for setting, misses, usd in tried if misses <= 0.01}
    assert 1 <= len(passing) < 3
    assert best == min(passing, key=lambda setting: passing[setting])


def test_settings_size_the_pipeline_they_are_for() -> None:
    setup = pipeline_named("image-classification")
    fitted = HpaSetting(0.5, 0.3, 60.0).setup(setup)
    rates = {stage.plan.name: stage.initial.gpu_rate for stage in fitted.stages}
    assert rates["inference"] is not None
    assert rates["inference"].fraction == 0.3
    few, many = (RateTargetSetting(0.5, factor, 60.0).setup(setup) for factor in (1.0, 4.0))
    assert sum(stage.initial.replicas for stage in few.stages) < sum(stage.initial.replicas for stage in many.stages)
    assert np.all([stage.initial.replicas >= 1 for stage in few.stages])
