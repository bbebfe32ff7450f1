"""What the nodes of a cluster could still hold, as one pipeline sees it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from controller.cluster import NodeState, PodState
from controller.pods import PodIndex
from controller.state import ClusterRoom, GpuRoom, NodeRoom, StageView
from sair.quantities import Mebibytes, Millicores

__all__ = ["Rooms", "cluster_room", "narrowed"]

_NODES_ALL: Final = 24
"""Up to so many nodes each is looked at."""
_ROOMIEST: Final = 4
"""For each stage; a round adds two replicas at most."""
_BETWEEN: Final = 4
"""From the fullest up to those."""


def cluster_room(nodes: Iterable[NodeState], pods: Iterable[PodState], key: str) -> ClusterRoom:
    """Subtract what pods have from what nodes have; a pod that wishes for more than it was granted counts with its wish.

    Args:
        nodes: All nodes.
        pods: All pods; those that are being deleted take room until they are gone.
        key: ``namespace/name`` of the pipeline whose replicas are counted.
    """
    on_node: dict[str, list[PodState]] = {}
    for pod in pods:
        if pod.occupies and pod.node:
            on_node.setdefault(pod.node, []).append(pod)
    return ClusterRoom(tuple(_node(node, on_node.get(node.name, ()), key) for node in nodes if node.schedulable))


class Rooms:
    """What ``cluster_room`` says, for many pipelines: a node is added up again only when something on it changed.

    Args:
        pods: All pods.
    """

    def __init__(self, pods: PodIndex) -> None:
        self._pods = pods
        self._known: dict[str, tuple[NodeState, int, NodeRoom]] = {}

    def of(self, nodes: Mapping[str, NodeState], key: str, stages: Sequence[StageView] = ()) -> ClusterRoom:
        """What the nodes that matter to a pipeline could still hold.

        Args:
            nodes: All of them, by name.
            key: ``namespace/name`` of the pipeline whose replicas are counted.
            stages: Those of the pipeline.
        """
        if len(self._known) > len(nodes):
            self._known = {name: known for name, known in self._known.items() if name in nodes}
        own: dict[str, list[PodState]] = {}
        needs: dict[str, tuple[int, int]] = {}
        for pod in self._pods.of(key).values():
            if pod.occupies and pod.stage:
                cpu, memory = needs.get(pod.stage, (0, 0))
                needs[pod.stage] = max(cpu, pod.cpu), max(memory, pod.memory)
            if pod.occupies and pod.node:
                own.setdefault(pod.node, []).append(pod)
        room = ClusterRoom(
            tuple(self._room(node, own.get(node.name), key) for node in nodes.values() if node.schedulable)
        )
        return narrowed(room, stages, needs)

    def _room(self, node: NodeState, own: Sequence[PodState] | None, key: str) -> NodeRoom:
        version = self._pods.version(node.name)
        known = self._known.get(node.name)
        if known is None or known[0] is not node or known[1] != version:
            pods = [pod for pod in self._pods.on(node.name).values() if pod.occupies]
            known = (node, version, _node(node, pods, ""))
            self._known[node.name] = known
        room = known[2]
        if own is None:
            return room
        gpus = tuple(
            replace(gpu, held=_held((pod for pod in own if pod.gpu_index == index), key))
            for index, gpu in enumerate(room.gpus)
        )
        return replace(room, held=_held(own, key), gpus=gpus)


def narrowed(room: ClusterRoom, stages: Sequence[StageView], needs: Mapping[str, tuple[int, int]]) -> ClusterRoom:
    """The nodes that matter to a pipeline, in their order: of a large cluster not all.

    Those with replicas of it, and for each stage, of those that have CPU and memory for one more, the roomiest, where the next ones
    fit, and some between the fullest and those, where a packing scheduler may put them. A round's time and its journal record do not
    grow with the cluster then.

    Args:
        room: Of all nodes.
        stages: Those of the pipeline.
        needs: CPU (millicores) and memory (MiB) of a stage's replica; of one that has none yet its bounds' least.
    """
    if len(room.nodes) <= _NODES_ALL:
        return room
    kept = {place for place, node in enumerate(room.nodes) if node.held}
    for stage in stages:
        least = needs.get(stage.name, (stage.limits.cpu_min, stage.limits.memory_min))
        widths = ((_width(node, stage, *least), place) for place, node in enumerate(room.nodes))
        able = [place for _, place in sorted(each for each in widths if each[0] is not None)]
        rest = able[:-_ROOMIEST]
        kept.update(able[-_ROOMIEST:], rest[:: max(1, -(-len(rest) // _BETWEEN))])
    return ClusterRoom(tuple(room.nodes[place] for place in sorted(kept)))


def _width(node: NodeRoom, stage: StageView, cpu: int, memory: int) -> int | None:
    """How roomy a node is for a stage: its widest card, or its CPU; None where it has no CPU or memory for a replica, or no card at all."""
    if node.free_cpu < cpu or node.free_memory < memory:
        return None
    if not stage.uses_gpu:
        return node.free_cpu
    widest = max((card.free_milli for card in node.gpus if card.free_memory >= stage.gpu_memory), default=0)
    return widest if widest >= stage.limits.gpu_milli_min else None


def _node(node: NodeState, pods: Sequence[PodState], key: str) -> NodeRoom:
    gpus = []
    for index, card in enumerate(node.cards):
        on_card = [pod for pod in pods if pod.gpu_index == index]
        taken = sum(
            max(pod.granted.milli if pod.granted else 0, pod.wished.milli if pod.wished else 0) for pod in on_card
        )
        memory = sum(pod.spec.gpu_memory or 0 for pod in on_card if pod.spec)
        gpus.append(GpuRoom(max(0, 1000 - taken), Mebibytes(max(0, card.memory_mi - memory)), _held(on_card, key)))
    return NodeRoom(
        node.name,
        Millicores(max(0, node.cpu - sum(pod.cpu for pod in pods))),
        Mebibytes(max(0, node.memory - sum(pod.memory for pod in pods))),
        _held(pods, key),
        tuple(gpus),
    )


def _held(pods: Iterable[PodState], key: str) -> dict[str, int]:
    return dict(Counter(pod.stage for pod in pods if pod.pipeline == key and pod.stage))
