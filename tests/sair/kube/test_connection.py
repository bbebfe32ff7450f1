from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from sair.errors import SettingsError
from sair.kube.client import Api
from sair.kube.connection import Connection
from sair.kube.errors import Refused
from sair.kube.resources import PODS
from sair.tls import issue_ca, issue_server, server_context
from tests.e2e.cluster.control_plane import ControlPlane


class TokenServer:
    """An HTTPS server that knows one token at a time, as an API server does when service-account tokens rotate."""

    def __init__(self, folder: Path) -> None:
        now = dt.datetime.now(dt.UTC)
        self._authority = issue_ca("cluster", now=now)
        self._context: ssl.SSLContext = server_context(issue_server(self._authority, ["127.0.0.1"], now=now))
        self.folder = folder
        self.accepted = ""
        self.seen: list[str] = []
        self.environment: dict[str, str] = {}

    def rotate(self, token: str) -> None:
        self.accepted = token.strip()
        (self.folder / "token").write_text(token)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[TokenServer]:
        (self.folder / "ca.crt").write_bytes(self._authority.certificate)
        application = web.Application()
        application.router.add_get("/{path:.*}", self._answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._context).start()
        host, port = runner.addresses[0][:2]
        self.environment = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": str(port)}
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "")
        self.seen.append(given)
        if given != f"Bearer {self.accepted}":
            return web.json_response({"reason": "Unauthorized", "message": "Unauthorized"}, status=401)
        return web.json_response({"items": [], "metadata": {}})


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Pod:
    """A client inside a pod, and its clock."""

    connection: Connection
    api: Api
    clock: Clock


@pytest.fixture
def server(tmp_path: Path) -> TokenServer:
    return TokenServer(tmp_path)


@contextlib.asynccontextmanager
async def pod_of(server: TokenServer) -> AsyncIterator[Pod]:
    async with server.serving():
        clock = Clock()
        connection = await Connection.in_cluster(server.folder, server.environment, monotonic=clock)
        async with Api(connection) as api:
            yield Pod(connection, api, clock)


async def test_a_pod_uses_its_service_account_and_reads_a_rotated_token_after_a_minute(server: TokenServer) -> None:
    server.rotate("first\n")
    async with pod_of(server) as pod:
        await pod.api.list(PODS.path())
        await asyncio.to_thread(server.rotate, "second")
        server.accepted = "first"
        pod.clock.now = 59.0
        await pod.api.list(PODS.path())
        server.accepted = "second"
        pod.clock.now = 61.0
        await pod.api.list(PODS.path())
    assert server.seen == ["Bearer first", "Bearer first", "Bearer second"]


async def test_a_token_refused_before_its_time_is_read_again_at_once(server: TokenServer) -> None:
    server.rotate("first")
    async with pod_of(server) as pod:
        await pod.api.list(PODS.path())
        await asyncio.to_thread(server.rotate, "second")
        pod.clock.now = 20.0
        await pod.api.list(PODS.path())
    assert server.seen == ["Bearer first", "Bearer first", "Bearer second"]


async def test_a_token_that_stays_refused_is_an_error_that_does_not_show_it(server: TokenServer) -> None:
    server.rotate("top-secret-token")
    server.accepted = "another"
    async with pod_of(server) as pod:
        pod.clock.now = 20.0
        with pytest.raises(Refused, match="401 Unauthorized") as refusal:
            await pod.api.list(PODS.path())
        assert "top-secret-token" not in repr(refusal.value) + repr(pod.connection) + repr(pod.api)
    assert len(server.seen) == 1


async def test_a_token_file_that_vanishes_for_a_moment_leaves_the_token_in_use(server: TokenServer) -> None:
    server.rotate("first")
    async with pod_of(server) as pod:
        await asyncio.to_thread((server.folder / "token").unlink)
        pod.clock.now = 61.0
        await pod.api.list(PODS.path())
    assert server.seen == ["Bearer first"]


async def test_a_kubeconfig_leads_to_its_server(control_plane: ControlPlane) -> None:
    connection = await Connection.from_environment(control_plane.kubeconfig)
    async with Api(connection) as api:
        assert (await api.get("/version"))["gitVersion"].startswith("v1.")
    assert control_plane.url in repr(connection)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="no file"),
        pytest.param("", id="empty"),
        pytest.param("{[", id="no YAML"),
        pytest.param("just text", id="no mapping"),
        pytest.param("current-context: x\ncontexts: []\nclusters: []\nusers: []\n", id="no context"),
    ],
)
async def test_an_unusable_kubeconfig_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "config"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match="config"):
        await Api.from_environment(file)


async def test_a_folder_without_a_service_account_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="token file does not exist"):
        await Connection.in_cluster(tmp_path, {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"})
