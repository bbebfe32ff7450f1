"""All pods of a cluster, found by the pipeline they belong to and by the node they stand on; kept up change by change. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from controller.cluster import PodState
from sair.kube.changes import Added, Change, Deleted, Modified

__all__ = ["PodIndex"]

_NONE: Final[Mapping[str, PodState]] = MappingProxyType({})


class PodIndex:
    """Answers in the time of the answer, however many pods there are: a thousand pipelines ask every two seconds."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, PodState]] = {}
        self._on: dict[str, dict[str, PodState]] = {}
        self._versions: dict[str, int] = {}

    def fold(self, change: Change[PodState]) -> None:
        """Take in what a reflector tells; of an object that cannot be parsed the last good version stays."""
        if isinstance(change, Added):
            self._move(change.key, None, change.object)
        elif isinstance(change, Modified):
            self._move(change.key, change.old, change.object)
        elif isinstance(change, Deleted):
            self._move(change.key, change.old, None)

    def of(self, pipeline: str) -> Mapping[str, PodState]:
        """Pods of a pipeline (``namespace/name``) by ``namespace/name`` of the pod."""
        return self._of.get(pipeline, _NONE)

    def on(self, node: str) -> Mapping[str, PodState]:
        """Pods that were put on a node, by ``namespace/name`` of the pod."""
        return self._on.get(node, _NONE)

    def version(self, node: str) -> int:
        """Another number whenever anything about the pods of a node has changed."""
        return self._versions.get(node, 0)

    def _move(self, key: str, old: PodState | None, new: PodState | None) -> None:
        pairs = (
            (self._of, old.pipeline if old else None, new.pipeline if new else None),
            (self._on, old.node if old else None, new.node if new else None),
        )
        for index, before, after in pairs:
            if before and before != after and before in index:
                index[before].pop(key, None)
                if not index[before]:
                    del index[before]
            if after and new is not None:
                index.setdefault(after, {})[key] = new
        for node in {pod.node for pod in (old, new) if pod is not None and pod.node}:
            # Never forgotten: a node that empties and fills again must not come back to an old number.
            self._versions[node] = self._versions.get(node, 0) + 1
