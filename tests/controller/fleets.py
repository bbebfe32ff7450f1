"""A fleet in this process, for tests against a real API server and a real Redis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from controller.cost import Prices
from controller.fleet import Fleet
from controller.llm.settings import ModelSettings
from controller.loop import PipelineLoop
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.metrics import ControllerMetrics
from controller.observe.fetching import Fetcher
from controller.observe.scraper import Scraper
from controller.status import StatusWriter
from controller.tuning import Tuning
from controller.watching import Watching
from controller.worlds.kubernetes import KubernetesWorld, WallClock
from sair.kube.client import Api
from sair.kube.events import Recorder
from sair.metrics import render
from tests.controller.stages import task

TUNING = Tuning(interval_s=1.5, window_s=1.0, reflex_interval_s=0.3)


@dataclass
class Running:
    fleet: Fleet
    world: KubernetesWorld
    registry: CollectorRegistry
    status: StatusWriter
    broken: set[str]
    """Pipelines whose loop fails at once."""
    crowd: set[str]
    """Pipelines that the process is said to look at."""

    def metrics(self) -> str:
        return render(self.registry).decode()


class Failing(PipelineLoop):
    async def run(self, ended: Callable[[], bool] = lambda: False) -> None:
        raise RuntimeError("a bug")


class RunningFleet:
    """A fleet with everything it needs but leadership, while the context is open."""

    def __init__(self, api: Api, store: Store, loop: type[PipelineLoop] = PipelineLoop) -> None:
        self._api, self._store, self._loop = api, store, loop

    async def __aenter__(self) -> Running:
        self._fetcher = Fetcher()
        api, registry = self._api, CollectorRegistry()
        watching, clock, metrics = Watching(api), WallClock(), ControllerMetrics(registry)
        world = KubernetesWorld(
            api, watching, Scraper(self._fetcher, clock.now), Prices(), clock=clock, grant_wait_s=0.5
        )
        memory, recorder = MirroredMemory(self._store), Recorder(api, "controller", "test")
        status = StatusWriter(api, world, recorder, memory, ModelSettings(), metrics)
        broken: set[str] = set()

        def loop_of(key: str) -> PipelineLoop:
            kind = Failing if key in broken else self._loop
            return kind(key, world, memory, TUNING, watcher=status)

        crowd = set[str]()
        fleet = Fleet(world, status, metrics, loop_of, look_s=0.2, crowd=crowd)
        self._tasks = task(watching.run(), recorder.run(), fleet.run())
        await self._tasks.__aenter__()
        return Running(fleet, world, registry, status, broken, crowd)

    async def __aexit__(self, *_error: object) -> None:
        await self._tasks.__aexit__(None, None, None)
        await self._fetcher.aclose()
