"""The extender over HTTP against a real API server."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from sair.annotations import GPU_GRANTED, GPU_GRANTED_AT, GPU_INDEX, GPUS
from sair.kube.client import Api
from sair.kube.patch import merge_patch_annotations
from sair.kube.resources import NODES, PODS
from sair.quantities import GpuRate
from tests.e2e.cluster.control_plane import ControlPlane
from tests.extender.cluster import Cluster, Scheduler, eventually, extender
from tests.fakes.api_proxy import ApiProxy, Hang, Reset


async def raw(cluster: Cluster, name: str) -> dict[str, object]:
    return await cluster.api.get(PODS.path(cluster.namespace, name))


async def knows(scheduler: Scheduler, node: str) -> None:
    """Wait until the extender knows a node's GPUs."""

    async def is_so() -> bool:
        return bool(scheduler.server.ledger.cards(node))

    await eventually(is_so)


async def test_a_bind_carries_node_gpu_and_share_in_one_version_of_the_pod(api: Api, cluster: Cluster) -> None:
    node = await cluster.node("a", 2)
    pod = await cluster.pod("one", "0.7", memory="8000Mi")
    async with extender(api) as scheduler:
        assert (await scheduler.filter(await raw(cluster, "one"), [node]))["NodeNames"] == [node]
        assert await scheduler.bind(pod, node) == ""

        bound = await cluster.get("one")
        assert (bound.node, bound.granted, bound.index) == (node, GpuRate(700), 0)
        # Created and bound: there was no version in between that had one without the other.
        assert (await raw(cluster, "one"))["metadata"]["annotations"].keys() >= {GPU_GRANTED, GPU_INDEX}  # type: ignore[index]
        assert scheduler.server.ledger.cards(node)[0].free_milli == 300


async def test_a_bind_of_a_pod_that_was_replaced_is_an_error(api: Api, cluster: Cluster) -> None:
    node = await cluster.node("a", 1)
    pod = await cluster.pod("one")
    async with extender(api) as scheduler:
        error = await scheduler.bind(pod, node, uid="8e2f9d0c-0000-4000-8000-000000000000")

        assert error == f"pod {pod.key} is another one by now"
        assert (await cluster.get("one")).node is None
        assert scheduler.server.ledger.cards(node)[0].free_milli == 1000


async def test_a_bind_of_a_pod_that_is_gone_is_an_error(api: Api, cluster: Cluster) -> None:
    node = await cluster.node("a", 1)
    pod = await cluster.pod("one")
    async with extender(api) as scheduler:
        await cluster.delete("one")

        assert "404" in await scheduler.bind(pod, node) or "gone" in await scheduler.bind(pod, node)


async def test_a_pod_that_changed_since_is_bound_as_it_is_now(
    api: Api, proxied: Api, proxy: ApiProxy, cluster: Cluster
) -> None:
    node = await cluster.node("a", 1)
    pod = await cluster.pod("one", "0.7")
    async with extender(proxied) as scheduler:
        # From here on its watches are deaf, so that its copy of the pod is old.
        proxy.on(lambda request: request.is_watch and request.path == "/api/v1/pods", Hang(), times=10)
        proxy.reset_connections()
        await cluster.annotate("one", "0.4")

        assert await scheduler.bind(pod, node) == ""
        assert (await cluster.get("one")).granted == GpuRate(400)


async def test_an_unannotated_pod_passes_and_is_bound_plainly(api: Api, cluster: Cluster) -> None:
    node = await cluster.node("bare", 0)
    pod = await cluster.pod("cpu", None)
    async with extender(api) as scheduler:
        answer = await scheduler.filter(await raw(cluster, "cpu"), [node, "elsewhere"])
        assert (answer["NodeNames"], answer["Error"]) == ([node, "elsewhere"], "")
        assert set((await scheduler.prioritize(await raw(cluster, "cpu"), [node, "elsewhere"])).values()) == {0}
        assert await scheduler.bind(pod, node) == ""

        bound = await cluster.get("cpu")
        assert (bound.node, bound.granted) == (node, None)


async def test_filter_says_why_a_node_is_out_and_prioritize_prefers_fewer_siblings(api: Api, cluster: Cluster) -> None:
    full, free, bare = await cluster.node("full", 1), await cluster.node("free", 1), await cluster.node("bare", 0)
    first = await cluster.pod("first", "0.6", stage="inference")
    await cluster.pod("next", "0.5", stage="inference")
    await cluster.pod("small", "0.2", stage="inference")
    async with extender(api) as scheduler:
        assert await scheduler.bind(first, full) == ""

        answer = await scheduler.filter(await raw(cluster, "next"), [full, free, bare])
        scores = await scheduler.prioritize(await raw(cluster, "small"), [full, free])

    assert answer["NodeNames"] == [free]
    assert answer["FailedNodes"] == {full: "node(s) without a GPU with room (gpu 0: 0.4 of 0.5 free)"}
    assert list(answer["FailedAndUnresolvableNodes"]) == [bare]
    assert scores[free] > scores[full]


async def test_forty_binds_at_once_fill_the_gpus_and_not_more(api: Api, cluster: Cluster) -> None:
    node = await cluster.node("a", 8)
    pods = [await cluster.pod(f"p{i}", "0.3", stage="inference") for i in range(40)]
    async with extender(api) as scheduler:
        errors = await asyncio.gather(*(scheduler.bind(pod, node) for pod in pods))

        assert errors.count("") == 24, errors  # three of 0.3 fit on each
        assert {error for error in errors if error} == {
            "gpu 0: 0.1 of 0.3 free; gpu 1: 0.1 of 0.3 free; 6 others are no closer"
        }
        assert await cluster.per_gpu() == {(node, index): 900 for index in range(8)}


async def test_a_raise_and_a_lowering_of_live_pods_are_granted_and_reported(api: Api, cluster: Cluster) -> None:
    node = await cluster.node("a", 1)
    pod = await cluster.pod("one", "0.3")
    async with extender(api) as scheduler:
        assert await scheduler.bind(pod, node) == ""
        await cluster.wish("one", "0.8")
        await cluster.granted("one", "0.8")
        await cluster.wish("one", "0.2")
        await cluster.granted("one", "0.2")

        await cluster.noted("GpuRateGranted", "0.3 → 0.8 of gpu 0")
        status, metrics = await scheduler.text("/metrics")

    assert status == 200
    assert f'sair_extender_gpu_share{{gpu="0",node="{node}"}} 0.2' in metrics
    assert 'sair_extender_grant_seconds_count{direction="raise"} 1.0' in metrics


async def test_an_uncontended_raise_or_lowering_is_exactly_one_change_of_the_pod(api: Api, cluster: Cluster) -> None:
    node = await cluster.node("a", 1)
    pod = await cluster.pod("one", "0.3")
    async with extender(api, remind_after_s=3600.0) as scheduler:
        assert await scheduler.bind(pod, node) == ""
        for rate in ("0.8", "0.2", "0.5"):
            await cluster.wish("one", rate)
            await cluster.granted("one", rate)

        async def all_told() -> bool:
            return cluster.history["one"][-1].granted == GpuRate(500)

        await eventually(all_told)

    created, *bound = cluster.history["one"]
    assert created.granted is None
    assert [(str(one.desired), str(one.granted)) for one in bound] == [
        ("0.3", "0.3"),
        ("0.8", "0.8"),
        ("0.2", "0.2"),
        ("0.5", "0.5"),
    ]


async def test_a_grant_is_followed_by_one_more_change_of_the_pod_and_only_the_newest_is(
    api: Api, cluster: Cluster
) -> None:
    node = await cluster.node("a", 1)
    pods = [await cluster.pod(name, "0.3") for name in ("one", "gone")]
    async with extender(api, remind_after_s=2.0) as scheduler:
        for pod in pods:
            assert await scheduler.bind(pod, node) == ""
        await cluster.wish("gone", "0.2")
        await cluster.granted("gone", "0.2")
        await cluster.delete("gone")
        for rate in ("0.5", "0.4"):
            await cluster.wish("one", rate)
            await cluster.granted("one", rate)

        async def reminded() -> bool:
            return GPU_GRANTED_AT in (await raw(cluster, "one"))["metadata"]["annotations"]  # type: ignore[index]

        await eventually(reminded)
        # A raise after it finds the pod as the reminder left it.
        await cluster.wish("one", "0.6")
        await cluster.granted("one", "0.6")

    metadata = (await raw(cluster, "one"))["metadata"]
    at = datetime.fromisoformat(metadata["annotations"][GPU_GRANTED_AT])  # type: ignore[index]
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=5)
    granted = [str(one.granted) for one in cluster.history["one"]]
    assert granted == ["None", "0.3", "0.5", "0.4", "0.4", "0.6"]


async def test_a_wish_for_a_stage_reaches_all_its_pods_those_being_bound_too(api: Api, cluster: Cluster) -> None:
    node = await cluster.node("a", 2)
    one, two, late = [await cluster.pod(name, "0.2", stage="detect") for name in ("one", "two", "late")]
    async with extender(api) as scheduler:
        assert [await scheduler.bind(pod, node) for pod in (one, two)] == ["", ""]
        await cluster.wish("detect", "0.4")
        await cluster.granted("one", "0.4")
        await cluster.granted("two", "0.4")
        assert await scheduler.bind(late, node) == ""

        bound = await cluster.get("late")
        assert (bound.desired, bound.granted) == (GpuRate(400), GpuRate(400))


async def test_a_share_annotated_by_hand_is_granted_unless_a_pipeline_wishes_for_another(
    api: Api, cluster: Cluster
) -> None:
    node = await cluster.node("a", 1)
    pod = await cluster.pod("one", "0.3")
    async with extender(api) as scheduler:
        assert await scheduler.bind(pod, node) == ""
        await cluster.annotate("one", "0.6")
        await cluster.granted("one", "0.6")
        await cluster.wish("one", "0.4")
        await cluster.granted("one", "0.4")
        await cluster.annotate("one", "0.9")

        async def put_right() -> bool:
            return (await cluster.get("one")).desired == GpuRate(400)

        await eventually(put_right)
        assert (await cluster.get("one")).granted == GpuRate(400)


async def test_a_raise_that_does_not_fit_waits_keeps_its_room_and_is_granted_when_a_neighbour_leaves(
    api: Api, cluster: Cluster
) -> None:
    node = await cluster.node("a", 1)
    one, two, three = [
        await cluster.pod(name, rate) for name, rate in (("one", "0.3"), ("two", "0.5"), ("three", "0.2"))
    ]
    async with extender(api) as scheduler:
        assert [await scheduler.bind(pod, node) for pod in (one, two)] == ["", ""]
        await cluster.wish("one", "0.6")
        await cluster.noted("GpuRateWaiting", "0.3 → 0.6: gpu 0 has 0.2 of the 0.3 more that it takes; kept for it")

        async def it_shows_on_the_pod() -> bool:
            return (await cluster.get("one")).desired == GpuRate(600)

        await eventually(it_shows_on_the_pod)
        assert (await cluster.get("one")).granted == GpuRate(300)
        assert await scheduler.bind(three, node) == "gpu 0: 0 of 0.2 free (0.2 kept for waiting raises)"
        await cluster.delete("two")
        await cluster.granted("one", "0.6")
        assert await scheduler.bind(three, node) == ""


@pytest.mark.timeout(240)
async def test_two_raises_and_a_bind_race_for_the_last_share(api: Api, cluster: Cluster) -> None:
    """Whoever wins: never over 1 (the fixture judges every version), and no wish is lost once there is room."""
    node = await cluster.node("a", 1)
    async with extender(api) as scheduler:
        for number in range(25):
            left, right = await cluster.pod(f"left-{number}", "0.3"), await cluster.pod(f"right-{number}", "0.4")
            late = await cluster.pod(f"late-{number}", "0.3")
            assert [await scheduler.bind(pod, node) for pod in (left, right)] == ["", ""]

            await asyncio.gather(
                cluster.wish(left.name, "0.6"), cluster.wish(right.name, "0.7"), scheduler.bind(late, node)
            )
            # Whether the late one got it or not: without it one raise fits, and without that one the other.
            await cluster.delete(late.name)

            async def one_is_raised(first: str = left.name, second: str = right.name) -> bool:
                shares = [str((await cluster.get(name)).granted) for name in (first, second)]
                return shares[0] == "0.6" or shares[1] == "0.7"

            await eventually(one_is_raised)
            if str((await cluster.get(left.name)).granted) == "0.6":
                await cluster.delete(left.name)
                await cluster.granted(right.name, "0.7")
                await cluster.delete(right.name)
            else:
                await cluster.delete(right.name)
                await cluster.granted(left.name, "0.6")
                await cluster.delete(left.name)


async def test_a_restart_rebuilds_the_ledger_from_the_annotations(api: Api, cluster: Cluster) -> None:
    node = await cluster.node("a", 2)
    pods = [await cluster.pod(f"p{i}", "0.4", memory="3000Mi") for i in range(3)]
    async with extender(api) as scheduler:
        assert [await scheduler.bind(pod, node) for pod in pods] == ["", "", ""]

        async def settled() -> bool:
            known = [scheduler.server.ledger.replica(pod.uid) for pod in pods]
            return known == [await cluster.get(pod.name) for pod in pods]

        await eventually(settled)
        before = scheduler.server.ledger.cards(node)
    await cluster.wish("p0", "0.9")  # while nobody is there
    async with extender(api) as scheduler:
        await cluster.noted("GpuRateWaiting", "0.4 → 0.9")
        await cluster.wish("p0", "0.4")

        async def same() -> bool:
            return scheduler.server.ledger.cards(node) == before

        await eventually(same)


async def test_a_bind_whose_answer_was_lost_counts_and_its_repetition_succeeds(
    api: Api, proxied: Api, proxy: ApiProxy, cluster: Cluster
) -> None:
    node = await cluster.node("a", 2)
    pod = await cluster.pod("one", "0.6")
    async with extender(proxied) as scheduler:
        proxy.on(lambda request: request.path.endswith("/binding"), Reset(after=True))

        assert "POST" in await scheduler.bind(pod, node)
        assert await scheduler.bind(pod, node) == ""

        assert await cluster.per_gpu() == {(node, 0): 600}
        assert [card.free_milli for card in scheduler.server.ledger.cards(node)] == [400, 1000]


async def test_a_bind_whose_request_was_lost_is_repeated_on_the_same_gpu(
    api: Api, proxied: Api, proxy: ApiProxy, cluster: Cluster
) -> None:
    node = await cluster.node("a", 2)
    pod = await cluster.pod("one", "0.6")
    async with extender(proxied) as scheduler:
        proxy.on(lambda request: request.path.endswith("/binding"), Reset())

        assert "POST" in await scheduler.bind(pod, node)
        assert [card.free_milli for card in scheduler.server.ledger.cards(node)] == [400, 1000]
        assert await scheduler.bind(pod, node) == ""

        assert await cluster.per_gpu() == {(node, 0): 600}


async def test_an_extender_killed_after_its_bind_was_sent_finds_it_again(
    api: Api, proxied: Api, proxy: ApiProxy, cluster: Cluster
) -> None:
    node = await cluster.node("a", 1)
    pod, other = await cluster.pod("one", "0.6"), await cluster.pod("two", "0.6")
    async with extender(proxied) as scheduler:
        proxy.on(lambda request: request.path.endswith("/binding"), Reset(after=True))
        await scheduler.bind(pod, node)
    async with extender(api) as scheduler:
        assert await scheduler.bind(other, node) == "gpu 0: 0.4 of 0.6 free"


@pytest.mark.parametrize("after", [True, False])
async def test_a_grant_whose_answer_was_lost_is_settled(
    api: Api, proxied: Api, proxy: ApiProxy, cluster: Cluster, after: bool
) -> None:
    node = await cluster.node("a", 1)
    pod = await cluster.pod("one", "0.3")
    async with extender(proxied) as scheduler:
        assert await scheduler.bind(pod, node) == ""
        proxy.on(lambda request: request.method == "PATCH" and "/pods/" in request.path, Reset(after=after), times=2)
        await cluster.wish("one", "0.9")
        await cluster.granted("one", "0.9")

        async def settled() -> bool:
            return [card.free_milli for card in scheduler.server.ledger.cards(node)] == [100]

        await eventually(settled)


async def test_nothing_is_placed_before_the_ledger_is_whole(
    api: Api, proxied: Api, proxy: ApiProxy, cluster: Cluster
) -> None:
    node = await cluster.node("a", 1)
    pod = await cluster.pod("one", "0.3")
    proxy.on(lambda request: request.is_list and request.path == "/api/v1/pods", Hang())
    async with extender(proxied, wait=False) as scheduler:
        await knows(scheduler, node)
        answer = await scheduler.filter(await raw(cluster, "one"), [node])
        error = await scheduler.bind(pod, node)
        status, text = await scheduler.text("/readyz")

    assert (answer["NodeNames"], answer["Error"]) == (
        None,
        "the GPU ledger is still being rebuilt from the cluster's annotations",
    )
    assert error == answer["Error"]
    assert (status, text) == (503, "not ready: pods not listed yet\n")


async def test_while_the_api_server_is_away_nothing_is_bound_and_afterwards_everything_goes_on(
    control_plane: ControlPlane, api: Api, cluster: Cluster
) -> None:
    node = await cluster.node("a", 1)
    one, two = await cluster.pod("one", "0.4"), await cluster.pod("two", "0.4")
    async with extender(api) as scheduler:
        assert await scheduler.bind(one, node) == ""
        await asyncio.to_thread(control_plane.stop)
        try:
            assert await scheduler.bind(two, node) != ""
            assert (
                scheduler.server.ledger.cards(node)[0].free_milli == 200
            )  # for all it knows, that bind may have happened
        finally:
            await asyncio.to_thread(control_plane.start)
        assert await scheduler.bind(two, node) == ""
        await cluster.wish("one", "0.6")
        await cluster.granted("one", "0.6")
        assert not scheduler.server.work.done()


async def test_a_pod_that_another_scheduler_bound_is_reported(api: Api, cluster: Cluster) -> None:
    node = await cluster.node("a", 1)
    async with extender(api):
        await cluster.pod("foreign", "0.3")
        body = {"metadata": {"name": "foreign"}, "target": {"kind": "Node", "name": node}}
        await api.create(PODS.path(cluster.namespace, "foreign", "binding"), body)

        await cluster.noted("GpuRateRefused", "by another scheduler: no GPU was granted")


async def test_a_node_that_loses_a_gpu_is_reported_on_the_node_and_raises_stop(api: Api, cluster: Cluster) -> None:

    node = await cluster.node("a", 1)
    pod = await cluster.pod("one", "0.3")
    async with extender(api) as scheduler:
        assert await scheduler.bind(pod, node) == ""
        await merge_patch_annotations(api, NODES, None, node, {GPUS: "[]"}, component="agent")
        await cluster.wish("one", "0.6")
        await cluster.noted("GpuRateRefused", "gpu 0 is not in the inventory of node")
        assert (await cluster.get("one")).granted == GpuRate(300)


async def test_a_malformed_request_is_refused(api: Api) -> None:
    async with extender(api) as scheduler, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{scheduler.server.scheduler.port}"
        for verb, body in (
            ("filter", b"{"),
            ("filter", b'{"Pod":{"metadata":{}},"NodeNames":[]}'),
            ("bind", b"{}"),
            ("prioritize", b"[]"),
        ):
            async with session.post(f"{url}/{verb}", data=body) as answer:
                assert answer.status == 400, (verb, body)
