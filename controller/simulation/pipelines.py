"""The simulated pipelines: the paper's four, each pre-processing → inference → post-processing, and two that branch.

Where constants come from: the forms of the laws, Amdahl fractions between 0.10 and 0.43 and cold starts of 30 to 440 s on GPUs
are published; the times in seconds of each stage are assumed, of the size that a mid-range card and one core show for such models,
and chosen so that the workloads need a few replicas and a few cards. A measured curve replaces them as soon as one exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from controller.cost import Prices
from controller.model import ServiceCurve
from controller.simulation.cluster import NodePlan
from controller.simulation.engine import StagePlan
from controller.simulation.service import ColdStart, ServiceLaw
from controller.state import Allocation, Limits, PipelineView, StageView
from sair.errors import InvalidInput
from sair.quantities import GpuRate, Mebibytes, Millicores

__all__ = [
    "GRAPHS",
    "PIPELINES",
    "PipelineSetup",
    "StageSetup",
    "batch_curve_of",
    "curve_of",
    "document_reading",
    "document_tagging",
    "image_classification",
    "multi_frame_video",
    "nlp",
    "pipeline_named",
    "text_generation",
    "with_wrong_prior",
]

_LIMITS: Final = Limits()
_PRICES: Final = Prices()

_CPU_COLD_START: Final = ColdStart(median_s=4.0, sigma=0.3, shortest_s=1.0, longest_s=15.0)
"""Seconds, as any container whose image is on the node; the median is assumed."""


def _gpu_cold_start(median_s: float) -> ColdStart:
    """30 to 440 s is the published range; where in it a model lies is assumed by its size."""
    return ColdStart(median_s, sigma=0.35, shortest_s=30.0, longest_s=440.0)


@dataclass(frozen=True, slots=True)
class StageSetup:
    """A stage of a simulated pipeline: how it really behaves, and what the controller is told."""

    plan: StagePlan
    initial: Allocation
    cold_start: ColdStart
    prior: ServiceLaw
    """What the controller believes of the service time before it has seen any."""
    limits: Limits = _LIMITS
    gpu_memory: Mebibytes = Mebibytes(0)

    @property
    def view(self) -> StageView:
        """What the controller sees as fixed."""
        return StageView(self.plan.name, self.plan.after, self.plan.law.uses_gpu, self.limits, self.gpu_memory)


@dataclass(frozen=True, slots=True)
class PipelineSetup:
    """A simulated pipeline with its cluster; the stages stand in topological order."""

    name: str
    stages: tuple[StageSetup, ...]
    slo_s: float
    timeout_s: float
    """The client gives up after that long."""
    base_rate_per_s: float
    """Requests per second that the workloads scale with."""
    budget_per_hour: float
    preference: float = 0.85
    """Fraction of the SLO that predicted P99 may use."""
    prices: Prices = _PRICES
    nodes: tuple[NodePlan, ...] = (
        NodePlan("gpu-1", Millicores(32000), Mebibytes(131072), cards=4),
        NodePlan("gpu-2", Millicores(32000), Mebibytes(131072), cards=4),
        NodePlan("cpu-1", Millicores(64000), Mebibytes(131072)),
    )

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"simulated/{self.name}"

    @property
    def view(self) -> PipelineView:
        """What the controller sees as fixed."""
        return PipelineView(
            self.key,
            tuple(stage.view for stage in self.stages),
            self.slo_s,
            budget_per_hour=self.budget_per_hour,
            preference=self.preference,
        )

    @property
    def initial(self) -> dict[str, Allocation]:
        """Allocation of each stage at the beginning."""
        return {stage.plan.name: stage.initial for stage in self.stages}

    @property
    def prior_curves(self) -> dict[str, ServiceCurve]:
        """The controller's prior in the form of its queueing model, for single requests."""
        return {stage.plan.name: curve_of(stage.prior) for stage in self.stages}

    def starting_at(self, allocations: Mapping[str, Allocation]) -> PipelineSetup:
        """The same pipeline with other initial allocations."""
        return replace(
            self,
            stages=tuple(
                replace(stage, initial=allocations.get(stage.plan.name, stage.initial)) for stage in self.stages
            ),
        )


def curve_of(law: ServiceLaw) -> ServiceCurve:
    """A service law as the controller's model writes it, for a batch of one: t = fixed + cpu/cores + gpu/ρ."""
    gpu = law.gpu_time_s(1, 1.0) if law.uses_gpu else 0.0
    scaled = law.scaling_fraction * (law.batch_s + law.item_s)
    return ServiceCurve(
        fixed_s=law.cpu_s * law.serial_fraction + (gpu - scaled),
        cpu_s=law.cpu_s * (1 - law.serial_fraction),
        gpu_s=scaled,
        scv=law.scv,
    )


def batch_curve_of(law: ServiceLaw) -> ServiceCurve:
    """A service law in the form of the controller's model, batches included: what a profiler would have told it."""
    if not law.uses_gpu:
        return curve_of(law)
    fraction, rest = law.scaling_fraction, (1 - law.scaling_fraction) / law.reference_share
    return ServiceCurve(
        fixed_s=law.cpu_s * law.serial_fraction + law.item_s * rest,
        cpu_s=law.cpu_s * (1 - law.serial_fraction),
        gpu_s=law.item_s * fraction,
        scv=law.scv,
        setup_s=law.batch_s * rest,
        setup_gpu_s=law.batch_s * fraction,
        batch_max=law.max_batch,
    )


def _stage(
    name: str,
    law: ServiceLaw,
    initial: Allocation,
    *,
    after: tuple[str, ...] = (),
    fan_out: float = 1.0,
    cold_start: ColdStart = _CPU_COLD_START,
    limits: Limits = _LIMITS,
    gpu_memory: int = 0,
) -> StageSetup:
    plan = StagePlan(name, law, after, queue_limit=2000, fan_out=fan_out)
    return StageSetup(plan, initial, cold_start, law, limits, Mebibytes(gpu_memory))


def _cpu(replicas: int, cores: float, mebibytes: int = 512) -> Allocation:
    return Allocation(replicas, Millicores(int(cores * 1000)), Mebibytes(mebibytes), None)


def _gpu(replicas: int, share: float, cores: float = 1.0, mebibytes: int = 4096) -> Allocation:
    return Allocation(replicas, Millicores(int(cores * 1000)), Mebibytes(mebibytes), GpuRate.of(share))


_CPU_LIMITS: Final = Limits(replicas_max=20, cpu_max=Millicores(4000), memory_max=Mebibytes(4096))
_GPU_LIMITS: Final = Limits(
    replicas_max=12, cpu_max=Millicores(4000), memory_min=Mebibytes(1024), memory_max=Mebibytes(16384)
)


def image_classification() -> PipelineSetup:
    """MobileNetV2: decode and resize, classify, format."""
    return PipelineSetup(
        "image-classification",
        (
            _stage(
                "preprocess", ServiceLaw(cpu_s=0.018, serial_fraction=0.15, scv=0.3), _cpu(3, 1), limits=_CPU_LIMITS
            ),
            _stage(
                "inference",
                ServiceLaw(cpu_s=0.001, serial_fraction=0.3, batch_s=0.006, item_s=0.005, max_batch=8, scv=0.15),
                _gpu(2, 0.5),
                after=("preprocess",),
                cold_start=_gpu_cold_start(45.0),
                limits=_GPU_LIMITS,
                gpu_memory=4096,
            ),
            _stage(
                "postprocess",
                ServiceLaw(cpu_s=0.003, serial_fraction=0.4, scv=0.3),
                _cpu(1, 1, 256),
                after=("inference",),
                limits=_CPU_LIMITS,
            ),
        ),
        slo_s=0.25,
        timeout_s=5.0,
        base_rate_per_s=60.0,
        budget_per_hour=12.0,
    )


def nlp() -> PipelineSetup:
    """BERT: tokenise, encode, decode the labels."""
    return PipelineSetup(
        "nlp",
        (
            _stage("tokenise", ServiceLaw(cpu_s=0.006, serial_fraction=0.43, scv=0.5), _cpu(2, 1), limits=_CPU_LIMITS),
            _stage(
                "encode",
                ServiceLaw(cpu_s=0.001, serial_fraction=0.3, batch_s=0.010, item_s=0.009, max_batch=16, scv=0.4),
                _gpu(2, 0.6),
                after=("tokenise",),
                cold_start=_gpu_cold_start(70.0),
                limits=_GPU_LIMITS,
                gpu_memory=8192,
            ),
            _stage(
                "labels",
                ServiceLaw(cpu_s=0.002, serial_fraction=0.3, scv=0.2),
                _cpu(1, 1, 256),
                after=("encode",),
                limits=_CPU_LIMITS,
            ),
        ),
        slo_s=0.3,
        timeout_s=5.0,
        base_rate_per_s=50.0,
        budget_per_hour=14.0,
    )


def text_generation() -> PipelineSetup:
    """A small decoder: template and tokenise, generate, detokenise. Lengths of answers vary much: lognormal."""
    return PipelineSetup(
        "text-generation",
        (
            _stage("prompt", ServiceLaw(cpu_s=0.008, serial_fraction=0.4, scv=0.3), _cpu(1, 1), limits=_CPU_LIMITS),
            _stage(
                "generate",
                ServiceLaw(
                    cpu_s=0.004,
                    serial_fraction=0.4,
                    batch_s=0.25,
                    item_s=0.06,
                    max_batch=8,
                    scv=0.6,
                    spread="lognormal",
                ),
                _gpu(2, 0.6, 1.0, 8192),
                after=("prompt",),
                cold_start=_gpu_cold_start(180.0),
                limits=_GPU_LIMITS,
                gpu_memory=24576,
            ),
            _stage(
                "detokenise",
                ServiceLaw(cpu_s=0.005, serial_fraction=0.4, scv=0.3),
                _cpu(1, 1, 256),
                after=("generate",),
                limits=_CPU_LIMITS,
            ),
        ),
        slo_s=4.0,
        timeout_s=30.0,
        base_rate_per_s=8.0,
        budget_per_hour=16.0,
    )


def multi_frame_video() -> PipelineSetup:
    """Frames of a video: decode and detect, classify each crop (3 per frame in the mean), join them into the frame's result."""
    return PipelineSetup(
        "multi-frame-video",
        (
            _stage(
                "decode", ServiceLaw(cpu_s=0.035, serial_fraction=0.1, scv=0.2), _cpu(3, 1, 1024), limits=_CPU_LIMITS
            ),
            _stage(
                "classify",
                ServiceLaw(cpu_s=0.001, serial_fraction=0.3, batch_s=0.006, item_s=0.005, max_batch=8, scv=0.15),
                _gpu(2, 0.6),
                after=("decode",),
                fan_out=3.0,
                cold_start=_gpu_cold_start(60.0),
                limits=_GPU_LIMITS,
                gpu_memory=6144,
            ),
            _stage(
                "join",
                ServiceLaw(cpu_s=0.006, serial_fraction=0.3, scv=0.3),
                _cpu(1, 1, 256),
                after=("classify",),
                limits=_CPU_LIMITS,
            ),
        ),
        slo_s=0.4,
        timeout_s=5.0,
        base_rate_per_s=30.0,
        budget_per_hour=14.0,
    )


def document_reading() -> PipelineSetup:
    """Scanned pages: lay out, then find figures and read text at the same time, and join both into the page: a diamond."""
    law = ServiceLaw(cpu_s=0.005, serial_fraction=0.3, scv=0.3)
    report = _stage("report", law, _cpu(1, 1, 256), after=("detect", "read"), limits=_CPU_LIMITS)
    return _documents("document-reading", report)


def document_tagging() -> PipelineSetup:
    """The same without the join: figures and text leave by sinks of their own, and a page is done when it has left both."""
    return _documents("document-tagging")


def _documents(name: str, *join: StageSetup) -> PipelineSetup:
    layout = ServiceLaw(cpu_s=0.018, serial_fraction=0.15, scv=0.3)
    detect = ServiceLaw(cpu_s=0.001, serial_fraction=0.3, batch_s=0.006, item_s=0.005, max_batch=8, scv=0.15)
    read = ServiceLaw(cpu_s=0.001, serial_fraction=0.3, batch_s=0.008, item_s=0.010, max_batch=8, scv=0.4)
    cold = _gpu_cold_start(60.0)
    branches = [
        StageSetup(
            StagePlan(branch, law, ("layout",), queue_limit=2000), _gpu(2, 0.5), cold, law, _GPU_LIMITS, Mebibytes(6144)
        )
        for branch, law in (("detect", detect), ("read", read))
    ]
    return PipelineSetup(
        name,
        (_stage("layout", layout, _cpu(2, 1), limits=_CPU_LIMITS), *branches, *join),
        slo_s=0.35,
        timeout_s=5.0,
        base_rate_per_s=40.0,
        budget_per_hour=14.0,
    )


PIPELINES: Final[Mapping[str, Callable[[], PipelineSetup]]] = {
    "image-classification": image_classification,
    "nlp": nlp,
    "text-generation": text_generation,
    "multi-frame-video": multi_frame_video,
}
"""The paper's four, by the name that the command line takes."""

GRAPHS: Final[Mapping[str, Callable[[], PipelineSetup]]] = {
    "document-reading": document_reading,
    "document-tagging": document_tagging,
}
"""Pipelines that are no chains, by name."""


def pipeline_named(name: str) -> PipelineSetup:
    """One of them.

    Raises:
        InvalidInput: If there is no pipeline of this name.
    """
    known = {**PIPELINES, **GRAPHS}
    if name not in known:
        raise InvalidInput("pipeline", name, "one of " + ", ".join(known))
    return known[name]()


def with_wrong_prior(
    setup: PipelineSetup, scaling_fraction: float = 0.45, variance_factor: float = 2.0
) -> PipelineSetup:
    """The same pipeline, but its GPU stages behave otherwise than the controller is told.

    Only part of a GPU stage's time scales with ρ, and its variance is a multiple; the controller's prior stays as it was. Both agree at the
    initial share, where the user has measured, and differ everywhere else: lowering ρ costs less time than believed, raising it gains less.
    """
    stages = []
    for stage in setup.stages:
        law = stage.plan.law
        if law.uses_gpu and stage.initial.gpu_rate is not None:
            law = replace(
                law,
                scaling_fraction=scaling_fraction,
                reference_share=stage.initial.gpu_rate.fraction,
                scv=law.scv * variance_factor,
            )
        stages.append(replace(stage, plan=replace(stage.plan, law=law)))
    return replace(setup, stages=tuple(stages))
