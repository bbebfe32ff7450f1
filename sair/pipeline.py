"""The Pipeline object (``sair.dev/v1alpha1``): the one handoff between the components, and what ``kubectl get pipelines`` shows."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, get_args

import msgspec

from sair.errors import WireError
from sair.quantities import GpuRate, parse_cpu, parse_duration
from sair.wire import convert, to_builtins

__all__ = [
    "API_VERSION",
    "CONDITION_TYPES",
    "GROUP",
    "KIND",
    "MODES",
    "PLURAL",
    "REPLICAS_MOST",
    "VERSION",
    "Condition",
    "ConditionType",
    "Decision",
    "Metadata",
    "Mode",
    "Pipeline",
    "PipelineSpec",
    "PipelineStatus",
    "Rollback",
    "RollbackStage",
    "RollbackStatus",
    "StageBounds",
    "StageStatus",
    "parse_pipeline",
    "topological_order",
    "with_condition",
]

GROUP: Final = "sair.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "Pipeline"
PLURAL: Final = "pipelines"
REPLICAS_MOST: Final = 10_000
"""Of one stage: what a round costs grows with them."""

Mode = Literal["off", "recommend", "auto"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)

ConditionType = Literal[
    "MetricsAvailable",
    "MemoryAvailable",
    "LLMReady",
    "FallbackActive",
    "ScalingLimited",
    "Paused",
    "Conflict",
    "ModelDrift",
]
CONDITION_TYPES: Final[tuple[ConditionType, ...]] = get_args(ConditionType)


class _Raw(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """Camel case at the wire, as Kubernetes has it."""


class StageBounds(_Raw, frozen=True, kw_only=True):
    """Limits of one stage's knobs as the Pipeline's author sets them; they go before the pod template's annotations."""

    gpu_rate_min: str | None = None
    gpu_rate_max: str | None = None
    replicas_min: int | None = None
    replicas_max: int | None = None
    cpu_min: str | None = None
    cpu_max: str | None = None


class RollbackStage(_Raw, frozen=True, kw_only=True):
    """What one stage is to have again."""

    name: str
    replicas: int
    cpu: str
    """Request of each replica."""
    gpu_rate: str | None = None
    """Share per replica; absent for a stage that had none."""


class Rollback(_Raw, frozen=True, kw_only=True):
    """A request to have earlier allocations again and to keep them; ``sair rollback --apply`` writes it."""

    at: str
    """When it was asked for; tells one request from another."""
    round: int
    """The round that is undone, for people: what is to be had again stands in ``stages``."""
    until: str | None = None
    """Until when nothing else is applied; absent: until the request is taken back."""
    stages: tuple[RollbackStage, ...] = ()


class PipelineSpec(_Raw, frozen=True, kw_only=True):
    """What the user wants; every field is optional and goes before what the stages' annotations say."""

    slo_p99: str | None = None
    """Upper bound of the end-to-end P99 latency, a duration such as 250ms."""
    mode: Mode | None = None
    budget_per_hour: float | None = None
    """Cap of the projected cost, $/h."""
    preference: float | None = None
    """Fraction of the SLO that the predicted P99 may use, (0, 1]: low = fast and dear, high = cheap. Default 0.85."""
    bounds: dict[str, StageBounds] = {}
    rollback: Rollback | None = None


class StageStatus(_Raw, frozen=True, kw_only=True):
    """One stage as the controller last saw it."""

    name: str
    after: tuple[str, ...] = ()
    workload: str | None = None
    """``Deployment/<name>`` or ``StatefulSet/<name>``."""
    replicas: int = 0
    ready_replicas: int = 0
    gpu_rate: str | None = None
    """Desired share per replica; the webhook stamps it on new pods."""
    gpu_granted: str | None = None
    """Lowest share granted to a live replica."""
    cpu: str | None = None
    memory: str | None = None
    utilisation: float | None = None
    queue_depth: float | None = None


class Decision(_Raw, frozen=True, kw_only=True):
    """The last decision, in words a person can read."""

    round: int
    time: str
    policy: str
    """Who decided: llm, in-context, hold, probe, reflex, rollback."""
    action: str
    reason: str = ""


class Condition(_Raw, frozen=True, kw_only=True):
    """A condition as Kubernetes defines it."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    last_transition_time: str
    observed_generation: int | None = None


class RollbackStatus(_Raw, frozen=True, kw_only=True):
    """What became of the request in ``spec.rollback``."""

    at: str
    """Of the request."""
    outcome: Literal["Done", "Partly", "Refused"]
    """Partly: the cluster did not grant all of it (yet). Refused: nothing was changed, and nothing is held."""
    round: int
    """As which round it stands in the journal."""
    message: str = ""


class PipelineStatus(_Raw, frozen=True, kw_only=True):
    """What is; written by the controller alone."""

    observed_generation: int | None = None
    stages: tuple[StageStatus, ...] = ()
    bottleneck: str | None = None
    p99_seconds: float | None = None
    slo_seconds: float | None = None
    arrivals_per_second: float | None = None
    cost_per_hour: float | None = None
    mode: Mode | None = None
    last_decision: Decision | None = None
    rollback: RollbackStatus | None = None
    conditions: tuple[Condition, ...] = ()

    def stage(self, name: str) -> StageStatus | None:
        """The status of one stage, None if the controller has not seen it yet."""
        return next((stage for stage in self.stages if stage.name == name), None)


class Metadata(_Raw, frozen=True, kw_only=True):
    """The part of ObjectMeta that SAIR uses."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0


class Pipeline(_Raw, frozen=True, kw_only=True):
    """A Pipeline as it stands in the API server."""

    metadata: Metadata
    spec: PipelineSpec = PipelineSpec()
    status: PipelineStatus = PipelineStatus()

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    def to_raw(self) -> dict[str, Any]:
        """The object as the API server takes it."""
        raw: dict[str, Any] = to_builtins(self)
        return {"apiVersion": API_VERSION, "kind": KIND, **raw}


def parse_pipeline(raw: Mapping[str, Any]) -> Pipeline:
    """Parse a raw Pipeline object and check what the schema alone cannot.

    Raises:
        WireError: Names the field, the value and what is allowed.
    """
    pipeline = convert(raw, Pipeline, what=KIND)
    spec = pipeline.spec
    if spec.slo_p99 is not None:
        parse_duration(spec.slo_p99, field="spec.sloP99")
    if spec.budget_per_hour is not None and not 0 < spec.budget_per_hour < float("inf"):
        raise WireError("spec.budgetPerHour", spec.budget_per_hour, "a positive amount of dollars per hour")
    if spec.preference is not None and not 0 < spec.preference <= 1:
        raise WireError("spec.preference", spec.preference, "a number in (0, 1]")
    for stage, bounds in spec.bounds.items():
        _check_bounds(f"spec.bounds.{stage}", bounds)
    return pipeline


def topological_order(upstreams: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Order stages so that each follows all of its upstreams; ties in alphabetical order.

    Args:
        upstreams: For each stage the stages it takes work from.

    Raises:
        WireError: If an upstream is unknown or the stages form a cycle.
    """
    for stage, names in upstreams.items():
        for name in names:
            if name not in upstreams:
                raise WireError(
                    f"stage {stage} after", name, "a stage of the same pipeline: " + ", ".join(sorted(upstreams))
                )
    sorter = graphlib.TopologicalSorter({stage: sorted(names) for stage, names in upstreams.items()})
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        raise WireError("stages", " → ".join(error.args[1]), "stages without a cycle") from error
    order: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        order.extend(ready)
        sorter.done(*ready)
    return tuple(order)


def with_condition(conditions: Sequence[Condition], new: Condition) -> tuple[Condition, ...]:
    """Set one condition: its transition time moves only if its status changes."""
    kept = []
    for old in conditions:
        if old.type != new.type:
            kept.append(old)
        elif old.status == new.status:
            new = msgspec.structs.replace(new, last_transition_time=old.last_transition_time)
    return tuple(sorted([*kept, new], key=lambda condition: condition.type))


def _check_bounds(path: str, bounds: StageBounds) -> None:
    texts = (("gpuRateMin", bounds.gpu_rate_min), ("gpuRateMax", bounds.gpu_rate_max))
    rates = [GpuRate.parse(text, field=f"{path}.{name}") for name, text in texts if text]
    texts = (("cpuMin", bounds.cpu_min), ("cpuMax", bounds.cpu_max))
    cores = [parse_cpu(text, field=f"{path}.{name}") for name, text in texts if text]
    if len(rates) == 2 and rates[0] > rates[1]:
        raise WireError(
            f"{path}.gpuRateMin", bounds.gpu_rate_min, f"at most gpuRateMax, which is {bounds.gpu_rate_max}"
        )
    if len(cores) == 2 and cores[0] > cores[1]:
        raise WireError(f"{path}.cpuMin", bounds.cpu_min, f"at most cpuMax, which is {bounds.cpu_max}")
    low, high = bounds.replicas_min, bounds.replicas_max
    if low is not None and low < 1:
        raise WireError(f"{path}.replicasMin", low, "at least 1")
    if low is not None and high is not None and low > high:
        raise WireError(f"{path}.replicasMin", low, f"at most replicasMax, which is {high}")
