from __future__ import annotations

import asyncio

import pytest

from sair.errors import Conflict, InvalidInput, NotFound
from sair.kube.binding import bind
from sair.kube.client import Api
from sair.kube.patch import merge_patch_annotations
from sair.kube.resources import PODS
from tests.sair.kube.objects import pod


async def test_node_and_annotations_arrive_in_one_transaction(api: Api, namespace: str) -> None:
    made = (await api.create(PODS.path(namespace), pod("a", annotations={"keep": "1"})))["metadata"]
    await bind(
        api,
        namespace,
        "a",
        "n1",
        {"sair.dev/gpu-index": "0"},
        uid=made["uid"],
        resource_version=made["resourceVersion"],
    )
    now = await api.get(PODS.path(namespace, "a"))
    assert now["spec"]["nodeName"] == "n1"
    assert now["metadata"]["annotations"] == {"keep": "1", "sair.dev/gpu-index": "0"}


async def test_another_pod_that_took_the_name_is_not_bound(api: Api, namespace: str) -> None:
    await api.create(PODS.path(namespace), pod("a"))
    with pytest.raises(Conflict):
        await bind(api, namespace, "a", "n1", {"x": "1"}, uid="00000000-0000-0000-0000-000000000000")
    now = await api.get(PODS.path(namespace, "a"))
    assert "nodeName" not in now["spec"]
    assert "annotations" not in now["metadata"]


async def test_a_pod_that_changed_since_is_not_bound(api: Api, namespace: str) -> None:
    made = (await api.create(PODS.path(namespace), pod("a")))["metadata"]
    await merge_patch_annotations(api, PODS, namespace, "a", {"sair.dev/gpu-rate": "0.9"}, component="controller")
    with pytest.raises(Conflict):
        await bind(api, namespace, "a", "n1", {}, uid=made["uid"], resource_version=made["resourceVersion"])


async def test_of_many_binders_one_wins_and_its_annotations_with_it(api: Api, namespace: str) -> None:
    made = (await api.create(PODS.path(namespace), pod("a")))["metadata"]

    async def attempt(number: int) -> int | None:
        try:
            await bind(api, namespace, "a", f"n{number}", {"winner": str(number)}, uid=made["uid"])
        except Conflict:
            return None
        return number

    winners = [number for number in await asyncio.gather(*map(attempt, range(8))) if number is not None]
    now = await api.get(PODS.path(namespace, "a"))
    assert len(winners) == 1
    assert (now["spec"]["nodeName"], now["metadata"]["annotations"]["winner"]) == (f"n{winners[0]}", str(winners[0]))


async def test_a_pod_that_is_gone_cannot_be_bound(api: Api, namespace: str) -> None:
    with pytest.raises(NotFound):
        await bind(api, namespace, "a", "n1", {}, uid="00000000-0000-0000-0000-000000000000")


async def test_a_binding_to_nowhere_is_refused(api: Api, namespace: str) -> None:
    made = (await api.create(PODS.path(namespace), pod("a")))["metadata"]
    with pytest.raises(InvalidInput, match="node"):
        await bind(api, namespace, "a", "", {}, uid=made["uid"])
