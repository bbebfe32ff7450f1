"""The controller's copies of the cluster: one reflector per kind, run together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
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
from controller.pods import PodIndex
from sair.errors import ApiUnavailable, NotFound, PermanentError, SairError
from sair.kube.client import Api
from sair.kube.reflector import Reflector
from sair.kube.resources import DEPLOYMENTS, HPAS, NODES, PIPELINES, PODS, SCALEDOBJECTS, STATEFULSETS
from sair.logs import get_logger
from sair.pipeline import Pipeline, parse_pipeline

__all__ = ["Watching"]

_log = get_logger("controller")

_LOOK_FOR_KEDA_S = 60.0


class Watching:
    """Reflectors of everything the controller decides on. KEDA's ScaledObjects are watched from when KEDA is installed.

    Args:
        api: Client.
        look_for_keda_s: How often to look whether it is, seconds.
    """

    def __init__(self, api: Api, *, look_for_keda_s: float = _LOOK_FOR_KEDA_S) -> None:
        self._api = api
        self._look_for_keda_s = look_for_keda_s
        self.deployments: Reflector[Workload] = Reflector(
            api, DEPLOYMENTS, lambda raw: parse_workload(raw, "Deployment")
        )
        self.statefulsets: Reflector[Workload] = Reflector(
            api, STATEFULSETS, lambda raw: parse_workload(raw, "StatefulSet")
        )
        self.index = PodIndex()
        """The pods by pipeline and by node."""
        self.pods: Reflector[PodState] = Reflector(api, PODS, parse_pod, self.index.fold)
        self.nodes: Reflector[NodeState] = Reflector(api, NODES, parse_node)
        self.pipelines: Reflector[Pipeline] = Reflector(api, PIPELINES, parse_pipeline)
        self._hpas: Reflector[ScaleTarget] = Reflector(
            api, HPAS, lambda raw: parse_scale_target(raw, "HorizontalPodAutoscaler")
        )
        self._scaled_objects: Reflector[ScaleTarget] = Reflector(
            api, SCALEDOBJECTS, lambda raw: parse_scale_target(raw, "ScaledObject")
        )
        self._no_keda = False

    def owners(self) -> Iterator[ScaleTarget]:
        """What other autoscalers scale."""
        yield from self._hpas.snapshot().values()
        yield from self._scaled_objects.snapshot().values()

    def copies(self) -> tuple[Mapping[str, Any], ...]:
        """What pipelines are discovered from beside the Pipeline objects; each copy is another object once anything in it changed."""
        reflectors: tuple[Reflector[Any], ...] = (self.deployments, self.statefulsets, self._hpas, self._scaled_objects)
        return tuple(each.snapshot() for each in reflectors)

    def why_not_synced(self) -> str | None:
        """Which copy has not been filled yet; None if all are."""
        waiting = [name for name, reflector in self._always().items() if not reflector.synced]
        if not self._no_keda and not self._scaled_objects.synced:
            waiting.append("ScaledObjects")
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
            for reflector in self._always().values():
                group.create_task(reflector.run())
            group.create_task(self._watch_scaled_objects())

    async def _watch_scaled_objects(self) -> None:
        while True:
            try:
                await self._api.get(SCALEDOBJECTS.path(), {"limit": "1"})
            except PermanentError as error:
                if not self._no_keda and not isinstance(error, NotFound):
                    _log.warning(
                        "KEDA's ScaledObjects cannot be read; conflicts with them go unseen", problem=str(error)
                    )
                self._no_keda = True
                await asyncio.sleep(self._look_for_keda_s)
            except SairError as error:
                _log.warning("cannot look for KEDA's ScaledObjects; trying again", problem=str(error))
                await asyncio.sleep(1.0)
            else:
                await self._scaled_objects.run()

    def _always(self) -> dict[str, Reflector[Any]]:
        return {
            "Deployments": self.deployments,
            "StatefulSets": self.statefulsets,
            "Pods": self.pods,
            "Nodes": self.nodes,
            "Pipelines": self.pipelines,
            "HorizontalPodAutoscalers": self._hpas,
        }
