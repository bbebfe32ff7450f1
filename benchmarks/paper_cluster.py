"""A cluster on paper, in a process of its own: ``python -m benchmarks.paper_cluster PIPELINES`` prints its port and serves until killed.

As much of an API server as a controller needs (lists, watches, a Pipeline's status, which its watchers are told), and the metrics of all
pods. It stands in where what matters is what the controller itself spends; tests use a real API server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from typing import Any, Final

from aiohttp import web

STAGES: Final = ("pre", "infer", "post")
PODS_PER_NODE: Final = 60
_RATE_PER_S: Final = 20.0
_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class PaperCluster:
    """All objects, and who watches Pipelines.

    Args:
        pipelines: How many; each has three stages of one pod each.
        port: Where the pods' metrics are.
    """

    def __init__(self, pipelines: int, port: int) -> None:
        self._version = 1000
        self._watchers: set[asyncio.Queue[bytes]] = set()
        self._pipelines = {f"team-{n}/shop": self._pipeline(f"team-{n}") for n in range(pipelines)}
        places = [(f"team-{n}", stage) for n in range(pipelines) for stage in STAGES]
        self._lists = {
            "deployments": [self._deployment(*place) for place in places],
            "pods": [self._pod(*place, port, number) for number, place in enumerate(places)],
            "nodes": [self._node(number) for number in range(len(places) // PODS_PER_NODE + 1)],
        }

    @staticmethod
    def _annotations(stage: str, port: int, path: str) -> dict[str, str]:
        own = {"pipeline": "shop", "stage": stage, "mode": "recommend", "slo-p99": "500ms", "metrics-port": str(port)}
        own |= {"metrics-path": path}
        own |= {"gpu-rate": "0.3"} if stage == "infer" else {}
        own |= {"after": STAGES[STAGES.index(stage) - 1]} if stage != STAGES[0] else {}
        return {f"sair.dev/{key}": value for key, value in own.items()}

    def _metadata(self, name: str, namespace: str | None = None) -> dict[str, Any]:
        self._version += 1
        place = {"namespace": namespace} if namespace else {}
        return {"name": name, **place, "uid": f"{namespace}-{name}", "resourceVersion": str(self._version)}

    def _pipeline(self, namespace: str) -> dict[str, Any]:
        return {
            "apiVersion": "sair.dev/v1alpha1",
            "kind": "Pipeline",
            "metadata": self._metadata("shop", namespace),
            "spec": {},
        }

    def _deployment(self, namespace: str, stage: str) -> dict[str, Any]:
        template = {"metadata": {"annotations": self._annotations(stage, 9, "/metrics")}, "spec": _containers()}
        return {"metadata": self._metadata(stage, namespace), "spec": {"replicas": 1, "template": template}}

    def _pod(self, namespace: str, stage: str, port: int, number: int) -> dict[str, Any]:
        annotations = self._annotations(stage, port, f"/metrics/{number}")
        if stage == "infer":
            annotations |= {"sair.dev/gpu-granted": "0.3", "sair.dev/gpu-index": str(number % 8)}
        return {
            "metadata": {**self._metadata(f"{stage}-0", namespace), "annotations": annotations},
            "spec": {**_containers(), "nodeName": f"node-{number // PODS_PER_NODE}"},
            "status": {
                "phase": "Running",
                # An address of its own, as pods have, so that connections are kept as they would be.
                "podIP": f"127.1.{number // 250}.{number % 250 + 1}",
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }

    def _node(self, number: int) -> dict[str, Any]:
        cards = json.dumps([{"memoryMi": 81_920}] * 8)
        return {
            "metadata": {**self._metadata(f"node-{number}"), "annotations": {"sair.dev/gpus": cards}},
            "spec": {},
            "status": {
                "allocatable": {"cpu": "128", "memory": "512Gi"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }

    async def collection(self, request: web.Request) -> web.StreamResponse:
        """List or watch a collection."""
        plural = request.match_info["plural"]
        if request.query.get("watch"):
            return await self._watch(request, plural)
        items = list(self._pipelines.values()) if plural == "pipelines" else self._lists.get(plural, [])
        if plural == "scaledobjects":
            return web.json_response({"kind": "Status", "code": 404, "reason": "NotFound"}, status=404)
        return web.json_response({"metadata": {"resourceVersion": str(self._version)}, "items": items})

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        reply = web.StreamResponse()
        await reply.prepare(request)
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        if plural == "pipelines":
            self._watchers.add(queue)
        try:
            with contextlib.suppress(ConnectionResetError):  # who watched is gone
                while True:
                    await reply.write(await queue.get())
        finally:
            self._watchers.discard(queue)
        return reply

    async def pipeline(self, request: web.Request) -> web.Response:
        """Read a Pipeline, or apply its status."""
        found = self._pipelines[f"{request.match_info['namespace']}/{request.match_info['name']}"]
        if request.method == "PATCH":
            found["status"] = (await request.json())["status"]
            self._version += 1
            found["metadata"]["resourceVersion"] = str(self._version)
            line = json.dumps({"type": "MODIFIED", "object": found}).encode() + b"\n"
            for queue in self._watchers:
                queue.put_nowait(line)
        return web.json_response(found)

    async def anything(self, request: web.Request) -> web.Response:
        """Events and whatever else is written."""
        return web.json_response(await request.json(), status=201)


def _containers() -> dict[str, Any]:
    resources = {"requests": {"cpu": "1", "memory": "512Mi"}}
    return {"containers": [{"name": "main", "image": "example/app:1", "resources": resources}]}


async def exported(_request: web.Request) -> web.Response:
    """What a pod that has 20 requests a second says, beside what client libraries export of themselves."""
    done = int(_RATE_PER_S * time.monotonic())
    lines = [f'python_gc_objects_collected_total{{generation="{number}"}} 1' for number in range(40)]
    lines += ["sair_stage_queue_depth 0", f"sair_stage_arrivals_total {done}"]
    for name in ("latency", "service"):
        lines += [
            f'sair_stage_{name}_seconds_bucket{{le="{bound}"}} {int(done * min(1.0, bound / 0.05))}'
            for bound in _BOUNDS
        ]
        lines += [f'sair_stage_{name}_seconds_bucket{{le="+Inf"}} {done}']
        lines += [f"sair_stage_{name}_seconds_sum {done * 0.02}", f"sair_stage_{name}_seconds_count {done}"]
    lines += [f"process_cpu_seconds_total {done * 0.02}", ""]
    return web.Response(text="\n".join(lines))


async def _serve(pipelines: int) -> None:
    listening = socket.create_server(("", 0), backlog=1024)
    port = listening.getsockname()[1]
    cluster, application = PaperCluster(pipelines, port), web.Application()
    for prefix in ("/api/v1", "/apis/{group}/{version}"):
        application.router.add_get(f"{prefix}/{{plural}}", cluster.collection)
        application.router.add_post(f"{prefix}/namespaces/{{namespace}}/{{plural}}", cluster.anything)
    for suffix in ("", "/status"):
        path = "/apis/sair.dev/v1alpha1/namespaces/{namespace}/pipelines/{name}" + suffix
        application.router.add_route("*", path, cluster.pipeline)
    application.router.add_get("/metrics/{number}", exported)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
