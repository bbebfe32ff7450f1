"""``sair controller run``: reads the settings, connects everything, waits to be the leader, and scales."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

import aiohttp
import typer

from controller.fleet import Fleet
from controller.llm.client import ModelClient
from controller.llm.policy import LlmPolicy
from controller.llm.settings import ModelSettings, load_model_settings
from controller.loop import PipelineLoop
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.method import Method
from controller.metrics import ControllerMetrics
from controller.observe.fetching import Fetcher
from controller.observe.prometheus import PrometheusServer, PrometheusSource
from controller.observe.scraper import Scraper
from controller.observe.source import Source
from controller.settings import Settings, load_settings
from controller.sharding import shard_of
from controller.shards import Shards
from controller.status import StatusWriter
from controller.tuning import Tuning
from controller.watching import Watching
from controller.worlds.kubernetes import COMPONENT, KubernetesWorld, WallClock
from sair.errors import SettingsError
from sair.kube.client import Api
from sair.kube.events import Recorder
from sair.kube.lease import ElectionTiming, Leadership, lead, own_identity
from sair.logs import configure, get_logger
from sair.metrics import new_registry
from sair.serving import health_routes, new_application, serve, stop_signal
from sair.settings import load

__all__ = ["app"]

app = typer.Typer(help="The controller: scales every annotated pipeline of a cluster.", no_args_is_help=True)

_log = get_logger(COMPONENT)

_MEBIBYTE: Final = 1024 * 1024


@app.callback()
def _group() -> None:
    pass


@app.command()
def run() -> None:
    """Run until SIGTERM or SIGINT; settings are read from SAIR_CONTROLLER_…, SAIR_METHOD_… and SAIR_LLM_… variables."""
    settings, method = load_settings(os.environ), load(Method, os.environ)
    model = load_model_settings(os.environ, settings.interval_s)
    configure(settings.log_level)
    asyncio.run(_run(settings, method, model))


async def _run(settings: Settings, method: Method, model_settings: ModelSettings) -> None:
    stop = stop_signal()
    async with contextlib.AsyncExitStack() as stack:
        kubeconfig = Path(settings.kubeconfig) if settings.kubeconfig else None
        api = await stack.enter_async_context(await Api.from_environment(kubeconfig))
        store = Store.from_url(settings.redis_url, journal_bytes=int(settings.journal_mib * _MEBIBYTE))
        stack.push_async_callback(store.close)
        watching = Watching(api)
        registry = new_registry()
        metrics = ControllerMetrics(registry)
        model = None
        if model_settings.configured:
            model = LlmPolicy(ModelClient(model_settings), model_settings, tally=metrics.asked)
            stack.push_async_callback(model.close)
        health = new_application()
        health.add_routes(health_routes(registry, watching.why_not_synced))
        served = await stack.enter_async_context(serve(health, host=settings.host, port=settings.port))
        identity = own_identity()
        _log.info("serving", port=served.port, identity=identity)
        recorder = Recorder(api, COMPONENT, identity.split("_")[0])
        clock = WallClock()
        source = await _source(settings, clock, stack)
        tuning = method.tuning(
            Tuning(
                interval_s=settings.interval_s,
                window_s=settings.window_s,
                reflex_interval_s=settings.reflex_interval_s,
                prices=settings.prices,
            )
        )

        crowd = set[str]()

        async def work(shard: int, may_act: Callable[[], bool]) -> None:
            # Anew for each term: what this process knew in an earlier one, another leader has moved on from.
            _log.info("leading", identity=identity, shard=shard, of=settings.shards)
            world = KubernetesWorld(
                api,
                watching,
                source,
                settings.prices,
                clock=clock,
                may_act=may_act,
                owns=lambda namespace: shard_of(namespace, settings.shards) == shard,
            )
            memory = MirroredMemory(
                store,
                capacity=settings.memory_capacity,
                waiting_bytes=int(settings.waiting_mib * _MEBIBYTE / settings.shards),
                leads=may_act,
            )
            status = StatusWriter(api, world, recorder, memory, model_settings, metrics)
            writer = secrets.token_hex(4)

            def loop_of(key: str) -> PipelineLoop:
                return PipelineLoop(
                    key,
                    world,
                    memory,
                    tuning,
                    model=model,
                    watcher=status,
                    seed=secrets.randbits(32),
                    writer=writer,
                    pipelines=crowd.__len__,
                )

            metrics.leading(True, shard)
            try:
                await Fleet(world, status, metrics, loop_of, crowd=crowd).run()
            finally:
                metrics.leading(False, shard)
                _log.info("leading no more", identity=identity, shard=shard, of=settings.shards)

        async def lead_or_share() -> None:
            name, timing = settings.lease_name, ElectionTiming.within(settings.lease_s)
            if settings.shards == 1:
                await lead(
                    lambda: Leadership(api, settings.namespace, name, identity=identity, timing=timing),
                    lambda term: work(0, term.is_leader),
                )
            else:
                await Shards(
                    api, settings.namespace, name, settings.shards, identity=identity, work=work, timing=timing
                ).run()

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(watching.run()),
                group.create_task(recorder.run()),
                group.create_task(lead_or_share()),
            ]
            await stop.wait()
            _log.info("stopping")
            for task in tasks:
                task.cancel()
        _log.info("stopped")


async def _source(settings: Settings, clock: WallClock, stack: contextlib.AsyncExitStack) -> Source:
    """Where metrics come from; one for all shards, so that nobody is asked twice."""
    if settings.metrics_source == "pods":
        scraper = Scraper(await stack.enter_async_context(Fetcher()), clock.now)
        stack.push_async_callback(scraper.aclose)
        return scraper
    ca_file = settings.prometheus_ca_file
    try:
        trusted = await asyncio.to_thread(ssl.create_default_context, cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            "SAIR_CONTROLLER_PROMETHEUS_CA_FILE", ca_file, f"a file of certificates ({error})"
        ) from error
    own = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted)))
    server = PrometheusServer(
        settings.prometheus_url,
        settings.prometheus_namespace_label,
        settings.prometheus_pod_label,
        Path(settings.prometheus_token_file) if settings.prometheus_token_file else None,
    )
    source = PrometheusSource(own, server, clock.now)
    stack.push_async_callback(source.aclose)
    return source


if __name__ == "__main__":
    app()
