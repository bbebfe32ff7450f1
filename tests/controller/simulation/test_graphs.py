"""Pipelines that branch: a request is done once, when it has left all its sinks, and the branch that holds it back is found and scaled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controller.simulation.baselines.runner import run_policy
from controller.simulation.bottleneck_truth import busiest_stage, true_bottleneck
from controller.simulation.engine import Engine, Requests, StagePlan
from controller.simulation.pipelines import GRAPHS, PipelineSetup, pipeline_named
from controller.simulation.plant import Plant
from controller.simulation.service import ServiceLaw
from controller.simulation.statistics import all_latencies
from controller.simulation.trial import run_trial
from controller.simulation.workloads import constant, draw_arrivals
from sair.quantities import GpuRate


def starved(name: str, branch: str, milli: int) -> PipelineSetup:
    """The pipeline with one replica of little share on a branch, and plenty everywhere else."""
    setup = pipeline_named(name)
    plenty = {each: replace(one, replicas=4) for each, one in setup.initial.items()}
    return setup.starting_at(plenty | {branch: replace(setup.initial[branch], replicas=1, gpu_rate=GpuRate(milli))})


def two_sinks(first_s: float, second_s: float, queue_limit: int) -> list[StagePlan]:
    return [
        StagePlan("source", ServiceLaw(cpu_s=0.1)),
        StagePlan("first", ServiceLaw(cpu_s=first_s), ("source",)),
        StagePlan("second", ServiceLaw(cpu_s=second_s), ("source",), queue_limit=queue_limit),
    ]


def engine_of(stages: list[StagePlan], arrivals: list[float]) -> Engine:
    engine = Engine(stages, Requests(stages, np.array(arrivals), 1e9, 1))
    for number, stage in enumerate(stages):
        engine.add_replica(stage.name, number, 1.0, 1.0, 0.0)
    return engine


def test_a_request_with_two_sinks_is_done_once_when_the_slower_has_it() -> None:
    engine = engine_of(two_sinks(0.2, 0.7, 10), [0.0, 10.0])
    engine.advance(10.5)
    assert (engine.done_id, engine.in_system) == ([0], 1)
    engine.advance(100.0)
    assert engine.done_t == pytest.approx([0.8, 10.8])
    assert engine.done_id == [0, 1]
    assert [queue.done for queue in engine.queues] == [2, 2, 2]


def test_a_request_that_one_branch_dropped_has_failed_once_and_is_never_done() -> None:
    engine = engine_of(two_sinks(0.1, 5.0, 1), [0.0, 0.1, 0.2, 0.3])
    engine.advance(100.0)
    assert (engine.done_id, engine.failed_id) == ([0, 1], [2, 3])
    assert engine.in_system == 0
    assert engine.queues[1].done == 4


def test_what_is_observed_of_two_sinks_counts_requests_not_departures() -> None:
    setup, series = pipeline_named("document-tagging"), constant(20.0, 120)
    run = run_policy(setup, series, 1, None)
    engine = run.plant.engine
    assert run.summary.finished == run.summary.requests == engine.arrived == len(set(engine.done_id))
    assert len(engine.done_id) == engine.arrived
    assert np.isfinite(all_latencies(run.plant)).all()
    plant = Plant(setup, draw_arrivals(series, 1), 1)
    plant.advance(60.0)
    seen = plant.observe(30.0)
    assert [stage.departures_per_s for stage in seen.stages[1:]] == pytest.approx([seen.arrivals_per_s] * 2, rel=0.05)
    assert seen.completed == pytest.approx(30.0 * seen.arrivals_per_s, rel=0.05)
    assert seen.goodput_per_s == pytest.approx(seen.arrivals_per_s, rel=0.05)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize(("branch", "milli"), [("detect", 350), ("read", 550)])
def test_the_branch_that_holds_a_pipeline_back_is_its_bottleneck(name: str, branch: str, milli: int) -> None:
    setup = starved(name, branch, milli)
    plant = Plant(setup, draw_arrivals(constant(40.0, 200), 1), 1)
    plant.advance(60.0)
    assert true_bottleneck(plant, 30.0).stages == (branch,)
    assert busiest_stage(plant.observe(30.0)) == branch


@pytest.mark.parametrize("name", GRAPHS)
def test_the_branch_that_holds_a_pipeline_back_is_the_one_that_grows(name: str) -> None:
    setup = starved(name, "read", 300)
    trial = run_trial(setup, constant(setup.base_rate_per_s, 600), 1)
    assert trial.summary(240.0).miss_ratio < 0.01

    def cards(branch: str) -> float:
        now = trial.plant.wished[branch]
        assert now.gpu_rate is not None
        return now.replicas * now.gpu_rate.fraction

    assert cards("read") > 0.7
    assert cards("detect") < 4 * 0.5
    law = next(stage.plan.law for stage in setup.stages if stage.plan.name == "read")
    assert cards("read") * law.capacity_per_s(1.0, 1.0) > setup.base_rate_per_s
