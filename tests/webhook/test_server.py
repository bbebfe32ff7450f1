"""The server behind real TLS: round trips, hostile clients, metrics."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from sair.pipeline import Pipeline
from sair.serving import Served, serve
from sair.tls import client_context, issue_ca, issue_server, server_context
from tests.webhook.requests import GPU_STAGE, pipeline, pod, review
from webhook.server import ABOUT, Admission, admission_application
from webhook.settings import WebhookSettings

NAME = "sair-webhook.sair-system.svc"
SMALL = WebhookSettings(hook_image="example/sair-hook:1", max_body_bytes=65536, body_timeout_s=0.3)
AUTHORITY = issue_ca("test authority", now=dt.datetime.now(dt.UTC))


class Endpoint:
    """A client of one running webhook."""

    def __init__(self, served: Served, registry: CollectorRegistry, client: aiohttp.ClientSession) -> None:
        self.served = served
        self.client = client
        self._registry = registry
        self._url = f"https://127.0.0.1:{served.port}/mutate"

    async def post(self, body: Any, content_type: str = "application/json") -> tuple[int, bytes]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": content_type}
        async with self.client.post(self._url, data=data, headers=headers, server_hostname=NAME) as response:
            return response.status, await response.read()

    async def ask(self, body: Any) -> dict[str, Any]:
        status, answer = await self.post(body)
        assert status == 200, answer
        response: dict[str, Any] = json.loads(answer)["response"]
        return response

    def count(self, outcome: str) -> float | None:
        samples = [
            self._registry.get_sample_value("sair_webhook_requests_total", {"outcome": outcome, "about": about})
            for about in ABOUT
        ]
        return None if None in samples else sum(sample or 0 for sample in samples)


@pytest_asyncio.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    def find(key: str) -> Pipeline | None:
        if key == "broken/vision":
            raise RuntimeError("the store is broken")
        return pipeline("0.6") if key == "shop/vision" else None

    registry = CollectorRegistry()
    tls = await asyncio.to_thread(server_context, issue_server(AUTHORITY, [NAME], now=dt.datetime.now(dt.UTC)))
    app = admission_application(Admission(SMALL, find, registry), SMALL)
    connector = aiohttp.TCPConnector(ssl=client_context(AUTHORITY.certificate))
    async with (
        serve(app, host="127.0.0.1", port=0, tls=tls) as served,
        aiohttp.ClientSession(connector=connector) as client,
    ):
        yield Endpoint(served, registry, client)


async def test_a_review_goes_in_and_a_patch_comes_out(endpoint: Endpoint) -> None:
    response = await endpoint.ask(review(pod(GPU_STAGE), uid="4711"))

    assert response["uid"] == "4711"
    assert response["allowed"]
    paths = {step["path"] for step in json.loads(base64.b64decode(response["patch"]))}
    assert "/spec/volumes" in paths
    assert endpoint.count("patched") == 1


async def test_outcomes_are_counted_from_zero(endpoint: Endpoint) -> None:
    assert {endpoint.count(outcome) for outcome in ("patched", "unchanged", "denied", "malformed", "failed")} == {0.0}

    await endpoint.ask(review(pod()))
    await endpoint.ask(review(pod({**GPU_STAGE, "sair.dev/gpu-rate": "2"})))

    assert (endpoint.count("unchanged"), endpoint.count("denied"), endpoint.count("patched")) == (1, 1, 0)


async def test_a_denial_reaches_the_client_word_for_word(endpoint: Endpoint) -> None:
    response = await endpoint.ask(review(pod({**GPU_STAGE, "sair.dev/gpu-memory": "lots"})))

    assert not response["allowed"]
    assert response["status"]["code"] == 422
    assert response["status"]["message"].startswith("sair.dev/gpu-memory: 'lots' is not allowed; expected ")


@pytest.mark.blocking_allowed  # writing a traceback reads the sources
async def test_a_failure_inside_denies_under_the_requests_uid(endpoint: Endpoint) -> None:
    response = await endpoint.ask(review(pod(GPU_STAGE), uid="77", namespace="broken"))

    assert (response["uid"], response["allowed"], response["status"]["code"]) == ("77", False, 500)
    assert endpoint.count("failed") == 1


async def test_a_hundred_at_once_are_all_answered_each_with_its_own_uid(endpoint: Endpoint) -> None:
    answers = await asyncio.gather(*(endpoint.ask(review(pod(GPU_STAGE), uid=str(number))) for number in range(100)))

    assert [answer["uid"] for answer in answers] == [str(number) for number in range(100)]


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/json", 400),
        (b"\x00" * 64, "application/json", 400),
        (b"[" * 60_000, "application/json", 400),
        (b'{"request":{"uid":' + b'"u"' + b"}" * 3, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b" " * 70_000, "application/json", 413),
    ],
    ids=["empty", "zeros", "deeply nested", "unbalanced", "another type", "too long"],
)
async def test_a_hostile_body_is_refused_and_the_next_client_served(
    endpoint: Endpoint, body: bytes, content_type: str, status: int
) -> None:
    assert (await endpoint.post(body, content_type))[0] == status
    assert endpoint.count("malformed") == 1

    assert (await endpoint.ask(review(pod(GPU_STAGE))))["allowed"]


async def test_a_malformed_review_with_a_uid_is_denied_as_a_review(endpoint: Endpoint) -> None:
    response = await endpoint.ask(review(["not", "a", "pod"], uid="88"))

    assert (response["uid"], response["allowed"], response["status"]["code"]) == ("88", False, 400)


async def test_a_client_that_never_ends_its_request_is_let_go(endpoint: Endpoint) -> None:
    context = client_context(AUTHORITY.certificate)
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.served.port, ssl=context, server_hostname=NAME)
    writer.write(b"POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()

    async with asyncio.timeout(5):
        line = await reader.readline()

    assert b" 408 " in line
    writer.close()


async def test_only_mutate_is_served_and_only_by_post(endpoint: Endpoint) -> None:
    base = f"https://127.0.0.1:{endpoint.served.port}"
    async with endpoint.client.get(f"{base}/mutate", server_hostname=NAME) as response:
        assert response.status == 405
    async with endpoint.client.get(f"{base}/metrics", server_hostname=NAME) as response:
        assert response.status == 404


async def test_a_client_that_trusts_another_authority_gets_no_connection(endpoint: Endpoint) -> None:
    stranger = issue_ca("somebody else", now=dt.datetime.now(dt.UTC))
    connector = aiohttp.TCPConnector(ssl=client_context(stranger.certificate))
    async with aiohttp.ClientSession(connector=connector) as client:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await client.post(f"https://127.0.0.1:{endpoint.served.port}/mutate", server_hostname=NAME)


async def test_old_protocols_are_refused(endpoint: Endpoint) -> None:
    context = client_context(AUTHORITY.certificate)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    _, writer = await asyncio.open_connection("127.0.0.1", endpoint.served.port, ssl=context, server_hostname=NAME)
    assert writer.get_extra_info("ssl_object").version() == "TLSv1.2"
    writer.close()
