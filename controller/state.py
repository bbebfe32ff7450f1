"""What the controller sees and does: allocations, observations, actions, room in the cluster. Values only, no behaviour of the loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sair.pipeline import Mode
from sair.quantities import GpuRate, Mebibytes, Millicores

__all__ = [
    "CPU_STEP",
    "GPU_STEPS_MOST",
    "GPU_STEP_MILLI",
    "HOLD",
    "LOWEST_GPU_MILLI",
    "MEMORY_STEP",
    "Action",
    "Allocation",
    "BatchTimes",
    "ClusterRoom",
    "GpuRoom",
    "KnobOutcome",
    "Limits",
    "NodeRoom",
    "Observation",
    "PipelineView",
    "Rollback",
    "StageDelta",
    "StageGauge",
    "StageObservation",
    "StageView",
    "difference",
    "project",
    "project_all",
]

CPU_STEP = Millicores(500)
MEMORY_STEP = Mebibytes(256)
GPU_STEP_MILLI = 50
GPU_STEPS_MOST = 4
LOWEST_GPU_MILLI = 50
"""The discrete grid of actions: Δreplicas ∈ {−1, 0, +1, +2}, Δcpu ∈ {0, ±0.5 core}, Δmemory ∈ {0, ±256 Mi},
Δρ ∈ {0, ±0.05, ±0.1, ±0.15, ±0.2}."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """What each replica of a stage gets, and how many there are (ready and starting)."""

    replicas: int
    cpu: Millicores
    memory: Mebibytes
    gpu_rate: GpuRate | None
    """Share of one GPU per replica; None for a stage that runs on CPU alone."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a stage's knobs with all defaults filled in; CPU in millicores, memory in MiB, GPU share in thousandths."""

    replicas_min: int = 1
    replicas_max: int = 20
    cpu_min: Millicores = Millicores(500)
    cpu_max: Millicores = Millicores(8000)
    memory_min: Mebibytes = Mebibytes(256)
    memory_max: Mebibytes = Mebibytes(16384)
    gpu_milli_min: int = LOWEST_GPU_MILLI
    gpu_milli_max: int = 1000


@dataclass(frozen=True, slots=True)
class StageView:
    """What is fixed about a stage between two rounds."""

    name: str
    after: tuple[str, ...]
    uses_gpu: bool
    limits: Limits = Limits()
    gpu_memory: Mebibytes = Mebibytes(0)
    """GPU memory each replica is promised."""


@dataclass(frozen=True, slots=True)
class Rollback:
    """Allocations that somebody wants to have again, and to keep for a while."""

    at: str
    """When it was asked for; tells one request from another."""
    round: int
    """The round that is undone."""
    until_s: float | None
    """World time until which nothing else is applied, seconds; None: until the request is taken back."""
    stages: Mapping[str, Allocation]
    """What is wanted; the memory in it is what the stage has."""
    done: bool = False
    """It was carried out; what is left is to keep it."""


@dataclass(frozen=True, slots=True)
class PipelineView:
    """What is fixed about a pipeline between two rounds; the stages stand in topological order."""

    key: str
    """``namespace/name``."""
    stages: tuple[StageView, ...]
    slo_s: float
    """Upper bound of the end-to-end P99 latency, seconds."""
    mode: Mode = "auto"
    budget_per_hour: float = 100.0
    """Cap of the projected cost, $/h; also the scale of the reward's cost term."""
    preference: float = 0.85
    """Fraction of the SLO that predicted P99 may use."""
    rollback: Rollback | None = None

    def held(self, now: float) -> bool:
        """A rollback is to be kept: nothing else is applied.

        Args:
            now: World time, seconds.
        """
        return self.rollback is not None and (self.rollback.until_s is None or now < self.rollback.until_s)

    def stage(self, name: str) -> StageView | None:
        """The stage of this name, None if there is none."""
        return next((stage for stage in self.stages if stage.name == name), None)


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """Services of one batch size in a window."""

    size: int
    """Tasks served together."""
    services: float
    """How many such batches were served."""
    mean_s: float
    """Mean busy time of one, seconds."""
    scv: float | None = None
    """Squared coefficient of variation of these times; None where the stage does not tell it or served too few."""


@dataclass(frozen=True, slots=True)
class StageObservation:
    """One stage during the observation window. Rates are per second, utilisations fractions of what is granted, 0 to about 1."""

    name: str
    allocation: Allocation
    """As wished: spec, not status."""
    ready: int
    starting: int
    granted: GpuRate | None
    """Lowest share granted to a ready replica; None for a CPU stage."""
    queue_depth: float
    """Requests waiting at the end of the window, over all replicas."""
    queue_slope: float
    """Change of the queue, requests per second."""
    arrivals_per_s: float
    departures_per_s: float
    cpu_utilisation: float
    gpu_utilisation: float
    service_s: float | None
    """Mean busy time of one replica per request, waiting excluded; None if nothing was served."""
    service_scv: float | None
    """Squared coefficient of variation of the service time; None where the stage exports none."""
    p99_s: float | None
    """P99 of the time a request spends in the stage, waiting included."""
    mean_batch: float | None = None
    """Mean number of tasks that were served together; None where the stage exports none."""
    batches: tuple[BatchTimes, ...] = ()
    """The same services by batch size; empty where the stage does not tell them apart."""
    granted_cpu: Millicores | None = None
    """Least CPU a node has really given a ready replica; None where nobody says so, and it has what is wished for."""
    gpu_measured: bool = True
    """The GPU utilisation is the GPU's own; else it is how busy replicas are, of which nobody tells the GPU's part."""

    @property
    def waiting(self) -> int:
        """Replicas that are wished for and not to be had: neither ready nor starting."""
        return max(0, self.allocation.replicas - self.ready - self.starting)


@dataclass(frozen=True, slots=True)
class Observation:
    """A pipeline during the observation window (the settled tail of the interval)."""

    pipeline: str
    time_s: float
    """World time at the end of the window, seconds."""
    window_s: float
    age_s: float
    """Age of the oldest metric it rests on; the guardrails call it stale past two scrape intervals."""
    stages: tuple[StageObservation, ...]
    arrivals_per_s: float
    arrivals_slope: float
    """Change of the arrival rate, requests per second, per second."""
    arrivals_peak_per_s: float
    """Highest arrival rate over 5 s since the round before."""
    p50_s: float | None
    p99_s: float | None
    """None if no request finished in the window."""
    slo_s: float
    goodput_per_s: float
    """Requests per second that finished within the SLO."""
    completed: int
    missed: int
    """Requests that finished late, were dropped, or have waited longer than the SLO already."""
    cost_per_hour: float

    def stage(self, name: str) -> StageObservation | None:
        """The stage of this name, None if it was not observed."""
        return next((stage for stage in self.stages if stage.name == name), None)

    @property
    def allocations(self) -> dict[str, Allocation]:
        """Wished allocation of each stage."""
        return {stage.name: stage.allocation for stage in self.stages}


@dataclass(frozen=True, slots=True)
class StageGauge:
    """What the reflex reads."""

    name: str
    queue_depth: float
    arrivals_per_s: float
    """Since about the look before."""
    allocation: Allocation
    ready: int


@dataclass(frozen=True, slots=True)
class StageDelta:
    """One stage's part of an action; a zero leaves the knob alone."""

    stage: str
    replicas: int = 0
    cpu: int = 0
    """Millicores per replica."""
    memory: int = 0
    """MiB per replica."""
    gpu_milli: int = 0
    """Thousandths of a GPU per replica."""

    def __bool__(self) -> bool:
        return bool(self.replicas or self.cpu or self.memory or self.gpu_milli)

    @property
    def is_down(self) -> bool:
        """Some knob goes down."""
        return min(self.replicas, self.cpu, self.memory, self.gpu_milli) < 0

    @property
    def is_up(self) -> bool:
        """Some knob goes up."""
        return max(self.replicas, self.cpu, self.memory, self.gpu_milli) > 0

    def __str__(self) -> str:
        parts = (
            (self.replicas, f"replicas {self.replicas:+d}"),
            (self.cpu, f"cpu {self.cpu / 1000:+g}"),
            (self.memory, f"memory {self.memory:+d}Mi"),
            (self.gpu_milli, f"ρ {self.gpu_milli / 1000:+g}"),
        )
        return f"{self.stage}: " + (", ".join(text for value, text in parts if value) or "hold")


@dataclass(frozen=True, slots=True)
class Action:
    """A scaling action: at most one delta per stage, none of them empty, in the order of the stages' names."""

    deltas: tuple[StageDelta, ...] = ()

    @classmethod
    def of(cls, deltas: Iterable[StageDelta]) -> Action:
        """Normalise: drop empty deltas, sort by stage.

        Raises:
            ValueError: If a stage occurs twice.
        """
        kept = tuple(delta for delta in deltas if delta)
        if len(kept) < 2:
            return cls(kept)
        kept = tuple(sorted(kept, key=lambda delta: delta.stage))
        if len({delta.stage for delta in kept}) != len(kept):
            raise ValueError("a stage occurs twice in one action")
        return cls(kept)

    def on(self, stage: str) -> StageDelta:
        """The delta of one stage, an empty one if the action leaves it alone."""
        return next((delta for delta in self.deltas if delta.stage == stage), StageDelta(stage))

    def __bool__(self) -> bool:
        return bool(self.deltas)

    def __str__(self) -> str:
        return "; ".join(map(str, self.deltas)) or "hold"


HOLD = Action()


@dataclass(frozen=True, slots=True)
class GpuRoom:
    """One card: what is free, and how many replicas of each stage of this pipeline it holds."""

    free_milli: int
    free_memory: Mebibytes
    held: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """One node: free CPU and memory, how many replicas of each stage of this pipeline it holds, and its cards."""

    name: str
    free_cpu: Millicores
    free_memory: Mebibytes
    held: Mapping[str, int] = field(default_factory=dict)
    gpus: tuple[GpuRoom, ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterRoom:
    """What the cluster could still hold, as the pipeline sees it. What is wished but not granted yet counts as taken."""

    nodes: tuple[NodeRoom, ...]


@dataclass(frozen=True, slots=True)
class KnobOutcome:
    """What became of one wished knob of one stage: granted in full, in part, or refused, with the reason."""

    stage: str
    knob: str
    """replicas, cpu, memory or gpu_rate."""
    wished: int
    granted: int
    reason: str = ""


def project(allocation: Allocation, delta: StageDelta) -> Allocation:
    """The allocation after a delta; no bounds are applied but GPU shares stay in (0, 1] and replicas at 0 or more."""
    if not delta:
        return allocation
    rate = allocation.gpu_rate
    if rate is not None and delta.gpu_milli:
        rate = GpuRate(min(1000, max(1, rate.milli + delta.gpu_milli)))
    return Allocation(
        replicas=max(0, allocation.replicas + delta.replicas),
        cpu=Millicores(max(1, allocation.cpu + delta.cpu)),
        memory=Mebibytes(max(1, allocation.memory + delta.memory)),
        gpu_rate=rate,
    )


def project_all(allocations: Mapping[str, Allocation], action: Action) -> dict[str, Allocation]:
    """The allocations after an action."""
    after = dict(allocations)
    for delta in action.deltas:
        if delta.stage in after:
            after[delta.stage] = project(after[delta.stage], delta)
    return after


def difference(before: Mapping[str, Allocation], after: Mapping[str, Allocation], stages: Sequence[str]) -> Action:
    """The action that leads from one set of allocations to another."""
    deltas = []
    for name in stages:
        old, new = before[name], after[name]
        gpu = 0 if old.gpu_rate is None or new.gpu_rate is None else new.gpu_rate.milli - old.gpu_rate.milli
        deltas.append(StageDelta(name, new.replicas - old.replicas, new.cpu - old.cpu, new.memory - old.memory, gpu))
    return Action.of(deltas)
