"""What the ledger needs to know of a pod, and how it is read out of the API server's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sair.annotations import GPU_MEMORY, GPU_RATE, PIPELINE, STAGE, Bounds, parse_grant
from sair.errors import InvalidInput, WireError
from sair.quantities import GpuRate, Mebibytes, parse_memory
from sair.wire import field

__all__ = ["Replica", "parse_replica"]

_ENDED = ("Succeeded", "Failed")
_UNBOUNDED = Bounds()


@dataclass(frozen=True, slots=True)
class Replica:
    """One pod at one version.

    A pod that never touches a GPU is one too (``wants_gpu`` and ``holds_gpu`` are False), because the scheduler asks about it as well.
    """

    uid: str
    namespace: str
    name: str
    version: int
    """Its resource version. Kubernetes promises that those of its own resources grow; equal versions are equal objects."""
    pipeline: str = ""
    stage: str = ""
    desired: GpuRate | None = None
    """The share its annotation wishes for; None: no GPU, or a wish that cannot be read (see ``problem``). A wish for its stage goes
    before it."""
    bounds: Bounds = _UNBOUNDED
    """Its own limits of the share; the others are not read."""
    memory: Mebibytes = Mebibytes(0)
    """GPU memory limit; 0 without one."""
    node: str | None = None
    """Where it is bound."""
    granted: GpuRate | None = None
    index: int | None = None
    """GPU on the node; there exactly if ``granted`` is."""
    ended: bool = False
    """All its containers have ended for good: it holds nothing any more."""
    deleting: bool = False
    problem: str | None = None
    """What is wrong with its annotations."""

    @property
    def key(self) -> str:
        """``namespace/name``, as logs and stores name it."""
        return f"{self.namespace}/{self.name}"

    @property
    def pipeline_key(self) -> str:
        """``namespace/pipeline``, as the Pipeline object is named."""
        return f"{self.namespace}/{self.pipeline}"

    @property
    def stage_key(self) -> str:
        """The stage it is a replica of, unique in the cluster."""
        return f"{self.namespace}/{self.pipeline}/{self.stage}"

    @property
    def wants_gpu(self) -> bool:
        """Whether it asks for a share."""
        return self.desired is not None or self.problem is not None

    @property
    def holds_gpu(self) -> bool:
        """Whether it is entitled to a share of a card right now."""
        return self.node is not None and self.granted is not None and not self.ended

    @property
    def seat(self) -> tuple[str, int] | None:
        """Node and index of the card on which it holds a share."""
        if self.node is None or self.index is None or self.ended:
            return None
        return (self.node, self.index)


def parse_replica(raw: Mapping[str, Any]) -> Replica:
    """Read a raw Pod.

    Annotations are read leniently where strictness would lose count of a GPU: a pod whose wish is malformed still holds what it was
    granted, and the problem is noted.

    Raises:
        WireError: If it has no uid, name, namespace or numeric resource version, or if its grant is malformed.
    """
    annotations = {str(key): str(value) for key, value in field(raw, "metadata", "annotations", default={}).items()}
    grant, desired, memory, problem = None, None, Mebibytes(0), None
    try:
        grant = parse_grant(annotations)
    except InvalidInput as error:
        # Shares may only be lost from sight loudly: a bound pod with an unreadable grant is flagged and keeps its last good one.
        if field(raw, "spec", "nodeName"):
            raise WireError(error.field, error.value, error.allowed) from error
        problem = str(error)
    try:
        if GPU_RATE in annotations:
            desired = GpuRate.parse(annotations[GPU_RATE], field=GPU_RATE)
        if GPU_MEMORY in annotations:
            memory = parse_memory(annotations[GPU_MEMORY], field=GPU_MEMORY)
    except InvalidInput as error:
        desired, problem = None, str(error)
    bound = field(raw, "spec", "nodeName")
    return Replica(
        uid=_text(raw, "uid"),
        namespace=_text(raw, "namespace"),
        name=_text(raw, "name"),
        version=_version(raw),
        pipeline=annotations.get(PIPELINE, ""),
        stage=annotations.get(STAGE, ""),
        desired=desired,
        bounds=Bounds(_bound(annotations, f"{GPU_RATE}-min"), _bound(annotations, f"{GPU_RATE}-max")),
        memory=memory,
        node=str(bound) if bound else None,
        granted=grant[0] if grant and bound else None,
        index=grant[1] if grant and bound else None,
        ended=field(raw, "status", "phase") in _ENDED,
        deleting=field(raw, "metadata", "deletionTimestamp") is not None,
        problem=problem,
    )


def _bound(annotations: Mapping[str, str], key: str) -> GpuRate | None:
    try:
        return GpuRate.parse(annotations[key], field=key) if key in annotations else None
    except InvalidInput:
        return None  # admission lets none through: a limit that cannot be read limits nothing


def _text(raw: Mapping[str, Any], name: str) -> str:
    value = field(raw, "metadata", name)
    if not isinstance(value, str) or not value:
        raise WireError(f"Pod metadata.{name}", value, "a non-empty text")
    return value


def _version(raw: Mapping[str, Any]) -> int:
    text = _text(raw, "resourceVersion")
    if not (text.isascii() and text.isdigit()):
        raise WireError("Pod metadata.resourceVersion", text, "a decimal number")
    return int(text)
