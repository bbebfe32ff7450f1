"""The world on a real API server, with the controller's own rights and no others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from controller.state import KnobOutcome
from controller.worlds.wishing import write_rates
from sair.errors import ApiUnavailable, MetricsUnavailable, NotFound
from sair.kube.client import Api, PatchKind, Raw
from sair.kube.patch import merge_patch_annotations
from sair.kube.resources import DEPLOYMENTS, PIPELINES, PODS
from sair.quantities import GpuRate, Millicores
from tests.controller.stages import EXTENDER, Stages, eventually
from tests.controller.worlds.opening import Opened, apply, ready
from tests.e2e.cluster.control_plane import ControlPlane

pytestmark = pytest.mark.blocking_allowed  # reading a kubeconfig and its certificates, once

GPU = {"gpu-rate": "0.3"}


async def changes(api: Api, path: str, after: str) -> AsyncIterator[Raw]:
    """What happened to a collection since a version; ends when nothing more does."""
    async with contextlib.aclosing(api.watch(path, {"resourceVersion": after, "timeoutSeconds": "1"})) as events:
        async for event in events:
            yield event


async def test_a_window_adds_up_what_all_pods_of_a_stage_export(stages: Stages, opened: Opened) -> None:
    node = await stages.node()
    one, two = await stages.stage("detect", GPU, node=node, replicas=2)
    one.rate_per_s, two.rate_per_s, two.queue = 30.0, 10.0, 4.0
    await ready(opened, stages.key(), 2)
    await asyncio.sleep(1.1)
    seen = await opened.world.observe(stages.key(), 2.0)
    assert seen.arrivals_per_s == pytest.approx(40, rel=0.1)
    (stage,) = seen.stages
    assert (stage.ready, stage.queue_depth) == (2, 4.0)
    assert stage.service_s == pytest.approx(0.01)
    assert seen.p99_s is not None and 0.01 < seen.p99_s <= 0.025
    room = await opened.world.room(stages.key())
    mine = next(each for each in room.nodes if each.name == node)
    assert mine.free_cpu == 62_000
    assert mine.held == {"detect": 2}


async def test_a_glance_asks_only_the_pods_where_requests_enter_and_a_look_soon_afterwards_all_of_them(
    stages: Stages, opened: Opened
) -> None:
    node = await stages.node()
    (entry,) = await stages.stage("detect", GPU, node=node)
    (behind,) = await stages.stage("store", {"after": "detect"}, node=node)
    entry.rate_per_s, behind.rate_per_s = 30.0, 90.0
    await ready(opened, stages.key(), 2)
    await asyncio.sleep(0.6)
    entered, others = entry.asked, behind.asked
    assert await opened.world.entering(stages.key(), 0.5) == pytest.approx(30.0, rel=0.2)
    assert (entry.asked, behind.asked) == (entered + 1, others)
    await asyncio.sleep(0.1)
    await opened.world.gauges(stages.key(), 0.5)
    assert (entry.asked, behind.asked) == (entered + 2, others + 1)


async def test_a_scale_subresource_takes_replicas_and_nothing_else_of_the_deployment_changes(
    stages: Stages, opened: Opened
) -> None:
    await stages.stage("resize", node=await stages.node())
    allocation = (await ready(opened, stages.key(), 1))["resize"]
    before = await stages.api.get(DEPLOYMENTS.path(stages.namespace, "resize"))
    outcomes = await apply(opened, stages.key(), "resize", replace(allocation, replicas=3))
    after = await stages.api.get(DEPLOYMENTS.path(stages.namespace, "resize"))
    assert outcomes == {"replicas": KnobOutcome("resize", "replicas", 3, 3)}
    assert after["spec"] == {**before["spec"], "replicas": 3}


async def test_a_share_nobody_grants_is_wished_for_in_the_pipelines_status_and_recorded_as_not_granted(
    stages: Stages, opened: Opened
) -> None:
    await stages.object()
    await stages.stage("detect", GPU, node=await stages.node(), replicas=2)
    allocation = (await ready(opened, stages.key(), 2))["detect"]
    outcome = (await apply(opened, stages.key(), "detect", replace(allocation, gpu_rate=GpuRate(500))))["gpu_rate"]
    assert (outcome.wished, outcome.granted) == (500, 0)
    assert "2 of 2 replicas" in outcome.reason
    assert await stages.wish("detect") == "0.5"
    # The pods are the extender's to change.
    assert [await stages.rate(f"detect-{number}") for number in range(2)] == ["0.3", "0.3"]
    seen = (await opened.world.observe(stages.key(), 2.0)).stages[0]
    assert seen.allocation.gpu_rate == GpuRate(500)
    assert seen.granted == GpuRate(50), "the hook holds a pod without a grant to the lowest rate"
    # A wish that was not granted does not stand in the way of the next one.
    outcome = (await apply(opened, stages.key(), "detect", replace(allocation, gpu_rate=GpuRate(200))))["gpu_rate"]
    assert await stages.wish("detect") == "0.2"


async def test_shares_of_several_stages_are_one_change_that_leaves_the_rest_of_the_status_alone(
    stages: Stages, opened: Opened
) -> None:
    await stages.object()
    node = await stages.node()
    for name in ("detect", "rank"):
        await stages.stage(name, GPU, node=node)
    path = PIPELINES.path(stages.namespace, "shop", "status")
    status = {"bottleneck": "rank", "stages": [{"name": "rank", "queueDepth": 4, "cpu": "2", "gpuRate": "0.3"}]}
    await stages.api.patch(path, {"status": status}, PatchKind.MERGE)
    allocations = await ready(opened, stages.key(), 2)
    before = (await stages.pipeline())["metadata"]["resourceVersion"]
    wanted = {name: replace(each, gpu_rate=GpuRate(450)) for name, each in allocations.items()}
    await opened.world.apply(stages.key(), wanted, reason="a test")
    after = await stages.pipeline()
    assert {one["name"]: one.get("gpuRate") for one in after["status"]["stages"]} == {"detect": "0.45", "rank": "0.45"}
    rank = next(one for one in after["status"]["stages"] if one["name"] == "rank")
    assert (rank["queueDepth"], rank["cpu"], after["status"]["bottleneck"]) == (4, "2", "rank")
    assert after["status"]["mode"] == "auto"
    versions = [
        event["object"]["metadata"]["resourceVersion"]
        async for event in changes(stages.api, PIPELINES.path(stages.namespace), before)
    ]
    assert versions == [after["metadata"]["resourceVersion"]]


async def test_a_share_for_a_pipeline_without_an_object_is_an_outcome_and_wished_for_once_there_is_one(
    stages: Stages, opened: Opened
) -> None:
    await stages.stage("detect", GPU, node=await stages.node())
    allocation = (await ready(opened, stages.key(), 1))["detect"]
    outcome = (await apply(opened, stages.key(), "detect", replace(allocation, gpu_rate=GpuRate(500))))["gpu_rate"]
    assert "404" in outcome.reason or "not found" in outcome.reason
    assert opened.world.wished_rate(stages.key(), "detect") is None
    await stages.object()
    await opened.world.gauges(stages.key(), 2.0)
    await apply(opened, stages.key(), "detect", replace(allocation, gpu_rate=GpuRate(500)))
    assert await stages.wish("detect") == "0.5"


async def test_writers_of_one_status_undo_nothing_of_each_other(stages: Stages, opened: Opened) -> None:
    await stages.object()
    names = ("detect", "rank", "store")
    for name in names:
        await stages.deployment(name, GPU)

    async def found() -> bool:
        return stages.key() in opened.world.found() and len(opened.world.found()[stages.key()].workloads) == 3

    await eventually(found)
    for rate in (400, 500, 600):
        here = opened.world.found()[stages.key()]
        writes = [write_rates(opened.api, here, {name: GpuRate(rate)}, component="controller") for name in names]
        await asyncio.gather(*writes)
        assert {await stages.wish(name) for name in names} == {f"0.{rate // 100}"}


async def test_a_wish_that_somebody_took_out_of_the_status_is_put_back(stages: Stages, opened: Opened) -> None:
    await stages.object()
    await stages.stage("detect", GPU, node=await stages.node())
    allocation = (await ready(opened, stages.key(), 1))["detect"]
    await apply(opened, stages.key(), "detect", replace(allocation, gpu_rate=GpuRate(500)))
    path = PIPELINES.path(stages.namespace, "shop", "status")
    await stages.api.patch(path, {"status": {"stages": [{"name": "detect", "gpuRate": "0.1"}]}}, PatchKind.MERGE)

    async def put_back() -> bool:
        await opened.world.settle(stages.key())
        return await stages.wish("detect") == "0.5"

    await eventually(put_back)


async def test_a_grant_that_comes_while_it_is_waited_for_counts(
    stages: Stages, opened: Opened, cluster: ControlPlane
) -> None:
    await stages.object()
    await stages.stage("detect", GPU, node=await stages.node())
    allocation = (await ready(opened, stages.key(), 1))["detect"]

    async def extender() -> None:
        async with await Api.from_environment(cluster.kubeconfig) as admin:
            clusterrole = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
            name = f"{stages.namespace}-extender"
            subject = {"kind": "User", "name": EXTENDER, "apiGroup": "rbac.authorization.k8s.io"}
            role = {"kind": "ClusterRole", "name": "cluster-admin", "apiGroup": "rbac.authorization.k8s.io"}
            await admin.create(clusterrole, {"metadata": {"name": name}, "subjects": [subject], "roleRef": role})
        async with await Api.from_environment(cluster.client_kubeconfig(EXTENDER)) as granting:

            async def wished() -> bool:
                return await stages.wish("detect") == "0.6"

            await eventually(wished)
            grant: dict[str, str | None] = {f"sair.dev/gpu-{key}": "0.6" for key in ("rate", "granted")}
            grant["sair.dev/gpu-index"] = "1"
            await merge_patch_annotations(granting, PODS, stages.namespace, "detect-0", grant, component="extender")

    granter = asyncio.create_task(extender())
    await asyncio.sleep(0.3)
    outcome = (await apply(opened, stages.key(), "detect", replace(allocation, gpu_rate=GpuRate(600))))["gpu_rate"]
    await granter
    assert outcome == KnobOutcome("detect", "gpu_rate", 600, 600)
    room = await opened.world.room(stages.key())
    cards = next(each for each in room.nodes if each.name.startswith(stages.namespace)).gpus
    assert [card.free_milli for card in cards] == [1000, 400]


@pytest.mark.parametrize(
    ("request_cpu", "limit", "after"),
    [
        ("1", None, {"requests": "1500m"}),
        ("1", "4", {"requests": "1500m", "limits": "4"}),
        ("1", "1250m", {"requests": "1500m", "limits": "1875m"}),
    ],
    ids=["no limit", "limit above", "limit reached"],
)
async def test_cpu_of_live_pods_is_resized_in_place(
    stages: Stages, opened: Opened, request_cpu: str, limit: str | None, after: dict[str, str]
) -> None:
    await stages.stage("resize", node=await stages.node(), cpu=request_cpu, limit=limit)
    allocation = (await ready(opened, stages.key(), 1))["resize"]
    outcomes = await apply(opened, stages.key(), "resize", replace(allocation, cpu=Millicores(1500)))
    assert outcomes == {"cpu": KnobOutcome("resize", "cpu", 1500, 1500)}
    assert await stages.cpu("resize-0") == after
    assert await stages.replicas("resize") == 1


async def test_a_resize_that_the_node_cannot_do_is_recorded_with_the_nodes_reason(
    stages: Stages, opened: Opened
) -> None:
    await stages.stage("resize", node=await stages.node())
    allocation = (await ready(opened, stages.key(), 1))["resize"]
    pending = {
        "type": "PodResizePending",
        "status": "True",
        "reason": "Infeasible",
        "message": "Node didn't have enough capacity",
    }
    has = {
        "name": "main",
        "image": "example/app:1",
        "imageID": "",
        "ready": True,
        "restartCount": 0,
        "resources": {"requests": {"cpu": "1"}},
    }
    await stages.status_of(
        "resize-0",
        {"conditions": [{"type": "Ready", "status": "True"}, pending], "containerStatuses": [has]},
    )

    async def known() -> bool:
        outcome = (await apply(opened, stages.key(), "resize", replace(allocation, cpu=Millicores(2000)))).get("cpu")
        await opened.world.gauges(stages.key(), 2.0)
        allocation_now = replace(allocation, cpu=Millicores(2500))
        outcome = (await apply(opened, stages.key(), "resize", allocation_now))["cpu"]
        return outcome.granted == 1000 and "Infeasible: Node didn't" in outcome.reason

    await eventually(known)


async def test_a_resize_that_the_api_server_refuses_is_an_outcome_with_its_words_and_is_not_repeated(
    stages: Stages, opened: Opened
) -> None:
    # Without requests a pod is BestEffort, and a resize must not change that.
    await stages.stage("resize", node=await stages.node(), cpu="")
    allocation = (await ready(opened, stages.key(), 1))["resize"]
    outcome = (await apply(opened, stages.key(), "resize", replace(allocation, cpu=Millicores(2000))))["cpu"]
    assert outcome.granted != 2000
    assert "QOS" in outcome.reason.upper()
    assert opened.world.wished_cpu(stages.key(), "resize") is None
    await opened.world.gauges(stages.key(), 2.0)
    outcome = (await apply(opened, stages.key(), "resize", replace(allocation, cpu=Millicores(2000))))["cpu"]
    assert "refused before" in outcome.reason
    await opened.world.gauges(stages.key(), 2.0)
    outcomes = await apply(opened, stages.key(), "resize", replace(allocation, replicas=2))
    assert outcomes == {"replicas": KnobOutcome("resize", "replicas", 2, 2)}


async def test_pods_that_come_after_a_resize_get_it_too(stages: Stages, opened: Opened) -> None:
    node = await stages.node()
    await stages.stage("detect", GPU, node=node)
    allocation = (await ready(opened, stages.key(), 1))["detect"]
    await apply(opened, stages.key(), "detect", replace(allocation, cpu=Millicores(1500)))
    await stages.replica("detect", GPU, node=node, number=1)

    async def settled() -> bool:
        await opened.world.settle(stages.key())
        return await stages.cpu("detect-1") == {"requests": "1500m"}

    await eventually(settled)


async def test_another_leader_knows_the_wishes_from_the_pipelines_status(stages: Stages, opened: Opened) -> None:
    node = await stages.node()
    await stages.stage("detect", GPU | {"gpu-rate-max": "0.6"}, node=node)
    path = PIPELINES.path(stages.namespace, "shop")
    await stages.object()
    status = {"status": {"stages": [{"name": "detect", "gpuRate": "0.9", "cpu": "2"}]}}
    await stages.api.patch(f"{path}/status", status, PatchKind.MERGE)

    async def settled() -> bool:
        if stages.key() in opened.world.found():
            await opened.world.settle(stages.key())
        return await stages.wish("detect") == "0.6" and await stages.cpu("detect-0") == {"requests": "2"}

    # Within the bounds as they are by now.
    await eventually(settled)
    assert opened.world.wished_rate(stages.key(), "detect") == GpuRate(600)
    # Where nobody but the user sets rates, nothing is wished.
    await stages.api.patch(path, {"spec": {"mode": "recommend"}}, PatchKind.MERGE)

    async def left_alone() -> bool:
        return opened.world.wished_rate(stages.key(), "detect") is None

    await eventually(left_alone)


async def test_how_many_rounds_were_decided_is_read_from_the_pipelines_status(stages: Stages, opened: Opened) -> None:
    await stages.stage("detect", GPU, node=await stages.node())
    await stages.object()

    async def shows(number: int) -> bool:
        return await opened.world.decided(stages.key()) == number

    await eventually(lambda: shows(0))
    decision = {"round": 41, "time": "2026-01-01T00:00:00Z", "policy": "llm", "action": "hold"}
    path = f"{PIPELINES.path(stages.namespace, 'shop')}/status"
    await stages.api.patch(path, {"status": {"lastDecision": decision}}, PatchKind.MERGE)
    await eventually(lambda: shows(42))
    undone = {"at": "2026-01-01T00:01:00Z", "outcome": "Done", "round": 42}
    await stages.api.patch(path, {"status": {"rollback": undone}}, PatchKind.MERGE)
    await eventually(lambda: shows(43))
    assert await opened.world.decided(f"{stages.namespace}/another") == 0


async def test_who_no_longer_leads_changes_nothing(stages: Stages, opened: Opened) -> None:
    await stages.object()
    await stages.stage("detect", GPU, node=await stages.node())
    allocation = (await ready(opened, stages.key(), 1))["detect"]
    opened.leader.leads = False
    wanted = replace(allocation, gpu_rate=GpuRate(400), cpu=Millicores(1500), replicas=2)
    with pytest.raises(ApiUnavailable, match="another controller leads"):
        await apply(opened, stages.key(), "detect", wanted)
    assert (await stages.wish("detect"), await stages.replicas("detect")) == (None, 1)
    assert await stages.cpu("detect-0") == {"requests": "1"}
    assert opened.world.wished_rate(stages.key(), "detect") is None


async def test_a_pipeline_that_somebody_switched_off_meanwhile_is_left_alone(stages: Stages, opened: Opened) -> None:
    await stages.stage("detect", GPU, node=await stages.node())
    allocation = (await ready(opened, stages.key(), 1))["detect"]
    await stages.object(mode="off")

    async def seen() -> bool:
        return opened.world.found()[stages.key()].view.mode == "off"

    await eventually(seen)
    outcomes = await apply(opened, stages.key(), "detect", replace(allocation, replicas=3, gpu_rate=GpuRate(500)))
    assert outcomes["replicas"] == KnobOutcome("detect", "replicas", 3, 1, "mode is off by now")
    assert outcomes["gpu_rate"].granted == 300
    assert (await stages.wish("detect"), await stages.replicas("detect")) == (None, 1)


async def test_a_change_by_somebody_else_meanwhile_is_not_undone(stages: Stages, opened: Opened) -> None:
    await stages.stage("resize", node=await stages.node())
    allocation = (await ready(opened, stages.key(), 1))["resize"]
    path = DEPLOYMENTS.path(stages.namespace, "resize")
    await stages.api.patch(path, {"spec": {"replicas": 5}}, PatchKind.MERGE)

    async def seen() -> bool:
        return opened.world.found()[stages.key()].workloads["resize"].replicas == 5

    await eventually(seen)
    await apply(opened, stages.key(), "resize", replace(allocation, cpu=Millicores(1500)))
    assert await stages.replicas("resize") == 5


async def test_a_pod_that_never_answers_makes_the_observation_stale_and_none_that_answers_makes_it_fail(
    stages: Stages, opened: Opened
) -> None:
    node = await stages.node()
    one, two = await stages.stage("detect", GPU, node=node, replicas=2)
    two.status = 500

    async def age_s() -> float:
        try:
            return (await opened.world.observe(stages.key(), 2.0)).age_s
        except (MetricsUnavailable, NotFound):
            return 0.0

    async def stale() -> bool:
        return await age_s() >= 100

    await eventually(stale)
    with pytest.raises(MetricsUnavailable, match="old"):
        await opened.world.gauges(stages.key(), 2.0)
    assert [problem for problem in opened.scraper.problems.values() if "500" in problem]
    one.broken = two.broken = "<html>no metrics here</html>"
    two.status = 200

    async def both_complain() -> bool:
        await age_s()
        return len([problem for problem in opened.scraper.problems.values() if "to be exported" in problem]) == 2

    await eventually(both_complain, lambda: opened.scraper.problems)


async def test_a_histogram_that_ends_below_the_slo_is_no_metric_to_decide_on(stages: Stages, opened: Opened) -> None:
    (exporter,) = await stages.stage("detect", {**GPU, "slo-p99": "30s"}, node=await stages.node())
    exporter.latency_s = 20.0
    with pytest.raises(MetricsUnavailable, match="highest bucket, 5 s"):
        await ready(opened, stages.key(), 1)
