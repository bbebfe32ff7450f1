"""The cluster as the controller sees it: raw Deployments, StatefulSets, pods and nodes parsed into what matters here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from sair.annotations import GPU_INDEX, GPU_RATE, StageSpec, is_opted_in, parse_grant, parse_stage
from sair.errors import InvalidInput, WireError
from sair.inventory import Card, parse_inventory
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
    cpu: Millicores
    """Requests of all containers together."""
    memory: Mebibytes
    container_cpu: Millicores
    """Request of the chosen container."""
    pipeline: str | None = None
    """``namespace/name``."""
    stage: str | None = None
    spec: StageSpec | None = None
    wished: GpuRate | None = None
    granted: GpuRate | None = None
    gpu_index: int | None = None


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
    """Parse a raw Deployment or StatefulSet; malformed annotations become its ``problem``, because others must go on.

    Raises:
        WireError: If it is no workload at all.
    """
    template = field(raw, "spec", "template", default={})
    annotations = _annotations(template)
    spec, problem = None, ""
    if is_opted_in(annotations):
        try:
            spec = parse_stage(annotations)
        except InvalidInput as error:
            problem = str(error)
    containers = field(template, "spec", "containers", default=[])
    chosen = next(
        (c for c in containers if spec and c.get("name") == spec.container), containers[0] if containers else {}
    )
    return Workload(
        kind=kind,
        namespace=_name(raw, "namespace"),
        name=_name(raw, "name"),
        uid=_name(raw, "uid"),
        replicas=int(field(raw, "spec", "replicas", default=1)),
        cpu=_cpu(chosen) or _DEFAULT_CPU,
        memory=_memory(chosen) or _DEFAULT_MEMORY,
        container=str(chosen.get("name", "")),
        spec=spec,
        problem=problem,
    )


def parse_pod(raw: Mapping[str, Any]) -> PodState:
    """Parse a raw pod; of one with malformed annotations only what it occupies is kept.

    Raises:
        WireError: If it is no pod at all.
    """
    namespace, annotations = _name(raw, "namespace"), _annotations(raw)
    containers = field(raw, "spec", "containers", default=[])
    spec, wished, grant = None, None, None
    if is_opted_in(annotations):
        try:
            spec = parse_stage(annotations)
            wished = GpuRate.parse(annotations[GPU_RATE], field=GPU_RATE) if GPU_RATE in annotations else None
            grant = parse_grant(annotations) if GPU_INDEX in annotations else None
        except InvalidInput:
            spec = None
    chosen = next(
        (c for c in containers if spec and c.get("name") == spec.container), containers[0] if containers else {}
    )
    conditions = field(raw, "status", "conditions", default=[])
    phase = field(raw, "status", "phase", default="")
    return PodState(
        namespace=namespace,
        name=_name(raw, "name"),
        uid=_name(raw, "uid"),
        node=field(raw, "spec", "nodeName"),
        host=field(raw, "status", "podIP"),
        ready=any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions),
        alive=phase in ("Pending", "Running") and field(raw, "metadata", "deletionTimestamp") is None,
        cpu=Millicores(sum(_cpu(c) or 0 for c in containers)),
        memory=Mebibytes(sum(_memory(c) or 0 for c in containers)),
        container_cpu=_cpu(chosen) or _DEFAULT_CPU,
        pipeline=f"{namespace}/{spec.pipeline}" if spec else None,
        stage=spec.stage if spec else None,
        spec=spec,
        wished=wished,
        granted=grant[0] if grant else None,
        gpu_index=grant[1] if grant else None,
    )


def parse_node(raw: Mapping[str, Any]) -> NodeState:
    """Parse a raw node.

    Raises:
        WireError: If its inventory of GPUs is malformed.
    """
    allocatable = field(raw, "status", "allocatable", default={})
    conditions = field(raw, "status", "conditions", default=[])
    ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
    cordoned = bool(field(raw, "spec", "unschedulable", default=False))
    cpu = int(parse_quantity(str(allocatable.get("cpu", "0")), field="allocatable.cpu") * 1000)
    memory = int(parse_quantity(str(allocatable.get("memory", "0")), field="allocatable.memory") / _MEBIBYTE)
    return NodeState(
        name=_name(raw, "name"),
        cpu=Millicores(cpu),
        memory=Mebibytes(memory),
        schedulable=ready and not cordoned,
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


def _cpu(container: Mapping[str, Any]) -> Millicores | None:
    text = field(container, "resources", "requests", "cpu") or field(container, "resources", "limits", "cpu")
    return None if text is None else Millicores(int(parse_quantity(str(text), field="cpu") * 1000))


def _memory(container: Mapping[str, Any]) -> Mebibytes | None:
    text = field(container, "resources", "requests", "memory") or field(container, "resources", "limits", "memory")
    return None if text is None else Mebibytes(int(parse_quantity(str(text), field="memory") / _MEBIBYTE))
