"""``sair webhook serve``: reads the settings, connects everything and serves until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import typer
from prometheus_client import CollectorRegistry, Gauge

from sair.kube.client import Api
from sair.kube.reflector import Reflector
from sair.kube.resources import PIPELINES
from sair.logs import configure, get_logger
from sair.metrics import new_registry
from sair.pipeline import Pipeline, parse_pipeline
from sair.serving import Served, health_routes, new_application, serve, stop_signal
from sair.settings import load
from webhook.certificates import CertificateKeeper
from webhook.server import Admission, admission_application
from webhook.settings import WebhookSettings

__all__ = ["Running", "app", "running"]

app = typer.Typer(help="The mutating admission webhook.", no_args_is_help=True, pretty_exceptions_enable=False)

_LOG = get_logger("webhook")


@app.callback()
def _group() -> None:
    pass


@app.command("serve")
def serve_command() -> None:
    """Serve until SIGTERM or SIGINT; settings are read from SAIR_WEBHOOK_… variables."""
    settings = load(WebhookSettings, os.environ)
    configure(settings.log_level)
    asyncio.run(_serve(settings))


async def _serve(settings: WebhookSettings) -> None:
    stop = stop_signal()
    kubeconfig = Path(settings.kubeconfig) if settings.kubeconfig else None
    async with await Api.from_environment(kubeconfig) as api, running(settings, api) as server:
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((stopped, server.work), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if server.work.done():
            server.work.result()


@dataclass(slots=True)
class Running:
    """The webhook at work."""

    health: Served
    """The plain server; it is there at once."""
    work: asyncio.Task[None]
    """Everything else; ends only by an error."""
    up: asyncio.Event
    """Set when the TLS server answers."""
    mutate: Served | None = None
    """The TLS server, None until there is a certificate."""


@contextlib.asynccontextmanager
async def running(
    settings: WebhookSettings, api: Api, *, registry: CollectorRegistry | None = None
) -> AsyncIterator[Running]:
    """Run the webhook while the context is open.

    Args:
        settings: Ports and everything else.
        api: Client; it stays open.
        registry: Where the metrics go; None for one of its own.
    """
    registry = registry if registry is not None else new_registry()
    keeper = CertificateKeeper(api, settings, now=lambda: dt.datetime.now(dt.UTC))
    pipelines = Reflector(api, PIPELINES, parse_pipeline)
    admission = Admission(settings, pipelines.get, registry)
    _state_metrics(registry, keeper, pipelines)
    up = asyncio.Event()

    def readiness() -> str | None:
        # Without the pipelines pods get their templates' initial rates: worth a metric, no reason to refuse pods.
        return None if up.is_set() else keeper.problem or "not serving yet"

    plain = new_application()
    plain.add_routes(health_routes(registry, readiness))
    async with serve(plain, host=settings.listen_host, port=settings.metrics_port) as health:
        ready: asyncio.Future[Served] = asyncio.get_running_loop().create_future()
        work = asyncio.create_task(_work(settings, keeper, pipelines, admission, ready))
        server = Running(health, work, up)

        def note(served: asyncio.Future[Served]) -> None:
            if not served.cancelled():
                server.mutate = served.result()
                up.set()

        ready.add_done_callback(note)
        try:
            yield server
        finally:
            ready.cancel()
            work.cancel()
            # Whoever waits on `work` has seen its error; here it only has to have ended.
            await asyncio.wait((work,))


async def _work(
    settings: WebhookSettings,
    keeper: CertificateKeeper,
    pipelines: Reflector[Pipeline],
    admission: Admission,
    ready: asyncio.Future[Served],
) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(pipelines.run())
        await keeper.obtain()
        app = admission_application(admission, settings)
        async with serve(app, host=settings.listen_host, port=settings.listen_port, tls=keeper.context) as served:
            ready.set_result(served)
            _LOG.info("serving", port=served.port)
            await keeper.run()


def _state_metrics(registry: CollectorRegistry, keeper: CertificateKeeper, pipelines: Reflector[Pipeline]) -> None:
    expiry = Gauge(
        "sair_webhook_certificate_expiry_timestamp_seconds",
        "Unix time at which the certificate that is served ends; 0 before there is one.",
        registry=registry,
    )
    expiry.set_function(lambda: keeper.expires_at.timestamp() if keeper.expires_at else 0.0)
    troubled = Gauge(
        "sair_webhook_certificate_refresh_failing",
        "1 while Secret or caBundle cannot be looked after.",
        registry=registry,
    )
    troubled.set_function(lambda: float(keeper.problem is not None))
    stale = Gauge(
        "sair_webhook_pipelines_staleness_seconds",
        "Seconds since the API server last told of Pipelines; without them pods get their templates' initial rates.",
        registry=registry,
    )
    stale.set_function(lambda: pipelines.staleness_s(time.monotonic()))


if __name__ == "__main__":
    app()
