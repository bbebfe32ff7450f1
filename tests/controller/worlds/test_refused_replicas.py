"""Replicas that a quota or the scheduler refuses, with the real controllers and scheduler of Kubernetes; only the kubelet is on paper."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
import pytest_asyncio
from aiohttp import web

from controller.cost import Prices, effective_cost
from controller.state import KnobOutcome
from sair.errors import SairError
from sair.kube.client import PatchKind
from sair.kube.resources import PODS
from sair.serving import serve
from tests.controller.stages import Exporter, Stages, eventually, installed, task
from tests.controller.worlds.opening import Opened, apply, opening, ready
from tests.controlplane import give_up
from tests.e2e.cluster.control_plane import ControlPlane, temporary_control_plane
from tests.e2e.cluster.errors import Unavailable

pytestmark = pytest.mark.blocking_allowed  # reading a kubeconfig and its certificates, once

_CONTROLLERS = ("deployment-controller", "replicaset-controller", "resourcequota-controller")


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    try:
        server = temporary_control_plane()
        with server, installed(server):
            server.start_controllers(_CONTROLLERS)
            server.start_scheduler()
            yield server
    except Unavailable as reason:
        give_up(reason)


@pytest_asyncio.fixture
async def stages(stages: Stages) -> AsyncIterator[Stages]:
    """Whose pods a kubelet runs."""
    async with task(kubelet(stages)):
        yield stages


@pytest_asyncio.fixture
async def opened(cluster: ControlPlane) -> AsyncIterator[Opened]:
    async with opening(cluster, grant_wait_s=20.0) as one:
        yield one


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    application = web.Application()
    application.router.add_get("/metrics", Exporter().answer)
    async with serve(application, host="127.0.0.1", port=0) as served:
        yield served.port
    await asyncio.sleep(0.05)


async def kubelet(stages: Stages) -> None:
    """Runs what was put on a node."""
    while True:
        for raw in await stages.api.list(PODS.path(stages.namespace)):
            if raw["spec"].get("nodeName") and raw["status"].get("phase") == "Pending":
                bound = [each for each in raw["status"]["conditions"] if each["type"] == "PodScheduled"]
                status = {
                    "phase": "Running",
                    "podIP": "127.0.0.1",
                    "podIPs": [{"ip": "127.0.0.1"}],
                    "conditions": [*bound, {"type": "Ready", "status": "True"}],
                }
                try:
                    await stages.status_of(raw["metadata"]["name"], status)
                except SairError:
                    continue  # it has been deleted meanwhile
        await asyncio.sleep(0.1)


async def quota(stages: Stages, pods: int) -> None:
    path = f"/api/v1/namespaces/{stages.namespace}/resourcequotas"
    body = {"metadata": {"name": "own"}, "spec": {"hard": {"pods": str(pods)}}}
    if any(raw["metadata"]["name"] == "own" for raw in await stages.api.list(path)):
        await stages.api.patch(f"{path}/own", {"spec": body["spec"]}, PatchKind.MERGE)
    else:
        await stages.api.create(path, body)

    async def counted() -> bool:
        status = (await stages.api.get(f"{path}/own")).get("status", {})
        return bool(status.get("hard", {}).get("pods") == str(pods))

    await eventually(counted)


async def test_replicas_that_a_quota_refuses_are_not_granted_and_do_not_count_until_they_are_there(
    stages: Stages, opened: Opened, port: int
) -> None:
    await stages.node()
    await quota(stages, pods=2)
    await stages.deployment("resize", {"metrics-port": str(port)})
    allocation = (await ready(opened, stages.key(), 1))["resize"]
    outcome = (await apply(opened, stages.key(), "resize", replace(allocation, replicas=4)))["replicas"]
    assert (outcome.wished, outcome.granted) == (4, 2)
    assert outcome.reason.startswith("2 of 4 replicas: FailedCreate: ")
    assert "exceeded quota: own" in outcome.reason
    await ready(opened, stages.key(), 2)
    seen = await opened.world.observe(stages.key(), 2.0)
    (stage,) = seen.stages
    assert (stage.allocation.replicas, stage.ready, stage.starting, stage.waiting) == (4, 2, 0, 2)
    assert seen.cost_per_hour == effective_cost([replace(stage.allocation, replicas=2)], Prices())
    await quota(stages, pods=10)
    outcomes = await apply(opened, stages.key(), "resize", replace(allocation, replicas=5))
    assert outcomes["replicas"].wished == 5
    await ready(opened, stages.key(), 5)
    assert (await opened.world.observe(stages.key(), 2.0)).stages[0].waiting == 0


async def test_replicas_that_fit_on_no_node_are_not_granted_and_those_that_do_are(
    stages: Stages, opened: Opened, port: int
) -> None:
    await stages.node()
    # Of 64 cores.
    await stages.deployment("resize", {"metrics-port": str(port)}, cpu="25")
    allocation = (await ready(opened, stages.key(), 1))["resize"]
    outcome = (await apply(opened, stages.key(), "resize", replace(allocation, replicas=3)))["replicas"]
    assert (outcome.wished, outcome.granted) == (3, 2)
    assert outcome.reason.startswith("1 of 3 replicas: Unschedulable: ")
    assert "Insufficient cpu" in outcome.reason
    await ready(opened, stages.key(), 2)
    stage = (await opened.world.observe(stages.key(), 2.0)).stages[0]
    assert (stage.allocation.replicas, stage.ready, stage.starting, stage.waiting) == (3, 2, 0, 1)
    # What was not granted is given up again without a word about what was never there.
    outcomes = await apply(opened, stages.key(), "resize", replace(allocation, replicas=2))
    assert outcomes["replicas"] == KnobOutcome("resize", "replicas", 2, 2)


async def test_replicas_that_all_find_their_place_are_granted_as_soon_as_they_have_it(
    stages: Stages, opened: Opened, port: int
) -> None:
    await stages.node()
    await stages.deployment("resize", {"metrics-port": str(port)})
    allocation = (await ready(opened, stages.key(), 1))["resize"]
    began_s = asyncio.get_running_loop().time()
    outcomes = await apply(opened, stages.key(), "resize", replace(allocation, replicas=3))
    assert outcomes["replicas"] == KnobOutcome("resize", "replicas", 3, 3)
    assert asyncio.get_running_loop().time() - began_s < 20.0, "not before all that could be waited"
