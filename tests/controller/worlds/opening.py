"""A Kubernetes world that watches and scrapes, while a context is open."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from controller.cost import Prices
from controller.observe.fetching import Fetcher
from controller.observe.scraper import Scraper
from controller.state import Allocation, KnobOutcome
from controller.watching import Watching
from controller.worlds.kubernetes import KubernetesWorld, WallClock
from sair.errors import MetricsUnavailable
from sair.kube.client import Api
from tests.controller.stages import SERVICE_ACCOUNT, eventually, task
from tests.e2e.cluster.control_plane import ControlPlane

__all__ = ["Leader", "Opened", "apply", "opening", "ready"]


@dataclass
class Leader:
    leads: bool = True

    def __call__(self) -> bool:
        return self.leads


@dataclass
class Opened:
    world: KubernetesWorld
    scraper: Scraper
    leader: Leader
    api: Api


@contextlib.asynccontextmanager
async def opening(cluster: ControlPlane, grant_wait_s: float = 1.0) -> AsyncIterator[Opened]:
    """With the controller's own rights; synced."""
    async with (
        await Api.from_environment(cluster.client_kubeconfig(SERVICE_ACCOUNT)) as api,
        Fetcher() as fetcher,
    ):
        watching, clock, leader = Watching(api), WallClock(), Leader()
        scraper = Scraper(fetcher, clock.now)
        world = KubernetesWorld(
            api, watching, scraper, Prices(), clock=clock, may_act=leader, grant_wait_s=grant_wait_s
        )
        async with task(watching.run()):

            async def synced() -> bool:
                return watching.why_not_synced() is None

            await eventually(synced, watching.why_not_synced)
            yield Opened(world, scraper, leader, api)
        await scraper.aclose()


async def ready(opened: Opened, key: str, replicas: int) -> dict[str, Allocation]:
    """Wait until the pods have been seen and scraped twice; gives the allocations."""

    async def seen() -> bool:
        if key not in opened.world.found():
            return False
        try:
            gauges = await opened.world.gauges(key, 2.0)
        except MetricsUnavailable:
            return False
        return sum(gauge.ready for gauge in gauges) == replicas

    await eventually(seen)
    return (await opened.world.observe(key, 2.0)).allocations


async def apply(opened: Opened, key: str, stage: str, wanted: Allocation) -> dict[str, KnobOutcome]:
    """What became of each knob."""
    return {each.knob: each for each in await opened.world.apply(key, {stage: wanted}, reason="a test")}
