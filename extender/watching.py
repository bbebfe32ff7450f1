"""Watching pods, nodes, Pipelines and the schedulers' Lease, and telling the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from extender.card import NodeCards, parse_node
from extender.entries import (
    Entry,
    Granting,
    NodeGone,
    NodeSeen,
    NodesListed,
    PodGone,
    PodSeen,
    PodsListed,
    Tick,
    WishesListed,
    WishesSeen,
)
from extender.leadership import Leadership, LeaseState, parse_lease
from extender.replica import Replica, parse_replica
from extender.settings import Settings
from extender.wishes import PipelineWishes, parse_wishes
from sair.kube.changes import Added, Change, Deleted, Malformed, Modified, Synced
from sair.kube.client import Api
from sair.kube.reflector import Reflector
from sair.kube.resources import LEASES, NODES, PIPELINES, PODS
from sair.logs import get_logger

__all__ = ["Watching"]

_LEADERSHIP_CHECK_S = 0.25
_TICK_S = 5.0
_CATCH_UP_S = 0.25

_LOG = get_logger("extender")


class Watching:
    """The watches; run them with ``run()``.

    Args:
        api: Client.
        settings: Names the Lease.
        leadership: Judges what the Lease looks like.
        tell: Tells the ledger.
        monotonic: Local time in seconds.
    """

    def __init__(
        self,
        api: Api,
        settings: Settings,
        leadership: Leadership,
        tell: Callable[[Entry], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._leadership = leadership
        self._tell = tell
        self._monotonic = monotonic
        self._leads = False
        self._news = asyncio.Event()
        self.pods: Reflector[Replica] = Reflector(api, PODS, parse_replica, self._on_pod)
        self.nodes: Reflector[NodeCards] = Reflector(api, NODES, parse_node, self._on_node)
        self.pipelines: Reflector[PipelineWishes] = Reflector(api, PIPELINES, parse_wishes, self._on_pipeline)
        self.lease: Reflector[LeaseState] | None = None
        if settings.lease_name:
            selector = f"metadata.name={settings.lease_name}"
            self.lease = Reflector(
                api, LEASES, parse_lease, self._on_lease, namespace=settings.lease_namespace, field_selector=selector
            )

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in (self.pods, self.nodes, self.pipelines, self.lease):
                if reflector is not None:
                    group.create_task(reflector.run())
            group.create_task(self._tick())

    def why_not_ready(self) -> str | None:
        """Say what is still missing for good answers; None if nothing is. A standby is ready as well."""
        reflectors = (
            (self.pods, "pods"),
            (self.nodes, "nodes"),
            (self.pipelines, "Pipelines"),
            (self.lease, "the Lease"),
        )
        for reflector, what in reflectors:
            if reflector is None:
                continue
            health = reflector.health(self._monotonic())
            if not health.synced:
                return f"{what} not listed yet" + (f": {health.last_error}" if health.last_error else "")
            if health.stale:
                return f"no word from the API server about {what} for {health.staleness_s:.0f} s"
        return None

    def check_leadership(self) -> None:
        """Tell the ledger if this extender has become the one that grants, or is no more."""
        leads = self._leadership.leads(self._monotonic())
        if leads != self._leads:
            self._leads = leads
            _LOG.info("granting" if leads else "not granting", why=self._leadership.why_not(self._monotonic()))
            self._tell(Granting(leads))

    async def catch_up(self, replica: Replica) -> None:
        """Wait briefly until the watch has told of a pod that the scheduler knows already.

        A watch tells things in their order, so everything that made room before this pod came is then known as well. Without that a
        pod could be turned away for room taken by one already deleted, and nothing would make the scheduler try it again.
        """
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                while (known := self.pods.get(replica.key)) is None or known.version < replica.version:
                    await self._news.wait()
        except TimeoutError:
            return

    def _on_pod(self, change: Change[Replica]) -> None:
        match change:
            case Added() | Modified():
                self._tell(PodSeen(change.object))
            case Deleted():
                self._tell(PodGone(change.object.uid))
            case Synced():
                self._tell(
                    PodsListed(
                        frozenset(pod.uid for pod in self.pods.snapshot().values()), int(change.resource_version)
                    )
                )
            case Malformed():
                pass  # the reflector logs it; the last good version stays
        self._news.set()
        self._news = asyncio.Event()

    def _on_node(self, change: Change[NodeCards]) -> None:
        match change:
            case Added():
                self._tell(NodeSeen(change.object))
            case Modified():
                if change.object != change.old:  # kubelet's heartbeats change nothing here
                    self._tell(NodeSeen(change.object))
            case Deleted():
                self._tell(NodeGone(change.object.node))
            case Synced():
                self._tell(NodesListed())
            case Malformed():
                pass

    def _on_pipeline(self, change: Change[PipelineWishes]) -> None:
        match change:
            case Added():
                self._tell(WishesSeen(change.object))
            case Modified():
                if change.object != change.old:  # most of a status is not wishes
                    self._tell(WishesSeen(change.object))
            case Deleted():
                self._tell(WishesSeen(PipelineWishes(change.object.pipeline, {})))
            case Synced():
                self._tell(WishesListed())
            case Malformed():
                pass

    def _on_lease(self, change: Change[LeaseState]) -> None:
        match change:
            case Added() | Modified():
                self._leadership.see(change.object, self._monotonic())
            case Deleted():
                self._leadership.see(LeaseState(), self._monotonic())
            case Synced() | Malformed():
                return
        self.check_leadership()

    async def _tick(self) -> None:
        ticked_s = self._monotonic()
        while True:
            self.check_leadership()
            if self._monotonic() - ticked_s >= _TICK_S:
                ticked_s = self._monotonic()
                self._tell(Tick())
            await asyncio.sleep(_LEADERSHIP_CHECK_S)
