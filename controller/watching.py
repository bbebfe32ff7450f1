"""The controller's copies of the cluster: one reflector per kind, run together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from controller.cluster import (
    NodeState,
    PodState,
    ScaleTarget,
    Workload,
    parse_node,
    parse_pod,
    parse_scale_target,
    parse_workload,
)
from sair.errors import ApiUnavailable, NotFound
from sair.kube.client import Api
from sair.kube.reflector import Reflector
from sair.kube.resources import DEPLOYMENTS, HPAS, NODES, PIPELINES, PODS, SCALEDOBJECTS, STATEFULSETS
from sair.pipeline import Pipeline, parse_pipeline

__all__ = ["Watching", "has_scaled_objects"]


class Watching:
    """Reflectors of everything the controller decides on.

    Args:
        api: Client.
        scaled_objects: Watch KEDA's ScaledObjects as well; only where their CRD is installed.
    """

    def __init__(self, api: Api, *, scaled_objects: bool = False) -> None:
        self.deployments: Reflector[Workload] = Reflector(
            api, DEPLOYMENTS, lambda raw: parse_workload(raw, "Deployment")
        )
        self.statefulsets: Reflector[Workload] = Reflector(
            api, STATEFULSETS, lambda raw: parse_workload(raw, "StatefulSet")
        )
        self.pods: Reflector[PodState] = Reflector(api, PODS, parse_pod)
        self.nodes: Reflector[NodeState] = Reflector(api, NODES, parse_node)
        self.pipelines: Reflector[Pipeline] = Reflector(api, PIPELINES, parse_pipeline)
        self._owners: list[Reflector[ScaleTarget]] = [
            Reflector(api, HPAS, lambda raw: parse_scale_target(raw, "HorizontalPodAutoscaler"))
        ]
        if scaled_objects:
            self._owners.append(Reflector(api, SCALEDOBJECTS, lambda raw: parse_scale_target(raw, "ScaledObject")))

    def owners(self) -> Iterator[ScaleTarget]:
        """What other autoscalers scale."""
        for reflector in self._owners:
            yield from reflector.snapshot().values()

    def why_not_synced(self) -> str | None:
        """Which copy has not been filled yet; None if all are."""
        waiting = [name for name, reflector in self._all().items() if not reflector.synced]
        return f"waiting for the first list of {', '.join(waiting)}" if waiting else None

    def require_synced(self) -> None:
        """Refuse to guess before everything has been listed once.

        Raises:
            ApiUnavailable: Names what is missing.
        """
        reason = self.why_not_synced()
        if reason is not None:
            raise ApiUnavailable(reason)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in self._all().values():
                group.create_task(reflector.run())

    def _all(self) -> dict[str, Reflector[Any]]:
        return {
            "Deployments": self.deployments,
            "StatefulSets": self.statefulsets,
            "Pods": self.pods,
            "Nodes": self.nodes,
            "Pipelines": self.pipelines,
            **{f"owners {number}": owner for number, owner in enumerate(self._owners, 1)},
        }


async def has_scaled_objects(api: Api) -> bool:
    """Say whether KEDA's ScaledObjects can be watched here."""
    try:
        await api.list(SCALEDOBJECTS.path())
    except NotFound:
        return False
    return True
