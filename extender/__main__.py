"""``sair extender serve``: reads the settings, connects everything and serves until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import typer
from prometheus_client import CollectorRegistry

from extender.binding import Binder
from extender.granting import COMPONENT, Granter
from extender.leadership import Leadership
from extender.ledger import Ledger
from extender.metrics import Metrics
from extender.reminding import Reminder
from extender.server import Answers, extender_application
from extender.settings import Settings
from extender.watching import Watching
from sair.kube.client import Api
from sair.kube.events import Recorder
from sair.logs import configure, get_logger
from sair.metrics import new_registry
from sair.serving import Served, health_routes, new_application, serve, stop_signal
from sair.settings import load

__all__ = ["Running", "app", "running"]

app = typer.Typer(
    help="The scheduler's extender: places replicas on shares of GPUs and grants live pods theirs.",
    no_args_is_help=True,
)

_LOG = get_logger(COMPONENT)


@app.callback()
def _group() -> None:
    pass


@app.command("serve")
def serve_command() -> None:
    """Serve until SIGTERM or SIGINT; settings are read from SAIR_EXTENDER_… variables."""
    settings = load(Settings, os.environ)
    configure(settings.log_level)
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = stop_signal()
    kubeconfig = Path(settings.kubeconfig) if settings.kubeconfig else None
    async with (
        await Api.from_environment(kubeconfig, timeout_s=settings.request_timeout_s) as api,
        running(settings, api) as server,
    ):
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((stopped, server.work), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if server.work.done():
            server.work.result()


@dataclass(frozen=True, slots=True)
class Running:
    """The extender at work."""

    scheduler: Served
    """Where kube-scheduler asks."""
    health: Served
    """Where probes and Prometheus ask."""
    ledger: Ledger
    watching: Watching
    work: asyncio.Task[None]
    """Everything that watches and writes; ends only by an error."""


@contextlib.asynccontextmanager
async def running(settings: Settings, api: Api, *, registry: CollectorRegistry | None = None) -> AsyncIterator[Running]:
    """Run the extender while the context is open.

    Args:
        settings: Ports and everything else.
        api: Client; it stays open.
        registry: Where the metrics go; None for one of its own.
    """
    registry = registry if registry is not None else new_registry()
    ledger = Ledger(headroom_milli=settings.headroom_milli, unresolved_s=settings.unresolved_s)
    hostname = settings.identity if settings.lease_name else None
    leadership = Leadership(hostname, fresh_s=settings.lease_fresh_s, takeover_s=settings.takeover_s)
    metrics = Metrics(registry, ledger, lambda: leadership.leads(time.monotonic()))
    recorder = Recorder(api, COMPONENT, settings.identity)
    orders: asyncio.TaskGroup = asyncio.TaskGroup()
    reminder = Reminder(api, COMPONENT, after_s=settings.remind_after_s, utc=lambda: datetime.now(UTC))
    granter = Granter(
        api, ledger, recorder, metrics, spawn=orders.create_task, monotonic=time.monotonic, reminder=reminder
    )

    watching = Watching(api, settings, leadership, granter.tell, time.monotonic)
    binder = Binder(api, ledger, granter, watching.pods.get, time.monotonic)
    answers = Answers(ledger, watching.catch_up, settings.headroom_milli)

    async def work() -> None:
        async with orders:
            orders.create_task(recorder.run())
            orders.create_task(watching.run())

    health = new_application()
    health.add_routes(health_routes(registry, watching.why_not_ready))
    task = asyncio.create_task(work())
    try:
        async with (
            serve(health, host=settings.metrics_host, port=settings.metrics_port) as health_served,
            serve(
                extender_application(answers, binder, metrics), host=settings.host, port=settings.port
            ) as scheduler_served,
        ):
            _LOG.info("serving", port=scheduler_served.port, metrics_port=health_served.port)
            yield Running(scheduler_served, health_served, ledger, watching, task)
    finally:
        task.cancel()
        # Whoever waits on it has seen its error; here it only has to have ended.
        await asyncio.wait((task,))


if __name__ == "__main__":
    app()
