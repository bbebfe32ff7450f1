"""From annotated workloads and Pipeline objects to the pipelines the controller scales; what disagrees is said, never guessed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from controller.cluster import ScaleTarget, Workload
from controller.model import PATHS_MOST, path_count
from controller.state import Allocation, Limits, PipelineView, Rollback, StageView
from sair.annotations import Bounds, StageSpec
from sair.errors import InvalidInput
from sair.pipeline import Mode, Pipeline, PipelineSpec, PipelineStatus, StageBounds, topological_order
from sair.quantities import GpuRate, Mebibytes, Millicores, parse_cpu, parse_duration, parse_moment

__all__ = ["DEFAULT_BUDGET_PER_HOUR", "DEFAULT_SLO_S", "Discovery", "Found", "discover"]

T = TypeVar("T", float, Mode)

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
    status: PipelineStatus = field(default_factory=PipelineStatus)
    """As it stands in the Pipeline object: what an earlier leader wished for."""


def discover(
    workloads: Iterable[Workload],
    pipelines: Mapping[str, Pipeline],
    owners: Iterable[ScaleTarget] = (),
    unreadable: Mapping[str, str] | None = None,
) -> dict[str, Found]:
    """Group workloads into pipelines.

    Args:
        workloads: All of the cluster.
        pipelines: Pipeline objects by ``namespace/name``.
        owners: What HPAs and ScaledObjects scale.
        unreadable: What is wrong with those Pipeline objects whose latest version makes no sense.

    Returns:
        By ``namespace/name``. A pipeline whose stages form a cycle or name unknown upstreams is there with that conflict; of a cycle
        all stages count as sources, in alphabetical order.
    """
    return Discovery().discover(workloads, pipelines, owners, unreadable)


class Discovery:
    """``discover``, again and again: what is found of a pipeline is worked out anew only if something of it changed.

    A Pipeline's status changes with every round of it; with a thousand pipelines something changes thirty times a second.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[Any, ...], Found]] = {}
        self._groups: dict[str, list[Workload]] = {}
        self._broken: dict[str, list[str]] = {}
        self._owned: dict[tuple[str, str, str], str] = {}
        self._pipelines: Mapping[str, Pipeline] = {}
        self._unreadable: Mapping[str, str] = {}

    def discover(
        self,
        workloads: Iterable[Workload],
        pipelines: Mapping[str, Pipeline],
        owners: Iterable[ScaleTarget] = (),
        unreadable: Mapping[str, str] | None = None,
    ) -> dict[str, Found]:
        """As ``discover``."""
        self._groups, self._broken = {}, {}
        for workload in workloads:
            if workload.spec is not None:
                self._groups.setdefault(f"{workload.namespace}/{workload.spec.pipeline}", []).append(workload)
            elif workload.problem:
                said = f"{workload.kind}/{workload.name}: {workload.problem}"
                self._broken.setdefault(workload.meant, []).append(said)
        self._owned = {(o.namespace, o.kind, o.name): o.owner for o in owners}
        self._pipelines, self._unreadable = pipelines, dict(unreadable or {})
        self._known = {key: self._again(key) for key in self._groups}
        return self._found()

    def follow(self, pipelines: Mapping[str, Pipeline], unreadable: Mapping[str, str]) -> dict[str, Found]:
        """The same where nothing but Pipeline objects has changed since: only those that did are looked at."""
        before, said = self._pipelines, self._unreadable
        self._pipelines, self._unreadable = pipelines, dict(unreadable)
        changed = {key for key in before.keys() | pipelines.keys() if before.get(key) is not pipelines.get(key)}
        changed |= {key for key in said.keys() | unreadable.keys() if said.get(key) != unreadable.get(key)}
        for key in changed & self._groups.keys():
            self._known[key] = self._again(key)
        return self._found()

    def _found(self) -> dict[str, Found]:
        return {key: found for key, (_, found) in self._known.items()}

    def _again(self, key: str) -> tuple[tuple[Any, ...], Found]:
        """What a pipeline is found from, and what is found; what it was before where that is the same."""
        group, pipeline = self._groups[key], self._pipelines.get(key)
        conflicts = sorted(self._broken.get(key, ()))
        if key in self._unreadable:
            conflicts.append(f"the Pipeline object: {self._unreadable[key]}")
        owned = self._owned
        owning = tuple(owned.get((each.namespace, each.kind, each.name)) for each in group) if owned else ()
        basis = (group, pipeline, tuple(conflicts), owning)
        before = self._known.get(key)
        if before is not None and _same(before[0], basis):
            return before
        return basis, _found(key, group, pipeline, owned, conflicts)


def _same(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    """The very same objects: a copy of the cluster gives an object that did not change as the object it was."""
    return (
        len(before[0]) == len(now[0])
        and all(old is new for old, new in zip(before[0], now[0], strict=True))
        and before[1] is now[1]
        and before[2:] == now[2:]
    )


def _found(
    key: str,
    group: list[Workload],
    pipeline: Pipeline | None,
    owned: Mapping[tuple[str, str, str], str],
    conflicts: list[str],
) -> Found:
    stages = _stages(group, owned, conflicts)
    specs = {name: workload.spec for name, workload in stages.items() if workload.spec is not None}
    upstreams = _upstreams(specs, conflicts)
    wish = pipeline.spec if pipeline else PipelineSpec()
    conflicts += [f"spec.bounds names {name}, which is no stage" for name in sorted(wish.bounds.keys() - specs.keys())]
    slo_s = (
        parse_duration(wish.slo_p99)
        if wish.slo_p99
        else _agreed("slo-p99", (s.slo_p99_s for s in specs.values()), conflicts)
    )
    budget = wish.budget_per_hour or _agreed("budget-per-hour", (s.budget_per_hour for s in specs.values()), conflicts)
    modes: Iterator[Mode | None] = (spec.mode for spec in specs.values())
    mode: Mode = wish.mode or _agreed("mode", modes, conflicts) or "auto"
    views = tuple(
        StageView(
            name,
            after,
            specs[name].gpu_rate is not None,
            _limits(name, _merged(specs[name].bounds, wish.bounds.get(name)), stages[name], conflicts),
            specs[name].gpu_memory or Mebibytes(0),
        )
        for name, after in upstreams.items()
    )
    again = _rollback(pipeline, stages, conflicts) if pipeline else None
    view = PipelineView(
        key,
        views,
        slo_s=slo_s or DEFAULT_SLO_S,
        mode="recommend" if conflicts and mode == "auto" else mode,
        budget_per_hour=budget or DEFAULT_BUDGET_PER_HOUR,
        rollback=again,
    )
    if wish.preference:
        view = replace(view, preference=wish.preference)
    return Found(
        view,
        {name: stages[name] for name in upstreams},
        tuple(conflicts),
        pipeline.status if pipeline else PipelineStatus(),
    )


def _stages(
    group: list[Workload], owned: Mapping[tuple[str, str, str], str], conflicts: list[str]
) -> dict[str, Workload]:
    stages: dict[str, Workload] = {}
    for workload in sorted(group, key=lambda each: (each.kind, each.name)):
        assert workload.spec is not None  # noqa: S101  # discover groups those that have one
        name = workload.spec.stage
        if name in stages:
            conflicts.append(f"stage {name} is claimed by {stages[name].name} and {workload.name}")
            continue
        stages[name] = workload
        owner = owned.get((workload.namespace, workload.kind, workload.name))
        if owner:
            conflicts.append(f"{owner} scales {workload.kind}/{workload.name} as well")
    return stages


def _upstreams(specs: Mapping[str, StageSpec], conflicts: list[str]) -> dict[str, tuple[str, ...]]:
    """Each stage's upstreams, in topological order of the stages."""
    known = {name: tuple(each for each in spec.after if each in specs) for name, spec in specs.items()}
    for name, spec in sorted(specs.items()):
        unknown = [each for each in spec.after if each not in specs]
        if unknown:
            conflicts.append(f"stage {name} comes after {', '.join(unknown)}, which the pipeline does not have")
    try:
        ordered = {name: known[name] for name in topological_order(known)}
        if (paths := path_count(ordered)) > PATHS_MOST:
            conflicts.append(f"{paths} paths lead through its stages, P99 is worked out along at most {PATHS_MOST}")
        return ordered
    except InvalidInput as error:
        conflicts.append(str(error))
        return dict.fromkeys(sorted(specs), ())


def _agreed(what: str, said: Iterable[T | None], conflicts: list[str]) -> T | None:
    """What all say who say anything; if they disagree, the least: the strictest SLO, the smallest budget."""
    values = sorted({value for value in said if value is not None})
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


def _limits(name: str, bounds: Bounds, workload: Workload, conflicts: list[str]) -> Limits:
    """Bounds with all defaults filled in; a default gives way to a bound that somebody set."""
    default = Limits()
    low, high = bounds.gpu_rate_min, bounds.gpu_rate_max
    gpu = _range(
        f"{name} gpu-rate",
        (low.milli if low else None, high.milli if high else None),
        (default.gpu_milli_min, default.gpu_milli_max),
        conflicts,
    )
    replicas = _range(
        f"{name} replicas",
        (bounds.replicas_min, bounds.replicas_max),
        (default.replicas_min, max(default.replicas_max, workload.replicas)),
        conflicts,
    )
    cpu = _range(
        f"{name} cpu",
        (bounds.cpu_min, bounds.cpu_max),
        (min(default.cpu_min, workload.cpu), max(workload.cpu, min(default.cpu_max, workload.cpu * _SLACK))),
        conflicts,
    )
    return Limits(
        replicas_min=replicas[0],
        replicas_max=replicas[1],
        cpu_min=Millicores(cpu[0]),
        cpu_max=Millicores(cpu[1]),
        # Memory is never changed on live pods.
        memory_min=workload.memory,
        memory_max=workload.memory,
        gpu_milli_min=gpu[0],
        gpu_milli_max=gpu[1],
    )


def _rollback(pipeline: Pipeline, stages: Mapping[str, Workload], conflicts: list[str]) -> Rollback | None:
    """The rollback that is asked for, of the stages there are; None if there is none or it was refused."""
    wish, answer = pipeline.spec.rollback, pipeline.status.rollback
    answered = wish is not None and answer is not None and answer.at == wish.at
    if wish is None or (answered and answer is not None and answer.outcome == "Refused"):
        return None
    wanted: dict[str, Allocation] = {}
    try:
        until_s = None if wish.until is None else parse_moment(wish.until, field="until")
        for each in wish.stages:
            if each.name in stages:
                rate = GpuRate.parse(each.gpu_rate, field=f"stages[{each.name}].gpuRate") if each.gpu_rate else None
                cpu = parse_cpu(each.cpu, field=f"stages[{each.name}].cpu")
                # Memory is never changed on live pods.
                wanted[each.name] = Allocation(each.replicas, cpu, stages[each.name].memory, rate)
    except InvalidInput as error:
        conflicts.append(f"spec.rollback: {error}")
        return None
    return Rollback(wish.at, wish.round, until_s, wanted, done=answered)


def _range(
    what: str, wanted: tuple[int | None, int | None], default: tuple[int, int], conflicts: list[str]
) -> tuple[int, int]:
    low, high = wanted
    if low is not None and high is not None:
        if low > high:  # one stands in the Pipeline, the other in an annotation
            conflicts.append(f"the least {what} is above the most, by the Pipeline and the annotations together")
            return high, high
        return low, high
    if low is not None:
        return low, max(low, default[1])
    if high is not None:
        return min(high, default[0]), high
    return default
