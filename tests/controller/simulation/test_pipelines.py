"""The pipelines, and the wrong prior."""

from __future__ import annotations

import pytest

from controller.simulation.baselines.runner import run_policy
from controller.simulation.pipelines import GRAPHS, PIPELINES, curve_of, pipeline_named, with_wrong_prior
from controller.simulation.service import ServiceLaw
from controller.simulation.workloads import constant
from sair.errors import InvalidInput
from sair.pipeline import topological_order


@pytest.mark.parametrize("name", [*PIPELINES, *GRAPHS])
def test_each_pipeline_starts_within_its_bounds_and_serves_half_its_base_rate(name: str) -> None:
    setup = pipeline_named(name)
    assert setup.name == name
    names = {stage.plan.name: stage.plan.after for stage in setup.stages}
    chain = all(after == tuple(names)[place - 1 : place] for place, after in enumerate(names.values()) if place)
    assert chain == (name in PIPELINES)
    assert topological_order(names) == tuple(names)
    for stage in setup.stages:
        limits, initial = stage.limits, stage.initial
        assert limits.replicas_min <= initial.replicas <= limits.replicas_max
        assert limits.cpu_min <= initial.cpu <= limits.cpu_max
        assert limits.memory_min <= initial.memory <= limits.memory_max
        assert stage.view.uses_gpu == (initial.gpu_rate is not None)
        assert stage.prior == stage.plan.law
        assert 0.10 <= stage.plan.law.serial_fraction <= 0.43
        if stage.view.uses_gpu:
            assert (stage.cold_start.shortest_s, stage.cold_start.longest_s) == (30, 440)
    summary = run_policy(setup, constant(setup.base_rate_per_s / 2, 300), 1, None).summary
    assert summary.miss_ratio < 0.01
    assert summary.effective_usd_per_hour < setup.budget_per_hour


def test_an_unknown_pipeline_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="expected one of image-classification, nlp"):
        pipeline_named("audio")


def test_the_models_curve_is_the_law_for_a_batch_of_one() -> None:
    for setup in (maker() for maker in (*PIPELINES.values(), *GRAPHS.values())):
        for stage in setup.stages:
            law, curve = stage.prior, setup.prior_curves[stage.plan.name]
            for cores, share in ((0.5, 0.2), (1.0, 1.0), (3.0, 0.7)):
                assert float(curve.service_s(cores, share)) == pytest.approx(law.time_s(1, cores, share))


def test_a_stiff_laws_curve_keeps_what_does_not_scale() -> None:
    law = ServiceLaw(cpu_s=0.01, item_s=0.1, scaling_fraction=0.45, reference_share=0.5)
    for share in (0.25, 0.5, 1.0):
        assert float(curve_of(law).service_s(2.0, share)) == pytest.approx(law.time_s(1, 2.0, share))


def test_a_wrong_prior_agrees_at_the_initial_share_alone() -> None:
    setup = with_wrong_prior(pipeline_named("nlp"))
    tokenise, encode, _ = setup.stages
    assert tokenise.prior == tokenise.plan.law
    true, believed = encode.plan.law, encode.prior
    assert true.time_s(4, 1.0, 0.6) == pytest.approx(believed.time_s(4, 1.0, 0.6))
    assert true.time_s(4, 1.0, 1.0) > believed.time_s(4, 1.0, 1.0)
    assert true.time_s(4, 1.0, 0.3) < believed.time_s(4, 1.0, 0.3)
    assert true.scv == 2 * believed.scv
