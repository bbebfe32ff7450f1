"""A reverse proxy before the Kubernetes API that misbehaves by script, for faults no healthy server shows on demand."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import aiohttp
import yaml
from aiohttp import web

_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "content-encoding", "host", "keep-alive"}

Then = Literal["end", "reset", "hang"]


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch") == "true"

    @property
    def is_list(self) -> bool:
        return self.method == "GET" and not self.is_watch


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer by itself instead of asking the server."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """Answer 200 with these bytes, then end cleanly, reset the connection or hang."""

    data: bytes
    then: Then = "end"


@dataclass(frozen=True, slots=True)
class Reset:
    """Drop the TCP connection without an answer; ``after`` lets the server do the work first."""

    after: bool = False


@dataclass(frozen=True, slots=True)
class Hang:
    """Accept the request and never answer."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Pass the server's answer on up to this many bytes, then end, reset or hang."""

    bytes_passed: int
    then: Then = "reset"


Fault: TypeAlias = Answer | Stream | Reset | Hang | Cut
Matcher: TypeAlias = Callable[[Request], bool]


class ApiProxy:
    """Stands before an API server on loopback, without TLS towards the client; an async context manager.

    Args:
        kubeconfig: Of the real server; None for no server at all (what the script does not answer is 404).
    """

    def __init__(self, kubeconfig: Path | None, folder: Path) -> None:
        self._kubeconfig = kubeconfig
        self._folder = folder
        self._script: list[tuple[Matcher, Fault, int]] = []
        self._hung = asyncio.Event()
        self._live: set[asyncio.Transport] = set()
        self.requests: list[Request] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        self._upstream, self._session = self._connect()
        application = web.Application(client_max_size=64 * 2**20)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hung.set()
        self.reset_connections()
        await self._runner.cleanup()
        await self._session.close()

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig that leads to this proxy."""
        file = self._folder / "proxied.kubeconfig"
        cluster = {"name": "proxied", "cluster": {"server": self.url}}
        context = {"name": "proxied", "context": {"cluster": "proxied", "user": "nobody"}}
        user: dict[str, Any] = {"name": "nobody", "user": {}}
        whole = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "contexts": [context],
            "users": [user],
            "current-context": "proxied",
        }
        file.write_text(yaml.safe_dump(whole))
        return file

    def on(self, matcher: Matcher, fault: Fault, *, times: int = 1) -> None:
        """Let the next requests that match meet a fault; earlier entries go first."""
        self._script.append((matcher, fault, times))

    def reset_connections(self) -> None:
        """Drop every open connection."""
        for transport in list(self._live):
            transport.abort()

    @property
    def open_requests(self) -> int:
        """Requests being answered at this moment."""
        return len(self._live)

    def count(self, matcher: Matcher) -> int:
        """Say how many requests so far match."""
        return sum(1 for request in self.requests if matcher(request))

    def _connect(self) -> tuple[str | None, aiohttp.ClientSession]:
        if self._kubeconfig is None:
            return None, aiohttp.ClientSession()
        config = yaml.safe_load(self._kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        certificate, key = self._folder / "client.crt", self._folder / "client.key"
        certificate.write_bytes(base64.b64decode(user["client-certificate-data"]))
        key.write_bytes(base64.b64decode(user["client-key-data"]))
        context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        context.load_cert_chain(certificate, key)
        return cluster["server"], aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context), auto_decompress=False
        )

    def _fault_for(self, request: Request) -> Fault | None:
        for index, (matcher, fault, times) in enumerate(self._script):
            if matcher(request):
                if times <= 1:
                    del self._script[index]
                else:
                    self._script[index] = (matcher, fault, times - 1)
                return fault
        return None

    async def _handle(self, incoming: web.Request) -> web.StreamResponse:
        request = Request(incoming.method, incoming.path, dict(incoming.query), dict(incoming.headers))
        self.requests.append(request)
        transport = incoming.transport
        assert isinstance(transport, asyncio.Transport)
        self._live.add(transport)
        try:
            fault = self._fault_for(request)
            match fault:
                case Answer():
                    return web.Response(status=fault.status, body=fault.body, headers=dict(fault.headers))
                case Stream():
                    response = web.StreamResponse()
                    await response.prepare(incoming)
                    await response.write(fault.data)
                    return await self._finish(response, transport, fault.then)
                case Reset(after=False):
                    transport.abort()
                    return web.Response()
                case Hang():
                    await self._hung.wait()
                    return web.Response()
                case _:
                    return await self._forward(incoming, transport, fault)
        finally:
            self._live.discard(transport)

    async def _forward(
        self, incoming: web.Request, transport: asyncio.Transport, fault: Fault | None
    ) -> web.StreamResponse:
        if self._upstream is None:
            return web.Response(status=404)
        headers = {name: value for name, value in incoming.headers.items() if name.lower() not in _HOP_BY_HOP}
        budget = fault.bytes_passed if isinstance(fault, Cut) else None
        async with self._session.request(
            incoming.method,
            self._upstream + incoming.raw_path,
            headers=headers,
            data=await incoming.read(),
            timeout=aiohttp.ClientTimeout(),
        ) as answer:
            if isinstance(fault, Reset):
                await answer.read()
                transport.abort()
                return web.Response()
            kept = {
                name: value
                for name, value in answer.headers.items()
                if name.lower() not in _HOP_BY_HOP - {"content-encoding"}
            }
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(incoming)
            async for chunk in answer.content.iter_any():
                if budget is not None and isinstance(fault, Cut):
                    passed = chunk[:budget]
                    budget -= len(passed)
                    await response.write(passed)
                    if budget == 0:
                        return await self._finish(response, transport, fault.then)
                else:
                    await response.write(chunk)
            await response.write_eof()
            return response

    async def _finish(
        self, response: web.StreamResponse, transport: asyncio.Transport, then: Then
    ) -> web.StreamResponse:
        if then == "hang":
            await self._hung.wait()
        elif then == "reset":
            # Let what was written reach the client first.
            await asyncio.sleep(0.05)
            transport.abort()
        else:
            await response.write_eof()
        return response
