"""Values of the extender's types, of which a test states only what it is about."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from extender.card import Card, CardView, NodeCards
from extender.entries import Granting, NodeSeen, NodesListed, PodSeen, PodsListed, WishesListed, WishesSeen
from extender.ledger import Ledger
from extender.packing import Need
from extender.replica import Replica
from extender.wishes import PipelineWishes
from sair.annotations import GPU_MEMORY, GPU_RATE, GPUS, PIPELINE, STAGE
from sair.quantities import GpuRate, Mebibytes
from sair.wishes import StageWish

MEMORY = 16_000


def replica(uid: str = "pod", desired: int | None = 500, **changes: Any) -> Replica:
    """A pending replica; shares in thousandths: ``granted=300`` with ``node`` and ``index`` for one that holds a share."""
    granted = changes.pop("granted", None)
    return Replica(
        uid=uid,
        namespace="default",
        name=changes.pop("name", uid),
        version=changes.pop("version", 1),
        pipeline="vision",
        stage=changes.pop("stage", "inference"),
        desired=None if desired is None else GpuRate(desired),
        memory=Mebibytes(changes.pop("memory", 0)),
        granted=None if granted is None else GpuRate(granted),
        **changes,
    )


def seated(
    uid: str, granted: int, desired: int | None = None, *, node: str = "n", index: int = 0, **changes: Any
) -> Replica:
    """A replica that holds a share of a card."""
    return replica(uid, granted if desired is None else desired, granted=granted, node=node, index=index, **changes)


def wished(**stages: int) -> WishesSeen:
    """What the controller wishes for stages of the replicas' pipeline; shares in thousandths."""
    wishes = {stage: StageWish(GpuRate(milli)) for stage, milli in stages.items()}
    return WishesSeen(PipelineWishes("default/vision", wishes))


def wishing(pod: Replica, desired: int, version: int) -> Replica:
    """The pod after its desired share was patched."""
    return replace(pod, desired=GpuRate(desired), version=version)


def granted(pod: Replica, rate: GpuRate, version: int, seat: tuple[str, int] | None = None) -> Replica:
    """The pod after a grant was written."""
    node, index = seat or (pod.node, pod.index)
    return replace(pod, granted=rate, version=version, node=node, index=index)


def node_cards(name: str = "n", count: int = 1, memory_mi: int = MEMORY) -> NodeCards:
    return NodeCards(name, tuple(Card(memory_mi=memory_mi, model="H100", uuid=f"GPU-{name}-{i}") for i in range(count)))


def ready_ledger(*pods: Replica, nodes: tuple[NodeCards, ...] = (node_cards(),), unresolved_s: float = 120.0) -> Ledger:
    """A ledger that grants, with these pods and nodes told."""
    ledger = Ledger(unresolved_s=unresolved_s)
    for node in nodes:
        ledger.fold(NodeSeen(node), 0.0)
    for pod in pods:
        ledger.fold(PodSeen(pod), 0.0)
    ledger.fold(PodsListed(frozenset(pod.uid for pod in pods), max((pod.version for pod in pods), default=0)), 0.0)
    ledger.fold(NodesListed(), 0.0)
    ledger.fold(WishesListed(), 0.0)
    ledger.fold(Granting(True), 0.0)
    return ledger


def view(index: int = 0, free: int = 1000, memory: int = MEMORY, **changes: Any) -> CardView:
    return CardView(
        index=index, memory_mi=Mebibytes(MEMORY), free_milli=free, free_memory_mi=Mebibytes(memory), **changes
    )


def need(milli: int = 500, memory: int = 0, stage: str = "default/vision/inference") -> Need:
    return Need(milli, memory, stage)


def raw_pod(
    name: str, rate: str | None = "0.5", *, memory: str | None = None, stage: str = "inference", **metadata: Any
) -> dict[str, Any]:
    """A pod as it is created, for the scheduler ``sair-scheduler``."""
    annotations = {PIPELINE: "vision", STAGE: stage}
    if rate is not None:
        annotations[GPU_RATE] = rate
    if memory is not None:
        annotations[GPU_MEMORY] = memory
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations, **metadata},
        "spec": {"schedulerName": "sair-scheduler", "containers": [{"name": "main", "image": "example/app:1"}]},
    }


def raw_node(name: str, gpus: int, memory_mi: int = MEMORY) -> dict[str, Any]:
    inventory = [{"memoryMi": memory_mi, "model": "H100", "uuid": f"GPU-{name}-{i}"} for i in range(gpus)]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": {GPUS: json.dumps(inventory)} if gpus else {}},
    }
