"""The extender under a real kube-scheduler: what becomes of pods that are created and left alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sair.kube.client import Api
from sair.quantities import GpuRate
from tests.controlplane import give_up
from tests.e2e.cluster import binaries
from tests.e2e.cluster.control_plane import ControlPlane
from tests.e2e.cluster.errors import Unavailable
from tests.extender.cluster import Cluster, Scheduler, eventually, extender


def configuration(kubeconfig: Path, port: int, lease: str | None) -> dict[str, Any]:
    """What deploy/base/scheduler/scheduler.yaml says, for this machine."""
    election: dict[str, Any] = {"leaderElect": lease is not None}
    if lease is not None:
        election |= {"resourceNamespace": "kube-system", "resourceName": lease, "resourceLock": "leases"}
    one = {
        "urlPrefix": f"http://127.0.0.1:{port}",
        "filterVerb": "filter",
        "prioritizeVerb": "prioritize",
        "bindVerb": "bind",
        "weight": 10,
        "nodeCacheCapable": True,
        "ignorable": False,
    }
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": str(kubeconfig), "qps": 100, "burst": 200},
        "leaderElection": election,
        "profiles": [{"schedulerName": "sair-scheduler"}],
        "extenders": [one],
    }


@contextlib.asynccontextmanager
async def scheduling(
    control_plane: ControlPlane, api: Api, folder: Path, *, lease: str | None = None, **changes: Any
) -> AsyncIterator[Scheduler]:
    """An extender and a kube-scheduler that asks it."""
    try:
        binaries.require(["kube-scheduler"])
    except Unavailable as reason:
        give_up(reason)
    if lease is not None:
        changes |= {"lease_namespace": "kube-system", "lease_name": lease}
    async with extender(api, wait=False, **changes) as scheduler:
        config = folder / "scheduler.yaml"
        kubeconfig = control_plane.component_kubeconfig("kube-scheduler")
        config.write_text(json.dumps(configuration(kubeconfig, scheduler.server.scheduler.port, lease)))
        name = f"sair-scheduler-{secrets.token_hex(3)}"
        await asyncio.to_thread(control_plane.start_scheduler, config=config, name=name)
        try:
            yield scheduler
        finally:
            await asyncio.to_thread(control_plane.stop_process, name)


async def test_sixteen_halves_fill_eight_gpus_two_on_each(
    control_plane: ControlPlane, api: Api, cluster: Cluster, tmp_path: Path
) -> None:
    nodes = [await cluster.node("a", 4), await cluster.node("b", 4)]
    async with scheduling(control_plane, api, tmp_path):
        for number in range(16):
            await cluster.pod(f"p{number}", "0.5", memory="8000Mi", stage="inference")

        pods = await cluster.bound(16)

    assert {pod.granted for pod in pods} == {GpuRate(500)}
    assert await cluster.per_gpu() == {(node, index): 1000 for node in nodes for index in range(4)}


async def test_forty_replicas_of_several_stages_at_once_are_all_bound(
    control_plane: ControlPlane, api: Api, cluster: Cluster, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        await cluster.node(name, 4)
    async with scheduling(control_plane, api, tmp_path):
        stages = [("detect", "0.25"), ("embed", "0.2"), ("rank", "0.1"), ("caption", "0.15")]
        pods = [cluster.pod(f"{stage}-{number}", rate, stage=stage) for number in range(10) for stage, rate in stages]
        await asyncio.gather(*pods)

        assert all(pod.granted == pod.desired for pod in await cluster.bound(40))


async def test_a_replica_that_fits_nowhere_says_why_and_is_placed_as_soon_as_a_lowering_makes_room(
    control_plane: ControlPlane, api: Api, cluster: Cluster, tmp_path: Path
) -> None:
    nodes = [await cluster.node("a", 1), await cluster.node("b", 1)]
    async with scheduling(control_plane, api, tmp_path):
        for name in ("one", "two"):
            await cluster.pod(name, "0.7", memory="4000Mi")
        await cluster.bound(2)
        await cluster.pod("three", "0.5", memory="16000Mi")
        note = await cluster.noted("FailedScheduling", "gpu 0: 0.3 of 0.5 free, 12000Mi of 16000Mi free")
        assert "nodes are available: " in note
        assert "2 node(s) without a GPU with room (gpu 0" in note
        await cluster.pod("four", "0.5")
        await cluster.noted("FailedScheduling", "2 node(s) without a GPU with room (gpu 0: 0.3 of 0.5 free)")

        await cluster.wish("one", "0.4")
        pods = await cluster.bound(3)

    four = next(pod for pod in pods if pod.name == "four")
    one = next(pod for pod in pods if pod.name == "one")
    assert four.node == one.node
    assert four.node in nodes


async def test_a_node_without_gpus_and_one_whose_gpus_are_too_small_are_told_apart(
    control_plane: ControlPlane, api: Api, cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.node("bare", 0)
    await cluster.node("small", 2, memory_mi=8_000)
    async with scheduling(control_plane, api, tmp_path):
        await cluster.pod("large", "0.5", memory="12000Mi")

        note = await cluster.noted("FailedScheduling", "whose largest GPU")

    assert "1 node(s) whose largest GPU has 8000Mi of the 12000Mi needed" in note
    assert "1 node(s) without a known GPU" in note


async def test_taints_and_node_affinity_are_respected(
    control_plane: ControlPlane, api: Api, cluster: Cluster, tmp_path: Path
) -> None:
    tainted = await cluster.node("tainted", 4, taints=[{"key": "reserved", "value": "yes", "effect": "NoSchedule"}])
    allowed, other = await cluster.node("allowed", 1), await cluster.node("other", 1)
    async with scheduling(control_plane, api, tmp_path):
        for number in range(2):
            await cluster.pod(f"p{number}", "0.5", nodes=[tainted, allowed])

        pods = await cluster.bound(2)

    assert {pod.node for pod in pods} == {allowed}
    assert other not in {pod.node for pod in pods}


async def test_the_extender_beside_the_holder_of_the_lease_grants_and_another_one_does_not(
    control_plane: ControlPlane, api: Api, cluster: Cluster, tmp_path: Path
) -> None:
    node = await cluster.node("a", 1)
    lease = f"sair-scheduler-{secrets.token_hex(3)}"
    async with (
        scheduling(control_plane, api, tmp_path, lease=lease) as scheduler,
        extender(api, wait=False, lease_namespace="kube-system", lease_name=lease, hostname="another-host") as standby,
    ):
        await cluster.pod("one", "0.5")
        await cluster.bound(1)
        pending = await cluster.pod("two", "0.6")
        assert await standby.bind(pending, node) == "this extender's scheduler does not hold the Lease"
        await cluster.wish("one", "0.8")
        await cluster.granted("one", "0.8")

        async def standby_knows() -> bool:
            return [card.free_milli for card in standby.server.ledger.cards(node)] == [200]

        await eventually(standby_knows)
        assert (await standby.text("/readyz"))[0] == 200
        assert scheduler.server.ledger.why_not_granting() is None


@pytest.mark.timeout(180)
async def test_replicas_come_and_go_and_nothing_is_lost_or_over_full(
    control_plane: ControlPlane, api: Api, cluster: Cluster, tmp_path: Path
) -> None:
    """Full GPUs whose replicas are replaced over and over, as a rolling update does, with raises in between."""
    for name in ("a", "b"):
        await cluster.node(name, 2)
    async with scheduling(control_plane, api, tmp_path):
        for number in range(8):
            await cluster.pod(f"p0-{number}", "0.5")
        await cluster.bound(8)
        for generation in range(1, 4):
            for number in range(8):
                await cluster.delete(f"p{generation - 1}-{number}")
                await cluster.pod(f"p{generation}-{number}", "0.5")
                await cluster.wish(f"p{generation - (number < 7)}-{min(number + 1, 7)}", "0.5")
            await cluster.bound(8)
