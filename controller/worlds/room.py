"""What the nodes of a cluster could still hold, as one pipeline sees it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from controller.cluster import NodeState, PodState
from controller.state import ClusterRoom, GpuRoom, NodeRoom
from sair.quantities import Mebibytes, Millicores

__all__ = ["cluster_room"]


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
