from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from sair.kube.backoff import Backoff
from sair.kube.changes import Added, Change, Deleted, Malformed, Modified, Synced
from sair.kube.client import Api, PatchKind
from sair.kube.reflector import Reflector, WatchTiming
from sair.kube.resources import PODS
from tests.fakes.api_proxy import Answer, ApiProxy, Cut, Hang, Request, Reset, Stream
from tests.sair.kube.objects import CONFIG_MAPS, Setting, parse_setting, setting
from tests.sair.kube.waiting import eventually

QUICK = WatchTiming(watch_s=30.0, silence_s=1.0, stale_s=2.0, backoff=Backoff(0.02, 0.2), stable_s=0.2)
PATIENT = WatchTiming(backoff=Backoff(0.02, 0.2))


def watches(request: Request) -> bool:
    return request.is_watch


def lists(request: Request) -> bool:
    return request.is_list


class Listener:
    """Collects changes and waits for some of them."""

    def __init__(self) -> None:
        self.heard: list[Change[Setting]] = []
        self._more = asyncio.Event()

    async def __call__(self, change: Change[Setting]) -> None:
        self.heard.append(change)
        self._more.set()

    async def until(self, condition: Callable[[list[Change[Setting]]], bool], timeout_s: float = 15.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition(self.heard):
                self._more.clear()
                await self._more.wait()

    def values(self) -> list[tuple[str, str, int]]:
        """Kind, name and value of what happened to settings with a name of ours."""
        return [
            (type(change).__name__, change.object.name, change.object.value)
            for change in self.heard
            if isinstance(change, Added | Modified | Deleted)
        ]


def has(kind: str, name: str, value: int) -> Callable[[list[Change[Setting]]], bool]:
    def condition(heard: list[Change[Setting]]) -> bool:
        return any(
            isinstance(change, Added | Modified | Deleted)
            and (type(change).__name__, change.object.name, change.object.value) == (kind, name, value)
            for change in heard
        )

    return condition


@contextlib.asynccontextmanager
async def running(
    api: Api, namespace: str, listener: Listener, timing: WatchTiming = PATIENT, **more: Any
) -> AsyncIterator[Reflector[Setting]]:
    reflector = Reflector(api, CONFIG_MAPS, parse_setting, listener, namespace=namespace, timing=timing, **more)
    task = asyncio.create_task(reflector.run())
    try:
        yield reflector
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def write(api: Api, namespace: str, name: str, value: int | str) -> None:
    await api.patch(CONFIG_MAPS.path(namespace, name), setting(name, value), PatchKind.APPLY, field_manager="test")


async def test_what_exists_is_told_then_synced_then_every_change(api: Api, namespace: str) -> None:
    await write(api, namespace, "a", 1)
    listener = Listener()
    async with running(api, namespace, listener) as reflector:
        assert not reflector.synced
        await asyncio.wait_for(reflector.wait_synced(), 10)
        assert isinstance(listener.heard[-1], Synced)
        await write(api, namespace, "a", 2)
        await write(api, namespace, "b", 3)
        await api.delete(CONFIG_MAPS.path(namespace, "a"))
        await listener.until(has("Deleted", "a", 2))
        assert listener.values() == [("Added", "a", 1), ("Modified", "a", 2), ("Added", "b", 3), ("Deleted", "a", 2)]
        assert reflector.snapshot() == {f"{namespace}/b": Setting("b", 3)}
        assert reflector.get(f"{namespace}/b") == Setting("b", 3)


async def test_a_long_list_arrives_page_by_page_and_whole(
    proxy: ApiProxy, proxied: Api, api: Api, namespace: str
) -> None:
    for number in range(7):
        await write(api, namespace, f"c{number}", number)
    async with running(proxied, namespace, Listener(), page_size=3) as reflector:
        await asyncio.wait_for(reflector.wait_synced(), 10)
        assert sorted(value.value for value in reflector.snapshot().values()) == list(range(7))
    assert proxy.count(lists) == 3


async def test_selectors_choose_at_the_server_and_leaving_the_selection_is_a_deletion(api: Api, namespace: str) -> None:
    await api.create(CONFIG_MAPS.path(namespace), setting("a", 1, labels={"mine": "yes"}))
    await api.create(CONFIG_MAPS.path(namespace), setting("b", 2))
    listener = Listener()
    async with running(api, namespace, listener, label_selector="mine=yes"):
        await listener.until(has("Added", "a", 1))
        await api.patch(CONFIG_MAPS.path(namespace, "a"), {"metadata": {"labels": {"mine": "no"}}}, PatchKind.MERGE)
        await listener.until(has("Deleted", "a", 1))
    assert listener.values() == [("Added", "a", 1), ("Deleted", "a", 1)]


async def test_a_malformed_object_is_reported_and_does_not_stop_the_stream(api: Api, namespace: str) -> None:
    await write(api, namespace, "a", 1)
    listener = Listener()
    async with running(api, namespace, listener) as reflector:
        await reflector.wait_synced()
        await write(api, namespace, "a", "seven")
        await write(api, namespace, "b", 2)
        await listener.until(has("Added", "b", 2))
        bad = [change for change in listener.heard if isinstance(change, Malformed)]
        assert [(change.key, change.last_good) for change in bad] == [(f"{namespace}/a", Setting("a", 1))]
        assert reflector.get(f"{namespace}/a") == Setting("a", 1)
        health = reflector.health(0.0)
        assert (health.malformed, health.parse_errors) == (1, 1)


async def test_a_sync_callback_serves_as_well(api: Api, namespace: str) -> None:
    await write(api, namespace, "a", 1)
    heard: list[Change[Setting]] = []
    reflector = Reflector(api, CONFIG_MAPS, parse_setting, heard.append, namespace=namespace)
    task = asyncio.create_task(reflector.run())
    await asyncio.wait_for(reflector.wait_synced(), 10)
    task.cancel()
    assert [type(change) for change in heard] == [Added, Synced]


async def test_what_the_callback_raises_comes_out_of_run(api: Api, namespace: str) -> None:
    async def refuse(_: Change[Setting]) -> None:
        raise LookupError("the ledger is broken")

    reflector = Reflector(api, CONFIG_MAPS, parse_setting, refuse, namespace=namespace)
    with pytest.raises(LookupError, match="the ledger is broken"):
        await asyncio.wait_for(reflector.run(), 10)


async def test_after_410_it_lists_anew_and_tells_only_the_difference(
    proxy: ApiProxy, proxied: Api, api: Api, namespace: str
) -> None:
    for name, value in (("a", 1), ("b", 2), ("c", 3)):
        await write(api, namespace, name, value)
    listener = Listener()
    gone = {
        "type": "ERROR",
        "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"},
    }
    async with running(proxied, namespace, listener, QUICK) as reflector:
        await reflector.wait_synced()
        # While nobody watches, one object changes, one vanishes, one comes; then the version watched from is too old.
        proxy.on(watches, Hang())
        proxy.on(watches, Stream(msgspec.json.encode(gone) + b"\n"))
        proxy.reset_connections()
        await write(api, namespace, "b", 20)
        await api.delete(CONFIG_MAPS.path(namespace, "a"))
        await write(api, namespace, "d", 4)
        await listener.until(has("Added", "d", 4))
        await write(api, namespace, "d", 5)
        await listener.until(has("Modified", "d", 5))
    after_first_list = listener.values()[3:]
    assert after_first_list[0] == ("Deleted", "a", 1)
    assert sorted(after_first_list[1:3]) == [("Added", "d", 4), ("Modified", "b", 20)]
    assert after_first_list[3:] == [("Modified", "d", 5)]
    assert proxy.count(lists) == 2


async def test_a_list_whose_snapshot_expires_between_pages_is_read_in_one(
    proxy: ApiProxy, proxied: Api, api: Api, namespace: str
) -> None:
    for number in range(5):
        await write(api, namespace, f"c{number}", number)
    proxy.on(lambda request: "continue" in request.query, Answer(410, b'{"code": 410, "reason": "Expired"}'))
    async with running(proxied, namespace, Listener(), page_size=2) as reflector:
        await asyncio.wait_for(reflector.wait_synced(), 10)
        assert len(reflector.snapshot()) == 5
    assert ["limit" in request.query for request in proxy.requests if request.is_list] == [True, True, False]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Reset(), id="connection reset"),
        pytest.param(Answer(500, b'{"message": "etcd is tired"}'), id="500"),
        pytest.param(Answer(503, b"<html>"), id="503 page"),
        pytest.param(Answer(403, b'{"reason": "Forbidden"}'), id="forbidden for a while"),
        pytest.param(Answer(429, b"{}", {"Retry-After": "1"}), id="429"),
        pytest.param(Hang(), id="hung"),
        pytest.param(Stream(b""), id="ends at once"),
        pytest.param(Stream(b"", then="hang"), id="silent stream"),
        pytest.param(Cut(0, "reset"), id="cut after the headers"),
    ],
)
async def test_a_watch_that_fails_continues_where_it_was_without_a_new_list(
    proxy: ApiProxy, proxied: Api, api: Api, namespace: str, fault: Any
) -> None:
    listener = Listener()
    await write(api, namespace, "a", 1)
    proxy.on(watches, fault)
    async with running(proxied, namespace, listener, QUICK) as reflector:
        await reflector.wait_synced()
        await write(api, namespace, "a", 2)
        await listener.until(has("Modified", "a", 2))
        assert listener.values() == [("Added", "a", 1), ("Modified", "a", 2)]
    assert proxy.count(lists) == 1
    assert proxy.count(watches) >= 2


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'{"type": "ADDED", "obj\n', id="torn line"),
        pytest.param(b"<html></html>\n", id="a page"),
        pytest.param(b'{"type": "ADDED", "object": {}}\n', id="no metadata"),
        pytest.param(
            b'{"type": "SURPRISE", "object": {"metadata": {"name": "a", "resourceVersion": "9999999"}}}\n',
            id="unknown type",
        ),
        pytest.param(b"[1, 2]\n", id="no event"),
    ],
)
async def test_garbage_in_a_stream_leads_to_a_new_list(
    proxy: ApiProxy, proxied: Api, api: Api, namespace: str, data: bytes
) -> None:
    listener = Listener()
    proxy.on(watches, Stream(data, then="hang"))
    async with running(proxied, namespace, listener, QUICK) as reflector:
        await reflector.wait_synced()
        await write(api, namespace, "a", 1)
        await listener.until(has("Added", "a", 1))
    assert listener.values() == [("Added", "a", 1)]
    assert proxy.count(lists) == 2


async def test_a_stream_cut_in_the_middle_of_an_event_loses_nothing_and_repeats_nothing(
    proxy: ApiProxy, proxied: Api, api: Api, namespace: str
) -> None:
    listener = Listener()
    proxy.on(watches, Cut(700, "end"), times=3)
    async with running(proxied, namespace, listener, QUICK) as reflector:
        await reflector.wait_synced()
        for value in range(6):
            await write(api, namespace, "a", value)
        await listener.until(has("Modified", "a", 5))
        # A re-list after repeated failures may skip versions in between, but never goes back or repeats.
        told = [value for _, _, value in listener.values()]
        assert told == sorted(set(told))
        assert reflector.get(f"{namespace}/a") == Setting("a", 5)


async def test_failures_in_a_row_wait_longer_and_end_in_a_new_list(
    proxy: ApiProxy, proxied: Api, namespace: str
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    proxy.on(watches, Answer(500), times=6)
    async with running(proxied, namespace, Listener(), WatchTiming(), sleep=sleep, draw=lambda: 0.5) as reflector:
        await reflector.wait_synced()
        await eventually(lambda: proxy.count(watches) >= 7)
        assert waits == [pytest.approx(0.15 * 2**step) for step in range(6)]
        assert proxy.count(lists) == 3
        health = reflector.health(0.0)
        assert health.failures == 6
        assert health.last_error is not None
        assert "500" in health.last_error


async def test_watches_that_were_well_before_they_ended_never_add_up_to_a_new_list(
    scripted: ApiProxy, scripted_api: Api
) -> None:
    scripted.on(lists, Answer(200, msgspec.json.encode({"metadata": {"resourceVersion": "7"}, "items": []})))
    scripted.on(watches, Stream(b"", then="hang"), times=5)
    timing = WatchTiming(silence_s=0.2, backoff=Backoff(0.01, 0.02), stable_s=0.1)
    async with running(scripted_api, "ns", Listener(), timing) as reflector:
        await eventually(lambda: scripted.count(watches) >= 5)
        assert reflector.health(0.0).failures <= 1
    assert scripted.count(lists) == 1


async def test_it_waits_for_an_api_that_is_not_there_yet(scripted: ApiProxy, scripted_api: Api) -> None:
    empty = msgspec.json.encode({"metadata": {"resourceVersion": "7"}, "items": []})
    scripted.on(lists, Answer(404, b'{"message": "the server could not find the requested resource"}'), times=2)
    scripted.on(lists, Answer(200, empty))
    scripted.on(watches, Stream(b"", then="hang"))
    async with running(scripted_api, "ns", Listener(), QUICK) as reflector:
        await asyncio.wait_for(reflector.wait_synced(), 10)
        assert reflector.health(0.0).lists == 3


async def test_bookmarks_move_where_the_next_watch_begins(scripted: ApiProxy, scripted_api: Api) -> None:
    bookmark = msgspec.json.encode({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "55"}}})
    scripted.on(lists, Answer(200, msgspec.json.encode({"metadata": {"resourceVersion": "7"}, "items": []})))
    scripted.on(watches, Stream(bookmark + b"\n"))
    scripted.on(watches, Stream(b"", then="hang"))
    async with running(scripted_api, "ns", Listener(), QUICK):
        await eventually(lambda: scripted.count(watches) >= 2)
    first, second = [request.query for request in scripted.requests if request.is_watch][:2]
    assert (first["resourceVersion"], second["resourceVersion"]) == ("7", "55")
    assert first["allowWatchBookmarks"] == "true"
    assert 30 <= int(first["timeoutSeconds"]) <= 60


async def test_the_longer_the_server_is_silent_the_staler_the_copy(api: Api, namespace: str) -> None:
    now = 100.0
    async with running(api, namespace, Listener(), WatchTiming(stale_s=20.0), monotonic=lambda: now) as reflector:
        assert reflector.staleness_s(now) == float("inf")
        assert reflector.health(now).stale
        await asyncio.wait_for(reflector.wait_synced(), 10)
        assert reflector.staleness_s(now) == 0.0
        assert not reflector.health(now + 20.0).stale
        assert reflector.health(now + 20.5).stale


async def test_cancelling_closes_the_connection(api: Api, proxy: ApiProxy, proxied: Api, namespace: str) -> None:
    async with running(proxied, namespace, Listener()) as reflector:
        await reflector.wait_synced()
        await eventually(lambda: proxy.open_requests > 0)
    await eventually(lambda: proxy.open_requests == 0)


async def test_every_object_of_the_cluster_is_seen_without_a_namespace(api: Api, namespace: str) -> None:
    reflector = Reflector(api, PODS, lambda raw: str(raw["metadata"]["namespace"]))
    task = asyncio.create_task(reflector.run())
    try:
        await asyncio.wait_for(reflector.wait_synced(), 10)
        body = {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
        await api.create(PODS.path(namespace), body)
        await eventually(lambda: reflector.get(f"{namespace}/a") is not None)
        assert reflector.get(f"{namespace}/a") == namespace
    finally:
        task.cancel()
