"""``sair controller run``: reads the settings, connects everything, waits to be the leader, and scales."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from pathlib import Path

import aiohttp
import typer

from controller.fleet import Fleet
from controller.llm.client import ModelClient
from controller.llm.policy import LlmPolicy
from controller.llm.settings import ModelSettings, load_model_settings
from controller.loop import PipelineLoop
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.metrics import ControllerMetrics
from controller.observe.scraper import Scraper
from controller.settings import Settings, load_settings
from controller.status import StatusWriter
from controller.tuning import Tuning
from controller.watching import Watching
from controller.worlds.kubernetes import COMPONENT, KubernetesWorld, WallClock
from sair.kube.client import Api
from sair.kube.events import Recorder
from sair.kube.lease import Leadership, lead, own_identity
from sair.logs import configure, get_logger
from sair.metrics import new_registry
from sair.serving import health_routes, new_application, serve, stop_signal

__all__ = ["app"]

app = typer.Typer(help="The controller: scales every annotated pipeline of a cluster.", no_args_is_help=True)

_log = get_logger(COMPONENT)


@app.callback()
def _group() -> None:
    pass


@app.command()
def run() -> None:
    """Run until SIGTERM or SIGINT; settings are read from SAIR_CONTROLLER_… and SAIR_LLM_… variables."""
    settings = load_settings(os.environ)
    model = load_model_settings(os.environ)
    configure(settings.log_level)
    asyncio.run(_run(settings, model))


async def _run(settings: Settings, model_settings: ModelSettings) -> None:
    stop = stop_signal()
    async with contextlib.AsyncExitStack() as stack:
        kubeconfig = Path(settings.kubeconfig) if settings.kubeconfig else None
        api = await stack.enter_async_context(await Api.from_environment(kubeconfig))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        store = Store.from_url(settings.redis_url)
        stack.push_async_callback(store.close)
        model = None
        if model_settings.configured:
            model = LlmPolicy(ModelClient(model_settings), model_settings)
            stack.push_async_callback(model.close)
        watching = Watching(api)
        registry = new_registry()
        metrics = ControllerMetrics(registry)
        health = new_application()
        health.add_routes(health_routes(registry, watching.why_not_synced))
        served = await stack.enter_async_context(serve(health, host=settings.host, port=settings.port))
        identity = own_identity()
        _log.info("serving", port=served.port, identity=identity)
        recorder = Recorder(api, COMPONENT, identity.split("_")[0])
        clock = WallClock()
        tuning = Tuning(
            interval_s=settings.interval_s,
            window_s=settings.window_s,
            reflex_interval_s=settings.reflex_interval_s,
            prices=settings.prices,
        )

        async def work(term: Leadership) -> None:
            # Anew for each term: what this process knew in an earlier one, another leader has moved on from.
            _log.info("leading", identity=identity)
            scraper = Scraper(session, clock.now)
            world = KubernetesWorld(api, watching, scraper, settings.prices, clock=clock, may_act=term.is_leader)
            memory = MirroredMemory(store, capacity=settings.memory_capacity)
            status = StatusWriter(api, world, recorder, memory, model_settings, metrics)
            writer = secrets.token_hex(4)

            def loop_of(key: str) -> PipelineLoop:
                seed = secrets.randbits(32)
                return PipelineLoop(key, world, memory, tuning, model=model, watcher=status, seed=seed, writer=writer)

            metrics.leading(True)
            try:
                await Fleet(world, status, metrics, loop_of).run()
            finally:
                metrics.leading(False)
                _log.info("leading no more", identity=identity)

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(watching.run()),
                group.create_task(recorder.run()),
                group.create_task(
                    lead(lambda: Leadership(api, settings.namespace, settings.lease_name, identity=identity), work)
                ),
            ]
            await stop.wait()
            _log.info("stopping")
            for task in tasks:
                task.cancel()
        _log.info("stopped")


if __name__ == "__main__":
    app()
