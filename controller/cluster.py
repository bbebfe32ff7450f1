"""The cluster as the controller sees it: raw Deployments, StatefulSets, pods and nodes parsed into what matters here."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sair.annotations import (
    GPU_GRANTED,
    GPU_INDEX,
    GPU_RATE,
    PIPELINE,
    StageSpec,
    is_opted_in,
    parse_grant,
    parse_stage,
)
from sair.errors import InvalidInput, WireError
from sair.inventory import Card, parse_inventory
from sair.pipeline import REPLICAS_MOST
from sair.quantities import GpuRate, Mebibytes, Millicores, parse_quantity
from sair.wire import field

__all__ = [
    "NodeState",
    "PodState",
    "ScaleTarget",
    "Workload",
    "parse_node",
    "parse_pod",
    "parse_scale_target",
    "parse_workload",
]

_DEFAULT_CPU: Final = Millicores(1000)
_DEFAULT_MEMORY: Final = Mebibytes(512)
_MEBIBYTE: Final = 2**20

_CLOSED: Final = ("node.kubernetes.io/", "node-role.kubernetes.io/")
"""Taints that only system pods tolerate."""

Kind = Literal["Deployment", "StatefulSet"]


@dataclass(frozen=True, slots=True)
class Workload:
    """A Deployment or StatefulSet; ``spec`` is None for one that did not opt in."""

    kind: Kind
    namespace: str
    name: str
    uid: str
    replicas: int
    """Wanted."""
    cpu: Millicores
    """Request of the chosen container."""
    memory: Mebibytes
    container: str
    spec: StageSpec | None
    problem: str = ""
    """Why its annotations cannot be used."""
    meant: str = ""
    """``namespace/name`` of the pipeline it names, even if the rest of its annotations cannot be used."""
    failure: str = ""
    """Why pods of it cannot be created now: a quota, an admission policy. Only Deployments say."""


@dataclass(frozen=True, slots=True)
class PodState:
    """A pod; ``stage`` and ``pipeline`` are None for one that did not opt in."""

    namespace: str
    name: str
    uid: str
    node: str | None
    host: str | None
    """Its address."""
    ready: bool
    alive: bool
    """Neither finished nor being deleted."""
    occupies: bool
    """Not finished: what it has is taken, even while it is being deleted."""
    cpu: Millicores
    """Requests of all containers together, as the scheduler counts them."""
    memory: Mebibytes
    container: str
    """The chosen container."""
    container_cpu: Millicores
    """Request of the chosen container."""
    container_limit: Millicores | None
    """CPU limit of the chosen container."""
    container_has: Millicores | None
    """What the node has really given the chosen container; None before the node says."""
    began_s: float | None = None
    """When the chosen container was started last, Unix seconds; None while it does not run."""
    resize_problem: str = ""
    """Why the node cannot do a resize that was asked for, now or ever."""
    unplaced: str = ""
    """Why the scheduler has put it on no node so far; empty before it has tried."""
    pipeline: str | None = None
    """``namespace/name``."""
    stage: str | None = None
    spec: StageSpec | None = None
    wished: GpuRate | None = None
    granted: GpuRate | None = None
    gpu_index: int | None = None

    @property
    def key(self) -> str:
        """``namespace/pod/uid``."""
        return f"{self.namespace}/{self.name}/{self.uid}"


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node that pods can be put on, or not."""

    name: str
    cpu: Millicores
    memory: Mebibytes
    schedulable: bool
    cards: tuple[Card, ...]


@dataclass(frozen=True, slots=True)
class ScaleTarget:
    """What an HPA or a KEDA ScaledObject scales."""

    owner: str
    """``HorizontalPodAutoscaler/<name>`` or ``ScaledObject/<name>``."""
    namespace: str
    kind: str
    name: str


def parse_workload(raw: Mapping[str, Any], kind: Kind) -> Workload:
    """Parse a raw Deployment or StatefulSet; malformed annotations, or more replicas than a stage may have, become its ``problem``,
    because others must go on.

    Raises:
        WireError: If it is no workload at all.
    """
    template = field(raw, "spec", "template", default={})
    annotations = _annotations(template)
    spec, problem, meant = None, "", ""
    replicas = int(field(raw, "spec", "replicas", default=1))
    if is_opted_in(annotations):
        meant = f"{_name(raw, 'namespace')}/{annotations.get(PIPELINE, '')}"
        try:
            _judge_replicas(replicas)
            spec = parse_stage(annotations)
        except InvalidInput as error:
            problem = str(error)
    chosen = _chosen(field(template, "spec", "containers", default=[]), spec)
    return Workload(
        kind=kind,
        namespace=_name(raw, "namespace"),
        name=_name(raw, "name"),
        uid=_name(raw, "uid"),
        replicas=replicas,
        cpu=_cpu(chosen) or _DEFAULT_CPU,
        memory=_memory(chosen) or _DEFAULT_MEMORY,
        container=str(chosen.get("name", "")),
        spec=spec,
        problem=problem,
        meant=meant,
        failure=_reason(_condition(raw, "ReplicaFailure"), "True"),
    )


def _judge_replicas(replicas: int) -> None:
    """Raises: InvalidInput: If a stage may not have so many."""
    if replicas > REPLICAS_MOST:
        raise InvalidInput("spec.replicas", replicas, f"at most {REPLICAS_MOST} replicas of a stage")


def parse_pod(raw: Mapping[str, Any]) -> PodState:
    """Parse a raw pod; of one with malformed annotations only what it occupies is kept.

    Raises:
        WireError: If it is no pod at all.
    """
    namespace, annotations = _name(raw, "namespace"), _annotations(raw)
    containers = field(raw, "spec", "containers", default=[])
    spec: StageSpec | None = None
    if is_opted_in(annotations):
        with contextlib.suppress(InvalidInput):
            spec = parse_stage(annotations)
    granted, gpu_index = _grant(annotations)
    chosen = _chosen(containers, spec)
    status = _status(raw, str(chosen.get("name", "")))
    phase = field(raw, "status", "phase", default="Pending")
    occupies = phase not in ("Succeeded", "Failed")
    cpu, memory = _requests(field(raw, "spec", default={}))
    return PodState(
        namespace=namespace,
        name=_name(raw, "name"),
        uid=_name(raw, "uid"),
        node=field(raw, "spec", "nodeName"),
        host=field(raw, "status", "podIP"),
        ready=_condition(raw, "Ready").get("status") == "True",
        alive=occupies and field(raw, "metadata", "deletionTimestamp") is None,
        occupies=occupies,
        cpu=cpu,
        memory=memory,
        container=str(chosen.get("name", "")),
        container_cpu=_cpu(chosen) or _DEFAULT_CPU,
        container_limit=_millicores(field(chosen, "resources", "limits", "cpu")),
        container_has=_cpu(status),
        began_s=_began(status),
        resize_problem=_reason(_condition(raw, "PodResizePending"), "True"),
        unplaced="" if field(raw, "spec", "nodeName") else _reason(_condition(raw, "PodScheduled"), "False"),
        pipeline=f"{namespace}/{spec.pipeline}" if spec else None,
        stage=spec.stage if spec else None,
        spec=spec,
        wished=_wished(annotations),
        granted=granted,
        gpu_index=gpu_index,
    )


def parse_node(raw: Mapping[str, Any]) -> NodeState:
    """Parse a raw node.

    Raises:
        WireError: If its inventory of GPUs is malformed.
    """
    allocatable = field(raw, "status", "allocatable", default={})
    ready = _condition(raw, "Ready").get("status") == "True"
    closed = bool(field(raw, "spec", "unschedulable", default=False)) or any(
        str(taint.get("key", "")).startswith(_CLOSED) and taint.get("effect") != "PreferNoSchedule"
        for taint in field(raw, "spec", "taints", default=[])
    )
    cpu = int(parse_quantity(str(allocatable.get("cpu", "0")), field="allocatable.cpu") * 1000)
    memory = int(parse_quantity(str(allocatable.get("memory", "0")), field="allocatable.memory") / _MEBIBYTE)
    return NodeState(
        name=_name(raw, "name"),
        cpu=Millicores(cpu),
        memory=Mebibytes(memory),
        schedulable=ready and not closed,
        cards=parse_inventory(raw),
    )


def parse_scale_target(raw: Mapping[str, Any], owner_kind: str) -> ScaleTarget:
    """Parse a raw HorizontalPodAutoscaler or ScaledObject.

    Raises:
        WireError: If it has no target.
    """
    target = field(raw, "spec", "scaleTargetRef", default={})
    name = target.get("name")
    if not name:
        raise WireError("spec.scaleTargetRef.name", name, "the name of a workload")
    return ScaleTarget(
        f"{owner_kind}/{_name(raw, 'name')}", _name(raw, "namespace"), target.get("kind", "Deployment"), name
    )


def _name(raw: Mapping[str, Any], what: str) -> str:
    value = field(raw, "metadata", what)
    if not isinstance(value, str) or not value:
        raise WireError(f"metadata.{what}", value, "a non-empty text")
    return value


def _annotations(raw: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: value for key, value in field(raw, "metadata", "annotations", default={}).items() if isinstance(value, str)
    }


def _chosen(containers: Sequence[Mapping[str, Any]], spec: StageSpec | None) -> Mapping[str, Any]:
    """The container of the stage: the annotated one, else the first."""
    named = (one for one in containers if spec is not None and one.get("name") == spec.container)
    return next(named, containers[0] if containers else {})


def _wished(annotations: Mapping[str, str]) -> GpuRate | None:
    with contextlib.suppress(InvalidInput):
        return GpuRate.parse(annotations[GPU_RATE], field=GPU_RATE) if GPU_RATE in annotations else None
    return None


def _grant(annotations: Mapping[str, str]) -> tuple[GpuRate | None, int | None]:
    """What the extender wrote counts whatever its user wrote beside it."""
    with contextlib.suppress(InvalidInput):
        return parse_grant({key: annotations[key] for key in (GPU_GRANTED, GPU_INDEX) if key in annotations}) or (
            None,
            None,
        )
    return None, None


def _condition(raw: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    conditions: Sequence[Mapping[str, Any]] = field(raw, "status", "conditions", default=[])
    return next((one for one in conditions if one.get("type") == kind), {})


def _reason(condition: Mapping[str, Any], status: str) -> str:
    """Reason and message of a condition that has this status; empty if it has another one."""
    if condition.get("status") != status:
        return ""
    return f"{condition.get('reason') or condition.get('type')}: {condition.get('message') or 'no message'}"


def _status(raw: Mapping[str, Any], container: str) -> Mapping[str, Any]:
    statuses: Sequence[Mapping[str, Any]] = field(raw, "status", "containerStatuses", default=[])
    return next((one for one in statuses if one.get("name") == container), {})


def _began(status: Mapping[str, Any]) -> float | None:
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(str(field(status, "state", "running", "startedAt", default=""))).timestamp()
    return None


def _requests(spec: Mapping[str, Any]) -> tuple[Millicores, Mebibytes]:
    """What the scheduler counts: containers and sidecars together, or the largest init container if that is more, and the overhead.

    https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers
    """
    running = [(_cpu(one) or 0, _memory(one) or 0) for one in field(spec, "containers", default=[])]
    most = [(0, 0)]
    for one in field(spec, "initContainers", default=[]):
        needs = (_cpu(one) or 0, _memory(one) or 0)
        if one.get("restartPolicy") == "Always":
            running.append(needs)
        else:
            most.append(needs)
    overhead = field(spec, "overhead", default={})
    cpu = max(sum(cpu for cpu, _ in running), *(cpu for cpu, _ in most), 0)
    memory = max(sum(memory for _, memory in running), *(memory for _, memory in most), 0)
    return (
        Millicores(cpu + (_millicores(overhead.get("cpu")) or 0)),
        Mebibytes(memory + (_mebibytes(overhead.get("memory")) or 0)),
    )


def _cpu(container: Mapping[str, Any]) -> Millicores | None:
    request = field(container, "resources", "requests", "cpu")
    return _millicores(field(container, "resources", "limits", "cpu") if request is None else request)


def _memory(container: Mapping[str, Any]) -> Mebibytes | None:
    request = field(container, "resources", "requests", "memory")
    return _mebibytes(field(container, "resources", "limits", "memory") if request is None else request)


def _millicores(text: object) -> Millicores | None:
    return None if text is None else Millicores(math.ceil(parse_quantity(str(text), field="cpu") * 1000))


def _mebibytes(text: object) -> Mebibytes | None:
    return None if text is None else Mebibytes(math.ceil(parse_quantity(str(text), field="memory") / _MEBIBYTE))
