"""Small pipelines and observations for the simulation's tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from controller.simulation.baselines.policy import Seen
from controller.simulation.cluster import NodePlan
from controller.simulation.engine import StagePlan
from controller.simulation.pipelines import PipelineSetup, StageSetup
from controller.simulation.service import ColdStart, ServiceLaw
from controller.state import Allocation, Limits, Observation, StageObservation
from sair.quantities import GpuRate, Mebibytes, Millicores

COLD = ColdStart(20.0, sigma=0.0)
FIRST_LAW = ServiceLaw(cpu_s=0.02)
SECOND_LAW = ServiceLaw(batch_s=0.01, item_s=0.01, max_batch=4)


def cpu(replicas: int = 1, millicores: int = 1000, memory: int = 512) -> Allocation:
    return Allocation(replicas, Millicores(millicores), Mebibytes(memory), None)


def gpu(replicas: int = 1, milli: int = 500, millicores: int = 1000, memory: int = 1024) -> Allocation:
    return Allocation(replicas, Millicores(millicores), Mebibytes(memory), GpuRate(milli))


def two_stages(
    first: Allocation | None = None,
    second: Allocation | None = None,
    *,
    nodes: tuple[NodePlan, ...] = (NodePlan("n1", Millicores(16_000), Mebibytes(32_768), cards=2),),
    first_law: ServiceLaw = FIRST_LAW,
    second_law: ServiceLaw = SECOND_LAW,
) -> PipelineSetup:
    """A CPU stage before a GPU stage; cold starts of exactly 20 s."""
    return PipelineSetup(
        "small",
        (
            StageSetup(StagePlan("pre", first_law), first or cpu(), COLD, first_law, Limits(memory_min=Mebibytes(64))),
            StageSetup(
                StagePlan("inf", second_law, ("pre",)), second or gpu(), COLD, second_law, gpu_memory=Mebibytes(1000)
            ),
        ),
        slo_s=0.3,
        timeout_s=3.0,
        base_rate_per_s=10.0,
        budget_per_hour=10.0,
        nodes=nodes,
    )


def stage_seen(name: str = "a", **changes: Any) -> StageObservation:
    """A stage with one ready replica, idle."""
    allocation = changes.pop("allocation", cpu())
    one = StageObservation(
        name=name,
        allocation=allocation,
        ready=allocation.replicas,
        starting=0,
        granted=allocation.gpu_rate,
        queue_depth=0.0,
        queue_slope=0.0,
        arrivals_per_s=0.0,
        departures_per_s=0.0,
        cpu_utilisation=0.0,
        gpu_utilisation=0.0,
        service_s=None,
        service_scv=None,
        p99_s=None,
    )
    return replace(one, **changes)


def seen(*stages: StageObservation, ongoing: dict[str, int] | None = None, **changes: Any) -> Seen:
    """What a baseline is shown."""
    observation = Observation(
        pipeline="simulated/test",
        time_s=0.0,
        window_s=15.0,
        age_s=0.0,
        stages=stages,
        arrivals_per_s=0.0,
        arrivals_slope=0.0,
        arrivals_peak_per_s=0.0,
        p50_s=None,
        p99_s=None,
        slo_s=0.3,
        goodput_per_s=0.0,
        completed=0,
        missed=0,
        cost_per_hour=0.0,
    )
    return Seen(replace(observation, **changes), ongoing or {stage.name: 0 for stage in stages})
