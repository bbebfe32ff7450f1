"""From annotated workloads and Pipeline objects to the pipelines the controller scales; what disagrees is said, never guessed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from controller.cluster import ScaleTarget, Workload
from controller.state import Limits, PipelineView, StageView
from sair.annotations import Bounds
from sair.errors import InvalidInput
from sair.pipeline import Mode, Pipeline, StageBounds, topological_order
from sair.quantities import GpuRate, Mebibytes, Millicores, parse_cpu, parse_duration

__all__ = ["DEFAULT_BUDGET_PER_HOUR", "DEFAULT_SLO_S", "Found", "discover"]

T = TypeVar("T")

DEFAULT_SLO_S = 1.0
"""Where neither the Pipeline nor a stage says one."""
DEFAULT_BUDGET_PER_HOUR = 100.0
"""Where neither the Pipeline nor a stage says one, $/h."""

_SLACK = 4
"""Without bounds of its own a stage may grow to this many times what its author wrote."""


@dataclass(frozen=True, slots=True)
class Found:
    """A pipeline in the cluster."""

    view: PipelineView
    workloads: Mapping[str, Workload]
    """By stage."""
    conflicts: tuple[str, ...] = ()
    """Why it is held in recommend: stages disagree, or another autoscaler owns a workload."""
    paused: bool = False


def discover(
    workloads: Iterable[Workload], pipelines: Mapping[str, Pipeline], owners: Iterable[ScaleTarget] = ()
) -> dict[str, Found]:
    """Group workloads into pipelines.

    Args:
        workloads: All of the cluster.
        pipelines: Pipeline objects by ``namespace/name``.
        owners: What HPAs and ScaledObjects scale.

    Returns:
        By ``namespace/name``. A pipeline whose stages form a cycle or name unknown upstreams is there with that conflict and its
        stages in alphabetical order.
    """
    groups: dict[str, list[Workload]] = {}
    for workload in workloads:
        if workload.spec is not None:
            groups.setdefault(f"{workload.namespace}/{workload.spec.pipeline}", []).append(workload)
    owned = {(o.namespace, o.kind, o.name): o.owner for o in owners}
    return {key: _found(key, group, pipelines.get(key), owned) for key, group in groups.items()}


def _found(
    key: str, group: list[Workload], pipeline: Pipeline | None, owned: Mapping[tuple[str, str, str], str]
) -> Found:
    conflicts: list[str] = []
    stages: dict[str, Workload] = {}
    for workload in sorted(group, key=lambda each: (each.kind, each.name)):
        assert workload.spec is not None  # noqa: S101  # discover groups those that have one
        if workload.spec.stage in stages:
            conflicts.append(
                f"stage {workload.spec.stage} is claimed by {stages[workload.spec.stage].name} and {workload.name}"
            )
            continue
        stages[workload.spec.stage] = workload
        owner = owned.get((workload.namespace, workload.kind, workload.name))
        if owner:
            conflicts.append(f"{owner} scales {workload.kind}/{workload.name} as well")
    specs = {name: workload.spec for name, workload in stages.items() if workload.spec is not None}
    try:
        order = topological_order({name: spec.after for name, spec in specs.items()})
    except InvalidInput as error:
        conflicts.append(str(error))
        order = tuple(sorted(specs))
    slo_s = _agreed("slo-p99", {spec.slo_p99_s for spec in specs.values()}, conflicts)
    modes: set[Mode | None] = {spec.mode for spec in specs.values()}
    mode: Mode | None = _agreed("mode", modes, conflicts)
    budget = _agreed("budget-per-hour", {spec.budget_per_hour for spec in specs.values()}, conflicts)
    wish = pipeline.spec if pipeline else None
    views = []
    for name in order:
        spec, workload = specs[name], stages[name]
        bounds = _merged(spec.bounds, wish.bounds.get(name) if wish else None)
        known = set(specs)
        after = tuple(each for each in spec.after if each in known)
        views.append(
            StageView(
                name, after, spec.gpu_rate is not None, _limits(bounds, workload), spec.gpu_memory or Mebibytes(0)
            )
        )
    if wish and wish.slo_p99:
        slo_s = parse_duration(wish.slo_p99)
    wished = wish.mode if wish else None
    chosen: Mode = wished or mode or "auto"
    if conflicts and chosen == "auto":
        chosen = "recommend"
    view = PipelineView(
        key,
        tuple(views),
        slo_s=slo_s or DEFAULT_SLO_S,
        mode=chosen,
        budget_per_hour=(wish.budget_per_hour if wish and wish.budget_per_hour else budget) or DEFAULT_BUDGET_PER_HOUR,
    )
    if wish and wish.preference:
        view = replace(view, preference=wish.preference)
    return Found(view, {name: stages[name] for name in order}, tuple(conflicts), paused=chosen == "off")


def _agreed(what: str, said: Iterable[T | None], conflicts: list[str]) -> T | None:
    values = sorted({value for value in said if value is not None}, key=str)
    if len(values) > 1:
        conflicts.append(f"the stages disagree on {what}: {', '.join(map(str, values))}")
    return values[0] if values else None


def _merged(own: Bounds, wish: StageBounds | None) -> Bounds:
    if wish is None:
        return own
    return Bounds(
        gpu_rate_min=GpuRate.parse(wish.gpu_rate_min) if wish.gpu_rate_min else own.gpu_rate_min,
        gpu_rate_max=GpuRate.parse(wish.gpu_rate_max) if wish.gpu_rate_max else own.gpu_rate_max,
        replicas_min=wish.replicas_min or own.replicas_min,
        replicas_max=wish.replicas_max or own.replicas_max,
        cpu_min=parse_cpu(wish.cpu_min) if wish.cpu_min else own.cpu_min,
        cpu_max=parse_cpu(wish.cpu_max) if wish.cpu_max else own.cpu_max,
    )


def _limits(bounds: Bounds, workload: Workload) -> Limits:
    default = Limits()
    cpu_max = bounds.cpu_max or Millicores(max(workload.cpu, min(default.cpu_max, workload.cpu * _SLACK)))
    return Limits(
        replicas_min=bounds.replicas_min or default.replicas_min,
        replicas_max=bounds.replicas_max or default.replicas_max,
        cpu_min=bounds.cpu_min or min(default.cpu_min, workload.cpu),
        cpu_max=cpu_max,
        # Memory is never changed on live pods.
        memory_min=workload.memory,
        memory_max=workload.memory,
        gpu_milli_min=bounds.gpu_rate_min.milli if bounds.gpu_rate_min else default.gpu_milli_min,
        gpu_milli_max=bounds.gpu_rate_max.milli if bounds.gpu_rate_max else default.gpu_milli_max,
    )
