"""Stages on a control plane without nodes: pods on paper, whose metrics are exported for real on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from sair.errors import SairError
from sair.kube.client import Api, PatchKind
from sair.kube.resources import DEPLOYMENTS, EVENTS, NODES, PIPELINES, PODS
from sair.serving import serve
from tests.e2e.cluster.control_plane import ControlPlane

BASE = Path(__file__).parents[2] / "deploy" / "base"
SERVICE_ACCOUNT = "system:serviceaccount:sair-system:sair-controller"
EXTENDER = "system:serviceaccount:sair-system:sair-scheduler"
WAIT_S = 45.0
"""Bound of every wait; what is waited for takes a second or two."""

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


async def eventually(condition: Callable[[], Awaitable[object]], what: Callable[[], object] = lambda: "") -> None:
    """Wait until something is so."""
    try:
        async with asyncio.timeout(WAIT_S):
            while not await condition():  # noqa: ASYNC110  # what is waited for happens elsewhere
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"it never came to be: {what()}") from None


@contextlib.contextmanager
def installed(control_plane: ControlPlane) -> Iterator[None]:
    """Namespaces, CRD, policies and the controller's RBAC; what rules others is removed afterwards."""
    files = [
        f"--filename={BASE / part}" for part in ("namespaces.yaml", "../crds/pipelines.yaml", "controller/rbac.yaml")
    ]
    control_plane.run_kubectl("apply", *files)
    control_plane.run_kubectl("apply", f"--kustomize={BASE / 'policy'}")
    control_plane.run_kubectl("wait", "--for=condition=Established", "crd/pipelines.sair.dev", "--timeout=20s")
    try:
        yield
    finally:
        control_plane.run_kubectl("delete", f"--kustomize={BASE / 'policy'}", "--ignore-not-found")
        control_plane.run_kubectl("delete", "--ignore-not-found", files[2])


@dataclass
class Exporter:
    """What a replica exports: counters that grow as its load says. Change the fields at any time."""

    rate_per_s: float = 20.0
    latency_s: float = 0.02
    service_s: float = 0.01
    queue: float = 0.0
    tells_service: bool = True
    broken: str | None = None
    """Answer this text instead."""
    status: int = 200
    asked: int = 0
    _arrived: float = 0.0
    _buckets: list[float] = field(default_factory=lambda: [0.0] * (len(BOUNDS) + 1))
    _since_s: float | None = None

    async def answer(self, _request: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(text=self.broken if self.broken is not None else self.text(), status=self.status)

    def text(self) -> str:
        now = asyncio.get_running_loop().time()
        done = self.rate_per_s * (now - (self._since_s if self._since_s is not None else now - 1.0))
        self._since_s = now
        self._arrived += done
        for place, bound in enumerate((*BOUNDS, float("inf"))):
            # All but the slowest hundredth and a half are as fast as a request can be.
            self._buckets[place] += done if self.latency_s <= bound else done * 0.9 if self.service_s <= bound else 0.0
        total = self._buckets[-1]
        rows = [
            f'sair_stage_latency_seconds_bucket{{le="{"+Inf" if b == float("inf") else b}"}} {count}'
            for b, count in zip((*BOUNDS, float("inf")), self._buckets, strict=True)
        ]
        return "\n".join(
            (
                f"sair_stage_queue_depth {self.queue}",
                f"sair_stage_arrivals_total {self._arrived}",
                *rows,
                f"sair_stage_latency_seconds_count {total}",
                *(
                    (
                        f"sair_stage_service_seconds_sum {total * self.service_s}",
                        f"sair_stage_service_seconds_count {total}",
                    )
                    if self.tells_service
                    else ()
                ),
                "",
            )
        )


class Stages:
    """Deployments, pods and nodes of one namespace, all gone afterwards."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self._stack = contextlib.AsyncExitStack()
        self._nodes: list[str] = []

    async def __aenter__(self) -> Self:
        await self.api.create("/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        for resource in (DEPLOYMENTS, PODS, PIPELINES):
            for raw in await self.api.list(resource.path(self.namespace)):
                with contextlib.suppress(SairError):
                    await self.api.delete(resource.path(self.namespace, raw["metadata"]["name"]), grace_period_s=0)
        for name in self._nodes:
            await self.api.delete(NODES.path(name=name))

    def key(self, pipeline: str = "shop") -> str:
        return f"{self.namespace}/{pipeline}"

    async def node(self, name: str = "node", gpus: int = 2) -> str:
        name = f"{self.namespace}-{name}"
        self._nodes.append(name)
        cards = json.dumps([{"memoryMi": 16_000}] * gpus)
        await self.api.create(NODES.path(), {"metadata": {"name": name, "annotations": {"sair.dev/gpus": cards}}})
        size = {"cpu": "64", "memory": "64Gi", "pods": "250"}
        ready = {"type": "Ready", "status": "True", "reason": "Paper", "message": "on paper"}
        status = {"status": {"capacity": size, "allocatable": size, "conditions": [ready]}}
        await self.api.patch(NODES.path(name=name, subresource="status"), status, PatchKind.MERGE)
        await self.api.patch(NODES.path(name=name), {"spec": {"taints": []}}, PatchKind.MERGE)
        return name

    async def deployment(
        self,
        stage: str,
        annotations: dict[str, str] | None = None,
        *,
        replicas: int = 1,
        pipeline: str = "shop",
        cpu: str = "1",
    ) -> None:
        own = annotated(pipeline, stage, annotations or {})
        body = {
            "metadata": {"name": stage},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": stage}},
                "template": {"metadata": {"labels": {"app": stage}, "annotations": own}, "spec": containers(cpu)},
            },
        }
        await self.api.create(DEPLOYMENTS.path(self.namespace), body)

    async def replica(
        self,
        stage: str,
        annotations: dict[str, str] | None = None,
        *,
        node: str,
        pipeline: str = "shop",
        cpu: str = "1",
        limit: str | None = None,
        number: int = 0,
    ) -> Exporter:
        """A pod that runs and is ready; give annotations as on its Deployment."""
        exporter = Exporter()
        application = web.Application()
        application.router.add_get("/metrics", exporter.answer)
        served = await self._stack.enter_async_context(serve(application, host="127.0.0.1", port=0))
        own = annotated(pipeline, stage, annotations or {}) | {"sair.dev/metrics-port": str(served.port)}
        name = f"{stage}-{number}"
        body = {"metadata": {"name": name, "annotations": own}, "spec": containers(cpu, limit) | {"nodeName": node}}
        await self.api.create(PODS.path(self.namespace), body)
        status = {
            "phase": "Running",
            "podIP": "127.0.0.1",
            "podIPs": [{"ip": "127.0.0.1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        await self.status_of(name, status)
        return exporter

    async def status_of(self, name: str, status: dict[str, Any]) -> None:
        await self.api.patch(PODS.path(self.namespace, name, "status"), {"status": status}, PatchKind.MERGE)

    async def stage(
        self, stage: str, annotations: dict[str, str] | None = None, *, node: str, replicas: int = 1, **more: Any
    ) -> list[Exporter]:
        await self.deployment(stage, annotations, replicas=replicas, **{k: v for k, v in more.items() if k != "limit"})
        return [await self.replica(stage, annotations, node=node, number=number, **more) for number in range(replicas)]

    async def replicas(self, stage: str) -> int:
        return int((await self.api.get(DEPLOYMENTS.path(self.namespace, stage)))["spec"]["replicas"])

    async def pod(self, name: str) -> dict[str, Any]:
        return await self.api.get(PODS.path(self.namespace, name))

    async def rate(self, name: str) -> str | None:
        annotations: dict[str, str] = (await self.pod(name))["metadata"]["annotations"]
        return annotations.get("sair.dev/gpu-rate")

    async def object(self, pipeline: str = "shop", **spec: Any) -> None:
        """The Pipeline object, as the fleet creates it or its author does."""
        body = {"metadata": {"name": pipeline}, "apiVersion": "sair.dev/v1alpha1", "kind": "Pipeline", "spec": spec}
        await self.api.create(PIPELINES.path(self.namespace), body)

    async def wish(self, stage: str, pipeline: str = "shop") -> str | None:
        """The share that a stage is wished to have."""
        stages = (await self.pipeline(pipeline)).get("status", {}).get("stages", [])
        return next((one.get("gpuRate") for one in stages if one["name"] == stage), None)

    async def cpu(self, name: str) -> dict[str, Any]:
        resources: dict[str, Any] = (await self.pod(name))["spec"]["containers"][0]["resources"]
        return {kind: amounts["cpu"] for kind, amounts in resources.items() if "cpu" in amounts}

    async def pipeline(self, name: str = "shop") -> dict[str, Any]:
        try:
            return await self.api.get(PIPELINES.path(self.namespace, name))
        except SairError:
            return {}

    async def condition(self, kind: str, pipeline: str = "shop") -> dict[str, Any]:
        conditions = (await self.pipeline(pipeline)).get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == kind), {})

    async def notes(self, reason: str) -> list[str]:
        return [
            str(e.get("note")) for e in await self.api.list(EVENTS.path(self.namespace)) if e.get("reason") == reason
        ]


def annotated(pipeline: str, stage: str, more: dict[str, str]) -> dict[str, str]:
    return {f"sair.dev/{key}": value for key, value in {"pipeline": pipeline, "stage": stage, **more}.items()}


def containers(cpu: str, limit: str | None = None) -> dict[str, Any]:
    resources: dict[str, Any] = {"requests": {"cpu": cpu, "memory": "512Mi"}} if cpu else {}
    if limit is not None:
        resources["limits"] = {"cpu": limit}
    return {"containers": [{"name": "main", "image": "example/app:1", "resources": resources}]}


@contextlib.asynccontextmanager
async def task(*coroutines: Awaitable[object]) -> AsyncIterator[None]:
    """Run something while the context is open."""
    tasks: Sequence[asyncio.Task[object]] = [asyncio.ensure_future(one) for one in coroutines]
    try:
        yield
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
