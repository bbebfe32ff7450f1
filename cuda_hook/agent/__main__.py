"""``sair agent serve``: runs on every GPU node, beside the containers whose pages it reads and writes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from prometheus_client import CollectorRegistry

from cuda_hook.agent.containers import Containers
from cuda_hook.agent.inventory import inventory_annotation
from cuda_hook.agent.metrics import PodName, SnapshotCollector
from cuda_hook.agent.nvml import Nvml
from cuda_hook.agent.observer import Observer
from cuda_hook.agent.settings import AgentSettings
from sair.annotations import GPUS, PIPELINE, STAGE
from sair.errors import MetricsUnavailable, TemporaryError
from sair.kube.client import Api
from sair.kube.patch import merge_patch_annotations
from sair.kube.reflector import Reflector
from sair.kube.resources import NODES, PODS
from sair.logs import configure, get_logger
from sair.metrics import new_registry
from sair.serving import Served, health_routes, new_application, serve, stop_signal
from sair.settings import load
from sair.wire import field as lookup

__all__ = ["Running", "app", "parse_pod", "running"]

app = typer.Typer(help="The node agent.", no_args_is_help=True)

_LOG = get_logger("agent")
_RETRY_S = 5.0


@app.callback()
def _group() -> None:
    pass


@app.command("serve")
def serve_command() -> None:
    """Serve until SIGTERM or SIGINT; settings are read from SAIR_AGENT_… variables."""
    settings = load(AgentSettings, os.environ)
    configure(settings.log_level)
    asyncio.run(_serve(settings))


@app.command("inventory")
def inventory_command() -> None:
    """Print what the Node's sair.dev/gpus annotation would say, and exit."""
    nvml = Nvml(load(AgentSettings, os.environ).nvml_library)
    typer.echo(inventory_annotation(nvml.gpus()))
    nvml.close()


async def _serve(settings: AgentSettings) -> None:
    stop = stop_signal()
    async with contextlib.AsyncExitStack() as stack:
        api = None
        if settings.node_name:
            kubeconfig = Path(settings.kubeconfig) if settings.kubeconfig else None
            api = await stack.enter_async_context(await Api.from_environment(kubeconfig))
        agent = await stack.enter_async_context(running(settings, api))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((stopped, agent.work), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if agent.work.done():
            agent.work.result()


@dataclass(slots=True)
class Running:
    """The agent at work."""

    health: Served
    work: asyncio.Task[None]
    observer: Observer


@dataclass(slots=True)
class _Names:
    """Names of this node's pods, as the API server tells them."""

    by_uid: dict[str, PodName] = field(default_factory=dict)

    def read(self) -> Mapping[str, PodName]:
        return self.by_uid


def parse_pod(raw: Mapping[str, Any]) -> tuple[str, PodName]:
    """Read a raw pod's UID and what it is called."""

    def text(*path: str) -> str:
        return str(lookup(raw, "metadata", *path) or "")

    name = PodName(text("namespace"), text("name"), text("annotations", PIPELINE), text("annotations", STAGE))
    return text("uid"), name


def _open_nvml(library: str) -> Nvml | None:
    try:
        return Nvml(library)
    except MetricsUnavailable as error:
        _LOG.warning("no NVML: only stats pages are read", error=str(error))
        return None


@contextlib.asynccontextmanager
async def running(
    settings: AgentSettings, api: Api | None, *, registry: CollectorRegistry | None = None, proc: Path = Path("/proc")
) -> AsyncIterator[Running]:
    """Run the agent while the context is open.

    Args:
        settings: Everything that can be set.
        api: Client, or None to work without an API server; it stays open.
        registry: Where the metrics go; None for one of its own.
        proc: The host's /proc.
    """
    registry = registry if registry is not None else new_registry()
    nvml = _open_nvml(settings.nvml_library)
    containers = Containers(Path(settings.pods_path), settings.volume, settings.file)
    observer = Observer(containers, nvml, period_ms=settings.period_ms, proc=proc)
    names = _Names()
    registry.register(SnapshotCollector(lambda: observer.snapshot, names.read))
    plain = new_application()
    plain.add_routes(health_routes(registry, lambda: observer.snapshot.problem))
    async with serve(plain, host=settings.host, port=settings.port) as health:
        work = asyncio.create_task(_work(settings, api, observer, names))
        try:
            yield Running(health, work, observer)
        finally:
            work.cancel()
            await asyncio.wait((work,))
            containers.close()
            if nvml is not None:
                nvml.close()


async def _work(settings: AgentSettings, api: Api | None, observer: Observer, names: _Names) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_observe(settings, observer))
        if api is None:
            return
        if observer.has_nvml:
            group.create_task(_announce(settings, api, observer))
        # Otherwise nothing is known here, which is not the same as no GPU: an inventory that somebody wrote stays.
        pods = Reflector(api, PODS, parse_pod, field_selector=f"spec.nodeName={settings.node_name}")
        group.create_task(pods.run())
        group.create_task(_name_pods(settings, pods, names))


async def _observe(settings: AgentSettings, observer: Observer) -> None:
    """Look once per period, on a fixed grid of times so that slow looks do not add up."""
    discovered = -settings.discovery_s
    due = time.monotonic()
    while True:
        if time.monotonic() - discovered >= settings.discovery_s:
            discovered = time.monotonic()
            await asyncio.to_thread(observer.discover)
        await asyncio.to_thread(observer.look)
        due = max(due + settings.period_ms / 1000, time.monotonic())
        await asyncio.sleep(due - time.monotonic())


async def _name_pods(settings: AgentSettings, pods: Reflector[tuple[str, PodName]], names: _Names) -> None:
    while True:
        names.by_uid = dict(pods.snapshot().values())
        await asyncio.sleep(settings.discovery_s)


async def _announce(settings: AgentSettings, api: Api, observer: Observer) -> None:
    """Keep the Node's inventory annotation up to date."""
    told: str | None = None
    while True:
        delay_s = settings.inventory_s
        try:
            inventory = inventory_annotation(await asyncio.to_thread(observer.find_gpus))
            if inventory != told:
                await merge_patch_annotations(
                    api, NODES, None, settings.node_name, {GPUS: inventory}, component="agent"
                )
                told = inventory
                _LOG.info("inventory announced", gpus=inventory)
        except TemporaryError as error:
            _LOG.warning("inventory not announced", error=str(error))
            delay_s = min(_RETRY_S, delay_s)
        await asyncio.sleep(delay_s)


if __name__ == "__main__":
    app()
