"""Hands for tests against a real API server: nodes and pods, and a watch that judges every version of every pod."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import aiohttp
from prometheus_client import CollectorRegistry

from extender.__main__ import Running, running
from extender.replica import Replica, parse_replica
from extender.settings import Settings
from sair.annotations import GPU_RATE
from sair.errors import Conflict, SairError
from sair.kube.changes import Change
from sair.kube.client import Api, PatchKind
from sair.kube.patch import apply_status, merge_patch_annotations
from sair.kube.reflector import Added, Deleted, Modified, Reflector
from sair.kube.resources import EVENTS, NODES, PIPELINES, PODS
from tests.extender.builders import raw_node, raw_pod

WAIT_S = 30.0
"""Bound of every wait; what is waited for happens in milliseconds."""


async def eventually(
    condition: Callable[[], Awaitable[bool]], what: Callable[[], Awaitable[object]] | None = None
) -> None:
    """Wait until something is so."""
    try:
        async with asyncio.timeout(WAIT_S):
            while not await condition():  # noqa: ASYNC110  # what is waited for happens in another process
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(await what() if what else "it never came to be") from None


class Cluster:
    """One namespace and the nodes of a test."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self.nodes: list[str] = []
        self._pods: dict[str, Replica] = {}
        self._watch: Reflector[Replica] = Reflector(api, PODS, parse_replica, self._judge, namespace=namespace)
        self.history: dict[str, list[Replica]] = defaultdict(list)
        """Every version of every pod, by its name."""
        self.over_full: list[str] = []
        """Every moment at which the grants on a GPU summed to more than 1; must stay empty."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch.run())
        await self._watch.wait_synced()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))
        for pod in await self.api.list(PODS.path(self.namespace)):
            await self.delete(pod["metadata"]["name"])
        for pipeline in await self.api.list(PIPELINES.path(self.namespace)):
            await self.api.delete(PIPELINES.path(self.namespace, pipeline["metadata"]["name"]))
        for name in self.nodes:
            await self.api.delete(NODES.path(name=name))
        assert self.over_full == []

    def _judge(self, change: Change[Replica]) -> None:
        if isinstance(change, Added | Modified):
            self._pods[change.key] = change.object
            self.history[change.object.name].append(change.object)
        elif isinstance(change, Deleted):
            self._pods.pop(change.key, None)
        shares: Counter[tuple[str, int]] = Counter()
        for pod in self._pods.values():
            if pod.seat is not None and pod.granted is not None:
                shares[pod.seat] += pod.granted.milli
        self.over_full += [f"{seat}: {milli}" for seat, milli in shares.items() if milli > 1000]

    async def node(self, name: str, gpus: int, memory_mi: int = 16_000, **spec: Any) -> str:
        """Create a Ready node with GPUs on paper; its name is made unique."""
        name = f"{self.namespace}-{name}"
        self.nodes.append(name)
        await self.api.create(NODES.path(), raw_node(name, gpus, memory_mi))
        size = {"cpu": "64", "memory": "64Gi", "pods": "250"}
        ready = {"type": "Ready", "status": "True", "reason": "Paper", "message": "on paper"}
        status = {"status": {"capacity": size, "allocatable": size, "conditions": [ready]}}
        await self.api.patch(NODES.path(name=name, subresource="status"), status, PatchKind.MERGE)
        # Admission taints every new node as not ready; a controller that does not run here would take that away.
        await self.api.patch(NODES.path(name=name), {"spec": {"taints": [], **spec}}, PatchKind.MERGE)
        return name

    async def pod(self, name: str, rate: str | None = "0.5", *, nodes: list[str] | None = None, **more: Any) -> Replica:
        """Create a pod, by default of a stage of its own; ``nodes`` restricts it to those by node affinity, as by default to this
        test's own."""
        raw = raw_pod(name, rate, **{"stage": name, **more})
        terms = [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
            for node in nodes or self.nodes
        ]
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        if terms:
            raw["spec"]["affinity"] = {"nodeAffinity": required}
        return parse_replica(await self.api.create(PODS.path(self.namespace), raw))

    async def get(self, name: str) -> Replica:
        return parse_replica(await self.api.get(PODS.path(self.namespace, name)))

    async def pods(self) -> list[Replica]:
        return [parse_replica(raw) for raw in await self.api.list(PODS.path(self.namespace))]

    async def wish(self, stage: str, rate: str) -> None:
        """Wish for a share for a stage, as the controller does: in the Pipeline's status. Several may at once."""
        body = {"apiVersion": "sair.dev/v1alpha1", "kind": "Pipeline", "metadata": {"name": "vision"}}
        with contextlib.suppress(Conflict):
            await self.api.create(PIPELINES.path(self.namespace), body)
        status = {"stages": [{"name": stage, "gpuRate": rate}]}
        await apply_status(self.api, PIPELINES, self.namespace, "vision", status, component=f"wish-for-{stage}")

    async def annotate(self, name: str, rate: str) -> None:
        """Change a live pod's own wish by hand, as it is possible where no policy forbids it."""
        await merge_patch_annotations(self.api, PODS, self.namespace, name, {GPU_RATE: rate}, component="hand")

    async def delete(self, name: str) -> None:
        with contextlib.suppress(SairError):
            await self.api.delete(PODS.path(self.namespace, name), grace_period_s=0)

    async def granted(self, name: str, rate: str) -> None:
        """Wait until a pod is granted that share."""

        async def is_so() -> bool:
            return str((await self.get(name)).granted) == rate

        await eventually(is_so, lambda: self.get(name))

    async def bound(self, count: int) -> list[Replica]:
        """Wait until so many pods are bound."""

        async def is_so() -> bool:
            return len([pod for pod in await self.pods() if pod.node]) == count

        await eventually(is_so, lambda: self.notes("FailedScheduling"))
        return await self.pods()

    async def notes(self, reason: str) -> list[str]:
        """Texts of the namespace's Events with that reason."""
        events = await self.api.list(EVENTS.path(self.namespace))
        return [str(event.get("note", "")) for event in events if event.get("reason") == reason]

    async def noted(self, reason: str, text: str) -> str:
        """Wait for an Event that contains a text."""

        async def is_so() -> bool:
            return any(text in note for note in await self.notes(reason))

        await eventually(is_so, lambda: self.notes(reason))
        return next(note for note in await self.notes(reason) if text in note)

    async def per_gpu(self) -> dict[tuple[str, int], int]:
        """Thousandths granted per GPU."""
        shares: dict[tuple[str, int], int] = defaultdict(int)
        for pod in await self.pods():
            if pod.seat is not None and pod.granted is not None:
                shares[pod.seat] += pod.granted.milli
        return dict(shares)


class Scheduler:
    """Asks an extender what kube-scheduler would ask, over HTTP."""

    def __init__(self, server: Running, session: aiohttp.ClientSession) -> None:
        self.server = server
        self._url = f"http://127.0.0.1:{server.scheduler.port}"
        self._health = f"http://127.0.0.1:{server.health.port}"
        self._session = session

    async def post(self, verb: str, body: object) -> Any:
        async with self._session.post(f"{self._url}/{verb}", json=body) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def filter(self, pod: dict[str, Any], names: list[str]) -> dict[str, Any]:
        answer: dict[str, Any] = await self.post("filter", {"Pod": pod, "Nodes": None, "NodeNames": names})
        return answer

    async def prioritize(self, pod: dict[str, Any], names: list[str]) -> dict[str, int]:
        answer = await self.post("prioritize", {"Pod": pod, "Nodes": None, "NodeNames": names})
        return {row["Host"]: row["Score"] for row in answer}

    async def bind(self, pod: Replica, node: str, *, uid: str | None = None) -> str:
        """Bind; gives the error, empty if there was none."""
        body = {"PodName": pod.name, "PodNamespace": pod.namespace, "PodUID": uid or pod.uid, "Node": node}
        return str((await self.post("bind", body))["Error"])

    async def text(self, path: str) -> tuple[int, str]:
        async with self._session.get(self._health + path) as answer:
            return answer.status, await answer.text()


@contextlib.asynccontextmanager
async def extender(api: Api, *, wait: bool = True, **changes: Any) -> AsyncIterator[Scheduler]:
    """An extender on free ports; by default ready, and without a Lease."""
    settings = Settings(**{"port": 0, "metrics_port": 0, "metrics_host": "127.0.0.1", **changes})
    # Without the process's own metrics, which are read from /proc: a blocking call to the fixture that forbids those.
    async with running(settings, api, registry=CollectorRegistry()) as server, aiohttp.ClientSession() as session:
        if wait:

            async def ready() -> bool:
                return server.ledger.why_not_granting() is None

            await eventually(ready)
        yield Scheduler(server, session)
