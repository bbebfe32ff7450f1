"""Runs a baseline against a plant: the same engine, arrivals and metric windows that SAIR meets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from controller.simulation.baselines.policy import Policy, Seen
from controller.simulation.pipelines import PipelineSetup
from controller.simulation.plant import Plant
from controller.simulation.recording import Recorder, Recording
from controller.simulation.statistics import RunSummary, summarise
from controller.simulation.workloads import RateSeries, draw_arrivals

__all__ = ["Run", "drain", "run_policy", "step_policy"]


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run."""

    summary: RunSummary
    recording: Recording
    plant: Plant


def step_policy(plant: Plant, policy: Policy) -> None:
    """Show a policy the plant now, and apply what it wants."""
    ongoing = {
        name: queue.queue_depth() + queue.in_service()
        for name, queue in zip(plant.stage_names(), plant.engine.queues, strict=True)
    }
    wanted = policy.decide(Seen(plant.observe(policy.window_s), ongoing), plant.now)
    if wanted:
        plant.apply(wanted)


def drain(plant: Plant) -> None:
    """Let requests that are in the system at the end of the load finish or be given up."""
    plant.advance(plant.now + plant.setup.timeout_s)


def run_policy(
    setup: PipelineSetup,
    series: RateSeries,
    seed: int,
    policy: Policy | None,
    *,
    since_s: float = 0.0,
    on_step: Callable[[float], None] | None = None,
) -> Run:
    """Run one pipeline under one workload with one baseline; None leaves the initial allocations as they are.

    Args:
        setup: The pipeline.
        series: Its arrival rate.
        seed: Of arrivals, demands and cold starts.
        policy: A fresh instance.
        since_s: The summary counts from then on.
        on_step: Called with the time after each decision.
    """
    plant = Plant(setup, draw_arrivals(series, seed), seed)
    recorder = Recorder(plant)
    until = series.duration_s
    interval_s = policy.interval_s if policy is not None else until
    step = 1
    while plant.now < until:
        recorder.advance(min(until, step * interval_s))
        step += 1
        if policy is not None and plant.now < until:
            step_policy(plant, policy)
        if on_step is not None:
            on_step(plant.now)
    drain(plant)
    name = policy.name if policy is not None else "static"
    return Run(summarise(plant, name, seed, since_s=since_s, until_s=until), recorder.finish(until), plant)
