"""The fleet, its loops and the status they leave, on a real API server and with the controller's own rights."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from controller.journal import RoundReport
from controller.loop import PipelineLoop
from controller.memory.store import Store
from controller.state import PipelineView
from sair.errors import SairError
from sair.kube.client import Api, PatchKind
from sair.kube.resources import DEPLOYMENTS, HPAS, PIPELINES, SCALEDOBJECTS
from tests.controller.fleets import Running, RunningFleet
from tests.controller.stages import SERVICE_ACCOUNT, Stages, eventually
from tests.e2e.cluster.control_plane import ControlPlane
from tests.fakes.api_proxy import ApiProxy, Reset

pytestmark = pytest.mark.blocking_allowed  # reading a kubeconfig and its certificates, once

GPU = {"gpu-rate": "0.3", "slo-p99": "300ms"}
ONLY_REPLICAS = {"slo-p99": "300ms", "cpu-min": "1", "cpu-max": "1"}


SCALED_OBJECT = {
    "scaleTargetRef": {"name": "resize"},
    "maxReplicaCount": 3,
    "triggers": [{"type": "cron", "metadata": {"timezone": "UTC", "start": "0 8 * * *", "end": "0 18 * * *"}}],
}
KEDA = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest_asyncio.fixture
async def keda(cluster: ControlPlane) -> AsyncIterator[None]:
    """KEDA's ScaledObjects as a kind; KEDA itself does not run, and who scales is all that is read."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1alpha1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": "ScaledObject", "plural": "scaledobjects", "singular": "scaledobject"}
    body = {
        "metadata": {"name": "scaledobjects.keda.sh"},
        "spec": {"group": "keda.sh", "scope": "Namespaced", "names": names, "versions": [version]},
    }
    async with await Api.from_environment(cluster.kubeconfig) as api:
        await api.create(KEDA, body)
        try:
            await eventually(lambda: served(api))
            yield
        finally:
            await api.delete(f"{KEDA}/scaledobjects.keda.sh")


async def served(api: Api) -> bool:
    """Whether ScaledObjects can be listed by now."""
    try:
        await api.list(SCALEDOBJECTS.path())
    except SairError:
        return False
    return True


@pytest_asyncio.fixture
async def running(cluster: ControlPlane, store: Store) -> AsyncIterator[Running]:
    async with (
        await Api.from_environment(cluster.client_kubeconfig(SERVICE_ACCOUNT)) as api,
        RunningFleet(api, store) as one,
    ):
        yield one


async def decided(stages: Stages, pipeline: str = "shop") -> bool:
    return bool((await stages.pipeline(pipeline)).get("status", {}).get("lastDecision"))


async def test_a_pipeline_is_created_judged_and_shown(stages: Stages, running: Running) -> None:
    node = await stages.node()
    await stages.stage("detect", GPU, node=node)
    await stages.stage("classify", {"after": "detect"}, node=node)
    await eventually(lambda: decided(stages))
    status = (await stages.pipeline())["status"]
    assert [each["name"] for each in status["stages"]] == ["detect", "classify"]
    detect = status["stages"][0]
    assert (detect["workload"], detect["readyReplicas"], detect["memory"]) == ("Deployment/detect", 1, "512Mi")
    assert status["sloSeconds"] == 0.3
    assert status["p99Seconds"] > 0
    assert status["costPerHour"] > 0
    assert status["mode"] == "auto"
    conditions = {each["type"]: each["status"] for each in status["conditions"]}
    assert conditions["MetricsAvailable"] == "True"
    assert conditions["LLMReady"] == "False"
    assert conditions["Conflict"] == conditions["Paused"] == "False"
    # No extender runs: what is wished for is not granted.
    assert conditions["ScalingLimited"] == "True"
    assert "detect" in (await stages.condition("ScalingLimited"))["message"]


async def test_a_round_scales_an_overloaded_deployment_and_tells_by_event(stages: Stages, running: Running) -> None:
    (exporter,) = await stages.stage("resize", ONLY_REPLICAS, node=await stages.node())
    exporter.rate_per_s, exporter.service_s, exporter.latency_s, exporter.queue = 60.0, 0.025, 1.0, 30.0

    async def scaled() -> bool:
        return await stages.replicas("resize") > 1

    await eventually(scaled)

    async def told() -> bool:
        return bool(await stages.notes("Scaled") or await stages.notes("Reflex"))

    await eventually(told)


async def test_recommend_shows_and_does_nothing(stages: Stages, running: Running) -> None:
    (exporter,) = await stages.stage("resize", {**ONLY_REPLICAS, "mode": "recommend"}, node=await stages.node())
    exporter.rate_per_s, exporter.service_s, exporter.latency_s, exporter.queue = 60.0, 0.025, 1.0, 30.0

    async def recommended() -> bool:
        return bool(await stages.notes("Recommended"))

    await eventually(recommended)
    assert await stages.replicas("resize") == 1
    last = (await stages.pipeline())["status"]["lastDecision"]
    assert "recommended only" in last["policy"]
    assert (await stages.condition("Paused"))["reason"] == "Recommend"


@pytest.mark.parametrize("kind", ["HorizontalPodAutoscaler", "ScaledObject"])
async def test_another_autoscaler_on_the_same_workload_is_a_conflict_until_it_is_gone_and_nothing_is_written_meanwhile(
    stages: Stages, keda: None, running: Running, kind: str
) -> None:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "resize"}
    spec = {"scaleTargetRef": target, "maxReplicas": 3} if kind == "HorizontalPodAutoscaler" else SCALED_OBJECT
    owners = HPAS if kind == "HorizontalPodAutoscaler" else SCALEDOBJECTS
    version = "autoscaling/v2" if kind == "HorizontalPodAutoscaler" else "keda.sh/v1alpha1"
    body = {"apiVersion": version, "kind": kind, "metadata": {"name": "own"}, "spec": spec}
    await stages.api.create(owners.path(stages.namespace), body)
    (exporter,) = await stages.stage("resize", {"slo-p99": "300ms"}, node=await stages.node())
    before = await stages.api.get(DEPLOYMENTS.path(stages.namespace, "resize"))

    async def conflict(holds: str) -> bool:
        return (await stages.condition("Conflict")).get("status") == holds

    await eventually(lambda: conflict("True"))
    assert (await stages.condition("Conflict"))["message"] == f"{kind}/own scales Deployment/resize as well"
    assert (await stages.condition("Paused"))["status"] == "True"
    # From now on it would be scaled in the next round.
    exporter.rate_per_s, exporter.service_s, exporter.latency_s, exporter.queue = 60.0, 0.025, 1.0, 30.0

    async def recommended() -> bool:
        return bool(await stages.notes("Recommended"))

    await eventually(recommended)
    after = await stages.api.get(DEPLOYMENTS.path(stages.namespace, "resize"))
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert await stages.cpu("resize-0") == {"requests": "1"}
    assert not await stages.notes("Scaled")
    assert not await stages.notes("Reflex")
    await stages.api.delete(owners.path(stages.namespace, "own"))
    await eventually(lambda: conflict("False"))

    async def scaled() -> bool:
        return await stages.replicas("resize") > 1 or await stages.cpu("resize-0") != {"requests": "1"}

    await eventually(scaled)


async def test_without_metrics_it_holds_and_says_why_and_goes_on_when_they_are_back(
    stages: Stages, running: Running
) -> None:
    (exporter,) = await stages.stage("resize", ONLY_REPLICAS, node=await stages.node())
    exporter.broken = exporter.text().replace("sair_stage_queue_depth 0.0", "sair_stage_queue_depth NaN")

    async def available(holds: str) -> bool:
        return (await stages.condition("MetricsAvailable")).get("status") == holds

    await eventually(lambda: available("False"))
    message = (await stages.condition("MetricsAvailable"))["message"]
    assert "sair_stage_queue_depth" in message
    assert await stages.replicas("resize") == 1
    exporter.broken = None
    await eventually(lambda: available("True"))
    await eventually(lambda: decided(stages))


async def test_one_pipeline_that_fails_stops_no_other(stages: Stages, running: Running) -> None:
    node = await stages.node()
    running.broken.add(stages.key("bad"))
    await stages.stage("a", {"mode": "recommend"}, node=node, pipeline="bad")
    await stages.deployment("b", {"gpu-rate": "none"}, pipeline="worse")
    await stages.stage("c", {"mode": "recommend"}, node=node, pipeline="good")
    await eventually(lambda: decided(stages, "good"))

    async def counted() -> bool:
        return (
            f'sair_controller_loop_failures_total{{namespace="{stages.namespace}",pipeline="bad"}}' in running.metrics()
        )

    await eventually(counted)
    running.broken.clear()
    await eventually(lambda: decided(stages, "bad"))
    assert await stages.pipeline("worse") == {}


async def test_a_pipeline_object_that_somebody_deletes_comes_back_while_there_are_stages(
    stages: Stages, running: Running
) -> None:
    await stages.stage("a", {"mode": "off"}, node=await stages.node())

    async def there() -> bool:
        return bool(await stages.pipeline())

    await eventually(there)
    uid = (await stages.pipeline())["metadata"]["uid"]
    await stages.api.delete(PIPELINES.path(stages.namespace, "shop"))

    async def another() -> bool:
        now = await stages.pipeline()
        return bool(now) and now["metadata"]["uid"] != uid

    await eventually(another)


async def test_a_pipeline_that_is_gone_has_no_loop_and_no_gauges(stages: Stages, running: Running) -> None:
    await stages.stage("a", {"mode": "off"}, node=await stages.node())
    await eventually(lambda: _has_slo(running, stages))
    assert stages.key() in running.crowd
    await stages.api.delete(DEPLOYMENTS.path(stages.namespace, "a"))

    async def gone() -> bool:
        return stages.key() not in running.fleet.pipelines and not await _has_slo(running, stages)

    await eventually(gone)
    assert stages.key() not in running.crowd


async def _has_slo(running: Running, stages: Stages) -> bool:
    return f'sair_pipeline_slo_seconds{{namespace="{stages.namespace}"' in running.metrics()


async def test_it_survives_the_loss_of_the_api_server(
    cluster: ControlPlane, stages: Stages, store: Store, tmp_path: Path
) -> None:
    await stages.stage("a", {"mode": "recommend"}, node=await stages.node())
    async with (
        ApiProxy(cluster.client_kubeconfig(SERVICE_ACCOUNT), tmp_path) as proxy,
        await Api.from_environment(proxy.kubeconfig, timeout_s=2.0) as api,
        RunningFleet(api, store),
    ):
        await eventually(lambda: decided(stages))
        proxy.on(lambda _request: True, Reset(), times=60)
        proxy.reset_connections()
        before = int((await stages.pipeline())["status"]["lastDecision"]["round"])

        async def goes_on() -> bool:
            return int((await stages.pipeline())["status"]["lastDecision"]["round"]) >= before + 3

        await eventually(goes_on)


async def test_mode_follows_the_pipeline_object_at_once(stages: Stages, running: Running) -> None:
    await stages.stage("a", {}, node=await stages.node())
    await eventually(lambda: decided(stages))
    await stages.api.patch(PIPELINES.path(stages.namespace, "shop"), {"spec": {"mode": "off"}}, PatchKind.MERGE)

    async def off() -> bool:
        return (await stages.condition("Paused")).get("reason") == "Off"

    await eventually(off)


async def test_a_stage_that_does_not_export_its_service_time_is_known_by_an_estimate(
    stages: Stages, running: Running
) -> None:
    (exporter,) = await stages.stage("resize", {**ONLY_REPLICAS, "mode": "recommend"}, node=await stages.node())
    exporter.tells_service = False

    async def known() -> bool:
        condition = await stages.condition("MetricsAvailable")
        return (condition.get("status"), condition.get("reason")) == ("True", "Scraped")

    await eventually(known)
    assert (await running.world.observe(stages.key(), 2.0)).stages[0].service_s is not None


class Deaf(PipelineLoop):
    """Loses a cancellation as a library may, in the middle of a round, and goes on."""

    waits = asyncio.Event()

    async def round(self, view: PipelineView) -> RoundReport:
        with contextlib.suppress(asyncio.CancelledError):
            self.waits.set()
            await asyncio.sleep(30)
        return await super().round(view)


async def test_a_loop_that_lost_its_cancellation_ends_all_the_same(
    cluster: ControlPlane, stages: Stages, store: Store
) -> None:
    await stages.stage("a", {"mode": "recommend"}, node=await stages.node())
    async with (
        await Api.from_environment(cluster.client_kubeconfig(SERVICE_ACCOUNT)) as api,
        asyncio.timeout(25),
        RunningFleet(api, store, Deaf),
    ):
        await Deaf.waits.wait()
