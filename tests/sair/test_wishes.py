"""What a stage's replicas are to have, by the Pipeline."""

from __future__ import annotations

from typing import Any

import pytest

from sair.annotations import Bounds, parse_stage
from sair.errors import InvalidInput
from sair.pipeline import Pipeline, parse_pipeline
from sair.quantities import GpuRate
from sair.wishes import StageWish, stage_wish


def pipeline(rate: str | None, *, status_mode: str | None = "auto", **spec: Any) -> Pipeline:
    status = {"stages": [{"name": "rank"} | ({"gpuRate": rate} if rate else {})]}
    mode = {"mode": status_mode} if status_mode else {}
    return parse_pipeline({"metadata": {"name": "p", "namespace": "n"}, "spec": spec, "status": status | mode})


def test_a_wish_is_the_rate_in_the_status_with_the_bounds_of_the_spec() -> None:
    bounds = {"rank": {"gpuRateMin": "0.2", "gpuRateMax": "0.6"}}

    assert stage_wish(pipeline("0.4"), "rank") == StageWish(GpuRate(400))
    assert stage_wish(pipeline("0.4", bounds=bounds), "rank") == StageWish(GpuRate(400), GpuRate(200), GpuRate(600))
    assert stage_wish(pipeline("0.4", status_mode=None, mode="auto"), "rank") == StageWish(GpuRate(400))


@pytest.mark.parametrize(
    ("found", "stage"),
    [
        (pipeline(None), "rank"),
        (pipeline("0.4"), "other"),
        (pipeline("0.4", mode="off"), "rank"),
        (pipeline("0.4", mode="recommend"), "rank"),
        (pipeline("0.4", status_mode="off"), "rank"),
        (pipeline("0.4", status_mode="recommend", mode="auto"), "rank"),
    ],
    ids=["no rate", "no such stage", "switched off", "recommend", "off by its stages", "held by a conflict"],
)
def test_there_is_none_where_nobody_but_the_user_sets_rates(found: Pipeline, stage: str) -> None:
    assert stage_wish(found, stage) is None


def test_a_rate_that_is_none_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"Pipeline n/p status.stages\[rank\].gpuRate: '0.0'"):
        stage_wish(pipeline("0.0"), "rank")


@pytest.mark.parametrize(
    ("wish", "own", "due"),
    [
        (StageWish(GpuRate(400)), Bounds(), 400),
        (StageWish(GpuRate(400)), Bounds(gpu_rate_max=GpuRate(300)), 300),
        (StageWish(GpuRate(400)), Bounds(gpu_rate_min=GpuRate(500)), 500),
        (StageWish(GpuRate(400), high=GpuRate(450)), Bounds(gpu_rate_max=GpuRate(300)), 400),
        (StageWish(GpuRate(400), low=GpuRate(350)), Bounds(gpu_rate_min=GpuRate(500)), 400),
        (StageWish(GpuRate(900), high=GpuRate(450)), Bounds(gpu_rate_max=GpuRate(300)), 450),
    ],
)
def test_the_pipelines_bounds_go_before_the_replicas_own(wish: StageWish, own: Bounds, due: int) -> None:
    assert wish.within(own) == GpuRate(due)


def test_a_live_pod_may_have_a_rate_beyond_its_own_bounds_and_a_template_may_not() -> None:
    template = {
        "sair.dev/pipeline": "p",
        "sair.dev/stage": "rank",
        "sair.dev/gpu-rate": "0.9",
        "sair.dev/gpu-rate-max": "0.5",
    }
    with pytest.raises(InvalidInput, match=r"sair\.dev/gpu-rate"):
        parse_stage(template)

    assert parse_stage({**template, "sair.dev/injected": "1"}).gpu_rate == GpuRate(900)
