"""HTTP serving: ``/healthz``, ``/readyz`` and ``/metrics`` on every component, graceful shutdown, bounded request bodies."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CollectorRegistry

from sair.metrics import CONTENT_TYPE_LATEST, render

__all__ = ["MAX_BODY_BYTES", "Readiness", "Served", "health_routes", "new_application", "serve", "stop_signal"]

MAX_BODY_BYTES = 16 * 2**20
"""The API server's own limit of one request is 3 MiB; a scheduler's list of 5,000 full nodes stays below this."""

_SHUTDOWN_S = 5.0

Readiness = Callable[[], str | None]
"""Gives None when ready, otherwise why not."""


@dataclass(frozen=True, slots=True)
class Served:
    """A running server and the port it really listens on (asked for 0, the system chose)."""

    host: str
    port: int


def new_application() -> web.Application:
    """Make an application that refuses oversized bodies."""
    return web.Application(client_max_size=MAX_BODY_BYTES)


def health_routes(registry: CollectorRegistry, readiness: Readiness) -> list[web.RouteDef]:
    """Routes every component has: liveness, readiness with its reason, metrics."""

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        reason = readiness()
        return web.Response(text="ok\n") if reason is None else web.Response(status=503, text=f"not ready: {reason}\n")

    async def metrics(_request: web.Request) -> web.Response:
        # Collectors may read files, as the process's own numbers in /proc are.
        body = await asyncio.to_thread(render, registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)]


@contextlib.asynccontextmanager
async def serve(
    app: web.Application, *, host: str, port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Served]:
    """Serve an application while the context is open; requests under way get 5 s to end afterwards.

    Args:
        app: The application.
        host: Address to listen on.
        port: Port, or 0 for any free one.
        tls: Server context; plain HTTP without.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=tls)
        await site.start()
        yield Served(host, runner.addresses[0][1])
    finally:
        await runner.cleanup()


def stop_signal() -> asyncio.Event:
    """Give an event that SIGTERM and SIGINT set; a second signal kills as usual."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def handle(number: int) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle, number)
    return stop
