from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from sair.kube.backoff import Backoff
from sair.kube.client import Api
from sair.kube.events import EventRate, Recorder, Reference
from sair.kube.resources import EVENTS, NODES, PODS
from tests.fakes.api_proxy import Answer, ApiProxy, Hang, Request
from tests.sair.kube.objects import pod
from tests.sair.kube.waiting import eventually


def everything(_: Request) -> bool:
    return True


@contextlib.asynccontextmanager
async def recording(api: Api, **more: Any) -> AsyncIterator[Recorder]:
    recorder = Recorder(api, "extender", "extender-0", backoff=Backoff(0.01, 0.05), **more)
    task = asyncio.create_task(recorder.run())
    try:
        yield recorder
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_an_event_is_written_as_kubectl_describe_shows_it(api: Api, namespace: str) -> None:
    made = await api.create(PODS.path(namespace), pod("a"))
    about = Reference(PODS, "a", namespace, made["metadata"]["uid"])
    async with recording(api) as recorder:
        recorder.record(about, "GpuRateRefused", "0.9 does not fit on node n1", action="Granting", severity="Warning")
        await eventually(lambda: recorder.written == 1)
    (event,) = await api.list(EVENTS.path(namespace))
    assert event["regarding"]["uid"] == made["metadata"]["uid"]
    assert (event["reason"], event["type"], event["action"]) == ("GpuRateRefused", "Warning", "Granting")
    assert event["note"] == "0.9 does not fit on node n1"
    assert (event["reportingController"], event["reportingInstance"]) == ("sair.dev/extender", "extender-0")
    described = await api.list(f"/api/v1/namespaces/{namespace}/events", {"fieldSelector": "involvedObject.name=a"})
    assert described[0]["message"] == "0.9 does not fit on node n1"


async def test_many_of_the_same_become_one_event_with_a_count(api: Api, namespace: str) -> None:
    async with recording(api, rate=EventRate(quiet_s=0.5)) as recorder:
        for _ in range(500):
            recorder.record(Reference(PODS, "a", namespace), "GpuRateRefused", "no room", action="Granting")
        await eventually(lambda: recorder.written == 2)
    (event,) = await api.list(EVENTS.path(namespace))
    assert event["series"]["count"] == 500
    assert recorder.dropped.total() == 0


async def test_each_decision_is_an_event_that_people_can_read(api: Api, namespace: str) -> None:
    notes = [f"round {number} by in-context: preprocess: replicas +1" for number in range(3)]
    async with recording(api) as recorder:
        for note in notes:
            recorder.record(Reference(PODS, "a", namespace), "Scaled", note, action="Scaling")
        await eventually(lambda: recorder.written == 3)
    described = await api.list(f"/api/v1/namespaces/{namespace}/events", {"fieldSelector": "involvedObject.name=a"})
    assert sorted(event["message"] for event in described) == notes


async def test_what_waits_at_the_end_is_still_written(api: Api, namespace: str) -> None:
    async with recording(api) as recorder:
        for _ in range(3):
            recorder.record(Reference(PODS, "a", namespace), "Reason", "note", action="Acting")
        await eventually(lambda: recorder.written == 1)
        assert "series" not in (await api.list(EVENTS.path(namespace)))[0]
    (event,) = await api.list(EVENTS.path(namespace))
    assert event["series"]["count"] == 3


async def test_a_series_whose_event_was_deleted_is_written_anew(api: Api, namespace: str) -> None:
    async with recording(api, rate=EventRate(quiet_s=0.1)) as recorder:
        recorder.record(Reference(PODS, "a", namespace), "Reason", "note", action="Acting")
        await eventually(lambda: recorder.written == 1)
        (event,) = await api.list(EVENTS.path(namespace))
        await api.delete(EVENTS.path(namespace, event["metadata"]["name"]))
        await asyncio.sleep(0.1)
        recorder.record(Reference(PODS, "a", namespace), "Reason", "note", action="Acting")
        await eventually(lambda: recorder.written == 2)
    (event,) = await api.list(EVENTS.path(namespace))
    assert event["series"]["count"] == 2


async def test_an_event_about_a_node_is_found_in_default(api: Api, namespace: str) -> None:
    async with recording(api) as recorder:
        recorder.record(Reference(NODES, f"node-{namespace}"), "GpusSeen", "2 cards", action="Reporting")
        await eventually(lambda: recorder.written == 1)
    events = await api.list(EVENTS.path("default"))
    assert [event["note"] for event in events if event["regarding"]["name"] == f"node-{namespace}"] == ["2 cards"]


async def test_a_full_queue_drops_and_counts_and_never_blocks(scripted: ApiProxy, scripted_api: Api) -> None:
    scripted.on(everything, Hang(), times=100)
    async with recording(scripted_api, queue_size=5) as recorder:
        for number in range(20):
            recorder.record(Reference(PODS, f"p{number}", "ns"), "Reason", "note", action="Acting")
        assert recorder.dropped["queue full"] == 15


async def test_an_event_the_server_refuses_is_dropped_and_counted(api: Api, namespace: str) -> None:
    async with recording(api) as recorder:
        recorder.record(Reference(PODS, "a", namespace), "", "note", action="Acting")
        await eventually(lambda: recorder.dropped["refused"] == 1)
        recorder.record(Reference(PODS, "a", namespace), "Reason", "note", action="Acting")
        await eventually(lambda: recorder.written == 1)


async def test_an_event_is_tried_again_before_it_is_dropped(proxy: ApiProxy, proxied: Api, namespace: str) -> None:
    proxy.on(everything, Answer(500), times=2)
    async with recording(proxied) as recorder:
        recorder.record(Reference(PODS, "a", namespace), "Reason", "note", action="Acting")
        await eventually(lambda: recorder.written == 1)
        proxy.on(everything, Answer(500), times=3)
        recorder.record(Reference(PODS, "b", namespace), "Reason", "note", action="Acting")
        await eventually(lambda: recorder.dropped["unavailable"] == 1)
