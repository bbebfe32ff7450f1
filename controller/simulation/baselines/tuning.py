"""Settings of the tunable baselines: the grids they are tuned over, and what came out for each pipeline.

Every baseline gets the same budget: 24 settings, each run on three workloads (ramp with a burst, Poisson, burst) of 20 minutes with
one seed that no comparison uses. The best setting is the cheapest one (effective cost) among those that miss at most 1 % over the three
together; if none does, the one that misses least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, Protocol, TypeVar

from controller.simulation.baselines.hpa import Behaviour, HorizontalPodAutoscaler
from controller.simulation.baselines.mpc import ModelPredictive, MpcSettings
from controller.simulation.baselines.policy import Policy
from controller.simulation.baselines.rho_target import RateTarget
from controller.simulation.baselines.runner import run_policy
from controller.simulation.pipelines import PipelineSetup
from controller.simulation.sizing import cheapest, sizes_of, stage_rates
from controller.simulation.workloads import workload_named
from sair.quantities import GpuRate

__all__ = [
    "TUNED",
    "Candidate",
    "HpaSetting",
    "MpcSetting",
    "RateTargetSetting",
    "TunedSettings",
    "hpa_grid",
    "mpc_grid",
    "rate_target_grid",
    "tune",
]

TUNING_SEED: Final = 9001
TUNING_WORKLOADS: Final = ("ramp-burst", "poisson", "burst")
TUNING_DURATION_S: Final = 1200.0
MISSES_ALLOWED: Final = 0.01


@dataclass(frozen=True, slots=True)
class HpaSetting:
    """A tuned HPA: utilisation to hold, share of each GPU replica, patience before scaling down."""

    target: float
    gpu_share: float
    down_stabilisation_s: float

    def setup(self, pipeline: PipelineSetup) -> PipelineSetup:
        """The pipeline with the shares that go with this setting, its number of replicas chosen for the base rate."""
        stages = []
        rates = stage_rates(pipeline, pipeline.base_rate_per_s / self.target)
        for stage in pipeline.stages:
            initial = stage.initial
            if initial.gpu_rate is not None:
                initial = replace(initial, gpu_rate=GpuRate.of(self.gpu_share))
            one = stage.plan.law.capacity_per_s(
                initial.cpu / 1000, initial.gpu_rate.fraction if initial.gpu_rate else 1.0
            )
            count = max(stage.limits.replicas_min, min(stage.limits.replicas_max, -int(-rates[stage.plan.name] // one)))
            stages.append(replace(stage, initial=replace(initial, replicas=count)))
        return replace(pipeline, stages=tuple(stages))

    def policy(self, pipeline: PipelineSetup) -> Policy:
        """A fresh HPA."""
        return HorizontalPodAutoscaler(
            pipeline.view,
            targets={stage.plan.name: self.target for stage in pipeline.stages},
            behaviour=Behaviour(down_stabilisation_s=self.down_stabilisation_s),
            name="HPA (tuned)",
        )


@dataclass(frozen=True, slots=True)
class RateTargetSetting:
    """A tuned ρ-target law: utilisation to hold, and replicas for a multiple of the base rate at full share."""

    target: float
    peak_factor: float
    down_after_s: float

    def setup(self, pipeline: PipelineSetup) -> PipelineSetup:
        """The pipeline with as many replicas as serve the multiple of the base rate with every knob at its best."""
        stages = []
        rates = stage_rates(pipeline, pipeline.base_rate_per_s * self.peak_factor)
        for stage in pipeline.stages:
            largest = replace(stage, limits=replace(stage.limits, gpu_milli_min=stage.limits.gpu_milli_max))
            size = cheapest(sizes_of(largest, pipeline.slo_s, pipeline.prices), rates[stage.plan.name])
            stages.append(replace(stage, initial=replace(stage.initial, replicas=size.allocation.replicas)))
        return replace(pipeline, stages=tuple(stages))

    def policy(self, pipeline: PipelineSetup) -> Policy:
        """A fresh law."""
        return RateTarget(pipeline.view, target=self.target, down_after_s=self.down_after_s)


@dataclass(frozen=True, slots=True)
class MpcSetting:
    """A tuned MPC: multiple of the recent peak that its replicas must be able to serve, part of the SLO, margin on the load."""

    reserve_factor: float
    slo_part: float
    margin: float

    def setup(self, pipeline: PipelineSetup) -> PipelineSetup:
        """The pipeline as it is: MPC chooses every knob itself."""
        return pipeline

    def policy(self, pipeline: PipelineSetup) -> Policy:
        """A fresh controller."""
        return ModelPredictive(
            pipeline,
            settings=MpcSettings(slo_part=self.slo_part, margin=self.margin, reserve_factor=self.reserve_factor),
        )


class Candidate(Protocol):
    """A setting of a baseline."""

    def setup(self, pipeline: PipelineSetup) -> PipelineSetup:
        """The pipeline as this setting wants it to begin."""
        ...

    def policy(self, pipeline: PipelineSetup) -> Policy:
        """A fresh instance for that pipeline."""
        ...


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


def hpa_grid() -> list[HpaSetting]:
    """24 settings."""
    return [HpaSetting(*values) for values in product((0.25, 0.35, 0.5, 0.65), (0.3, 0.5, 1.0), (60.0, 300.0))]


def rate_target_grid() -> list[RateTargetSetting]:
    """24 settings."""
    return [RateTargetSetting(*values) for values in product((0.3, 0.4, 0.5, 0.6), (2.0, 3.0, 4.0), (30.0, 60.0))]


def mpc_grid() -> list[MpcSetting]:
    """24 settings."""
    return [MpcSetting(*values) for values in product((1.3, 2.0, 3.0), (0.5, 0.6, 0.7, 0.8), (1.0, 1.2))]


def tune(
    pipeline: PipelineSetup,
    grid: Sequence[AnyCandidate],
    on_run: Callable[[AnyCandidate, float, float], None] | None = None,
) -> AnyCandidate:
    """The best setting of a grid for a pipeline.

    Args:
        pipeline: As its user wrote it.
        grid: Settings to try.
        on_run: Called with each setting, its misses as a fraction and its cost in $/h.
    """
    scored = []
    for number, candidate in enumerate(grid):
        requests = missed = 0
        cost = 0.0
        for name in TUNING_WORKLOADS:
            series = workload_named(name, pipeline.base_rate_per_s, TUNING_DURATION_S, TUNING_SEED)
            setup = candidate.setup(pipeline)
            summary = run_policy(setup, series, TUNING_SEED, candidate.policy(setup)).summary
            requests, missed = requests + summary.requests, missed + summary.missed
            cost += summary.effective_usd_per_hour / len(TUNING_WORKLOADS)
        misses = missed / requests
        if on_run is not None:
            on_run(candidate, misses, cost)
        scored.append((misses > MISSES_ALLOWED, misses if misses > MISSES_ALLOWED else cost, number))
    return grid[min(scored)[2]]


@dataclass(frozen=True, slots=True)
class TunedSettings:
    """What came out for one pipeline."""

    hpa: HpaSetting
    rate_target: RateTargetSetting
    mpc: MpcSetting


TUNED: Final[Mapping[str, TunedSettings]] = {
    "image-classification": TunedSettings(
        HpaSetting(0.35, 0.3, 60.0), RateTargetSetting(0.6, 3.0, 30.0), MpcSetting(3.0, 0.6, 1.2)
    ),
    "nlp": TunedSettings(HpaSetting(0.65, 1.0, 60.0), RateTargetSetting(0.6, 4.0, 30.0), MpcSetting(1.3, 0.6, 1.2)),
    "text-generation": TunedSettings(
        HpaSetting(0.65, 1.0, 60.0), RateTargetSetting(0.6, 3.0, 30.0), MpcSetting(3.0, 0.8, 1.2)
    ),
    "multi-frame-video": TunedSettings(
        HpaSetting(0.35, 0.3, 300.0), RateTargetSetting(0.5, 4.0, 30.0), MpcSetting(3.0, 0.8, 1.0)
    ),
    "document-reading": TunedSettings(
        HpaSetting(0.35, 0.3, 60.0), RateTargetSetting(0.6, 3.0, 30.0), MpcSetting(2.0, 0.6, 1.0)
    ),
    "document-tagging": TunedSettings(
        HpaSetting(0.35, 0.3, 60.0), RateTargetSetting(0.6, 3.0, 30.0), MpcSetting(2.0, 0.8, 1.2)
    ),
}
"""By pipeline; ``benchmarks/tune_baselines.py`` finds them again."""
