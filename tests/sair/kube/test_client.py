from __future__ import annotations

import asyncio
import contextlib
import time

import msgspec
import pytest

from sair.errors import ApiUnavailable, Conflict, NotFound
from sair.kube.client import Api, PatchKind
from sair.kube.errors import AlreadyExists, Gone, Refused, Throttled
from sair.kube.resources import DEPLOYMENTS, PODS
from tests.e2e.cluster.control_plane import ControlPlane
from tests.fakes.api_proxy import Answer, ApiProxy, Cut, Hang, Request, Reset, Stream
from tests.sair.kube.objects import CONFIG_MAPS, deployment, pod, setting


def any_request(_: Request) -> bool:
    return True


async def test_an_object_is_created_read_patched_replaced_and_deleted(api: Api, namespace: str) -> None:
    path = CONFIG_MAPS.path(namespace, "a")
    made = await api.create(CONFIG_MAPS.path(namespace), setting("a", 1))
    assert (await api.get(path))["data"] == {"value": "1"}
    await api.patch(path, {"data": {"value": "2"}}, PatchKind.MERGE)
    await api.patch(path, [{"op": "replace", "path": "/data/value", "value": "3"}], PatchKind.JSON)
    patched = await api.patch(path, {"data": {"other": "x"}}, PatchKind.STRATEGIC)
    assert patched["data"] == {"value": "3", "other": "x"}
    with pytest.raises(Conflict):
        await api.replace(path, setting("a", 4, resourceVersion=made["metadata"]["resourceVersion"]))
    await api.replace(path, setting("a", 4, resourceVersion=patched["metadata"]["resourceVersion"]))
    with pytest.raises(Conflict):
        await api.delete(path, uid="00000000-0000-0000-0000-000000000000")
    await api.delete(path, uid=made["metadata"]["uid"])
    with pytest.raises(NotFound):
        await api.get(path)


async def test_applying_owns_fields_and_removes_what_is_no_longer_applied(api: Api, namespace: str) -> None:
    path = CONFIG_MAPS.path(namespace, "a")
    await api.patch(path, setting("a", 1), PatchKind.APPLY, field_manager="one")
    with pytest.raises(Conflict, match='conflict with "one"'):
        await api.patch(path, setting("a", 2), PatchKind.APPLY, field_manager="two")
    forced = await api.patch(path, setting("a", 2), PatchKind.APPLY, field_manager="two", force=True)
    assert forced["data"] == {"value": "2"}
    empty = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    assert "data" not in await api.patch(path, empty, PatchKind.APPLY, field_manager="two")


async def test_a_dry_run_stores_nothing(api: Api, namespace: str) -> None:
    await api.create(CONFIG_MAPS.path(namespace), setting("a", 1))
    await api.patch(CONFIG_MAPS.path(namespace, "a"), {"data": {"value": "2"}}, PatchKind.MERGE, dry_run=True)
    assert (await api.get(CONFIG_MAPS.path(namespace, "a")))["data"] == {"value": "1"}


async def test_a_long_list_comes_in_pages_of_one_snapshot(api: Api, namespace: str) -> None:
    for number in range(7):
        await api.create(CONFIG_MAPS.path(namespace), setting(f"c{number}", number))
    sizes, versions = [], set()
    async with contextlib.aclosing(api.pages(CONFIG_MAPS.path(namespace), page_size=3)) as pages:
        async for page in pages:
            sizes.append(len(page.items or ()))
            versions.add(page.metadata.resource_version)
    assert sizes == [3, 3, 1]
    assert len(versions) == 1
    assert len(await api.list(CONFIG_MAPS.path(namespace), {"fieldSelector": "metadata.name=c3"})) == 1


async def test_what_exists_cannot_be_created_again(api: Api, namespace: str) -> None:
    await api.create(CONFIG_MAPS.path(namespace), setting("a", 1))
    with pytest.raises(AlreadyExists, match='configmaps "a" already exists'):
        await api.create(CONFIG_MAPS.path(namespace), setting("a", 1))


async def test_an_invalid_object_is_refused_with_what_the_server_says(api: Api, namespace: str) -> None:
    with pytest.raises(Refused, match=r"spec\.replicas.*must be greater than or equal to 0") as refusal:
        await api.create(DEPLOYMENTS.path(namespace), deployment("a", -1))
    assert (refusal.value.code, refusal.value.reason) == (422, "Invalid")


async def test_what_is_not_allowed_is_refused_with_what_the_server_says(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with await Api.from_environment(control_plane.client_kubeconfig("nobody-special")) as unprivileged:
        with pytest.raises(Refused, match='User "nobody-special" cannot list resource "pods"') as refusal:
            await unprivileged.list(PODS.path(namespace))
    assert (refusal.value.code, refusal.value.reason) == (403, "Forbidden")


async def test_a_watch_delivers_raw_events_and_ends_when_the_server_ends_it(api: Api, namespace: str) -> None:
    await api.create(CONFIG_MAPS.path(namespace), setting("a", 1))
    params = {"timeoutSeconds": "2", "fieldSelector": "metadata.name=a"}
    async with contextlib.aclosing(api.watch(CONFIG_MAPS.path(namespace), params)) as events:
        seen = [(event["type"], event["object"]["data"]) async for event in events]
    assert seen == [("ADDED", {"value": "1"})]


async def test_an_object_of_a_megabyte_passes_through_a_watch(api: Api, namespace: str) -> None:
    large = setting("a", 1)
    large["data"]["large"] = "a" * 900_000
    await api.create(CONFIG_MAPS.path(namespace), large)
    params = {"timeoutSeconds": "2", "fieldSelector": "metadata.name=a"}
    async with contextlib.aclosing(api.watch(CONFIG_MAPS.path(namespace), params)) as events:
        assert [len(event["object"]["data"]["large"]) async for event in events] == [900_000]


async def test_an_outage_is_unavailability_and_after_it_old_versions_are_gone(
    control_plane: ControlPlane, api: Api
) -> None:
    await asyncio.to_thread(control_plane.stop)
    try:
        with pytest.raises(ApiUnavailable, match="GET /api/v1/pods"):
            await api.list(PODS.path())
    finally:
        await asyncio.to_thread(control_plane.start)
    await api.list(PODS.path())
    # A server that has just started keeps no history.
    with pytest.raises(Gone):
        async with contextlib.aclosing(
            api.watch(CONFIG_MAPS.path(), {"resourceVersion": "1"}, silence_s=5.0)
        ) as events:
            async for _ in events:
                pass


async def test_many_requests_are_waited_out_as_the_server_asks(proxy: ApiProxy, proxied: Api) -> None:
    proxy.on(any_request, Answer(429, b"{}", {"Retry-After": "1"}))
    began_s = time.monotonic()
    await proxied.list(PODS.path())
    assert time.monotonic() - began_s >= 1.0
    assert len(proxy.requests) == 2


async def test_a_wait_longer_than_the_deadline_is_left_to_the_caller(scripted: ApiProxy, scripted_api: Api) -> None:
    scripted.on(any_request, Answer(429, b'{"message": "too many"}', {"Retry-After": "60"}))
    with pytest.raises(Throttled, match="too many") as refusal:
        await scripted_api.list(PODS.path())
    assert refusal.value.retry_after_s == 60
    assert len(scripted.requests) == 1


async def test_a_write_that_failed_on_the_server_is_never_repeated_here(scripted: ApiProxy, scripted_api: Api) -> None:
    scripted.on(any_request, Answer(500, b'{"reason": "InternalError", "message": "etcd is tired"}'))
    with pytest.raises(ApiUnavailable, match="500 InternalError: etcd is tired"):
        await scripted_api.create(PODS.path("default"), pod("a"))
    assert len(scripted.requests) == 1


async def test_a_server_error_that_says_when_to_come_back_keeps_that(scripted: ApiProxy, scripted_api: Api) -> None:
    scripted.on(any_request, Answer(504, b'{"reason": "Timeout", "details": {"retryAfterSeconds": 3}}'))
    with pytest.raises(Throttled) as refusal:
        await scripted_api.get(PODS.path("default", "a"))
    assert refusal.value.retry_after_s == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        pytest.param(Reset(), "GET /api/v1/pods", id="connection reset"),
        pytest.param(Hang(), "no answer within 2 s|fell silent", id="no answer"),
        pytest.param(Answer(200, b"<html>proxy error</html>"), "no JSON", id="garbage"),
        pytest.param(Answer(200, b"[]"), "no JSON list", id="other JSON"),
        pytest.param(Answer(200, b"\xff\xfe{"), "no JSON", id="not UTF-8"),
        pytest.param(Answer(502, b"<html>bad gateway</html>"), "bad gateway", id="a proxy's page"),
        pytest.param(Stream(b'{"items": [', then="reset"), "GET /api/v1/pods", id="cut body"),
        pytest.param(
            Stream(b'{"items": [', then="hang"), "no answer within 2 s|fell silent", id="body that never ends"
        ),
    ],
)
async def test_every_kind_of_broken_answer_is_unavailability(
    scripted: ApiProxy, scripted_api: Api, fault: Answer | Reset | Hang | Stream, message: str
) -> None:
    # Twice: aiohttp itself repeats a read once when the connection drops.
    scripted.on(any_request, fault, times=2)
    with pytest.raises(ApiUnavailable, match=message):
        await scripted_api.list(PODS.path())


async def test_a_list_cut_in_the_middle_is_unavailability(proxy: ApiProxy, proxied: Api) -> None:
    proxy.on(any_request, Cut(20))
    with pytest.raises(ApiUnavailable):
        await proxied.list("/api/v1/namespaces")


async def test_a_watch_cut_in_the_middle_of_an_event_delivers_the_whole_ones_first(
    scripted: ApiProxy, scripted_api: Api
) -> None:
    line = msgspec.json.encode({"type": "ADDED", "object": {"metadata": {"name": "a"}}})
    scripted.on(any_request, Stream(line + b"\n" + line[:20]))
    seen = []
    with pytest.raises(ApiUnavailable, match="in the middle of an event"):
        async with contextlib.aclosing(scripted_api.watch(PODS.path())) as events:
            async for event in events:
                seen.append(event["object"]["metadata"]["name"])
    assert seen == ["a"]


async def test_a_watch_that_falls_silent_is_given_up(scripted: ApiProxy, scripted_api: Api) -> None:
    scripted.on(any_request, Stream(b"", then="hang"))
    with pytest.raises(ApiUnavailable, match="fell silent"):
        async with contextlib.aclosing(scripted_api.watch(PODS.path(), silence_s=0.3)) as events:
            async for _ in events:
                pass
