"""Several controllers share pipelines on a real API server, with the controller's own rights."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from controller.sharding import lease_of
from controller.shards import Shards
from sair.errors import SairError
from sair.kube.client import Api
from sair.kube.election import ElectionTiming
from sair.kube.lease import Leadership
from sair.kube.resources import LEASES
from tests.controller.stages import SERVICE_ACCOUNT, eventually
from tests.e2e.cluster.control_plane import ControlPlane

pytestmark = pytest.mark.blocking_allowed  # reading a kubeconfig and its certificates, once

NAMESPACE, NAME = "sair-system", "sair-controller"
TIMING = ElectionTiming(lease_s=3, renew_deadline_s=2.0, retry_s=0.2)


@pytest_asyncio.fixture
async def api(cluster: ControlPlane) -> AsyncIterator[Api]:
    async with await Api.from_environment(cluster.client_kubeconfig(SERVICE_ACCOUNT)) as opened:
        yield opened
    async with await Api.from_environment(cluster.kubeconfig) as administrator:
        for name in (NAME, *(lease_of(NAME, shard) for shard in range(16))):
            with contextlib.suppress(SairError):
                await administrator.delete(LEASES.path(NAMESPACE, name))


@dataclass
class Holding:
    """Who works on which shard at this moment; two on one at once is a failure that shows."""

    by: dict[int, list[str]] = field(default_factory=dict)
    doubled: list[int] = field(default_factory=list)

    def work(self, who: str) -> Callable[[int, Callable[[], bool]], Awaitable[None]]:
        async def work(shard: int, may_act: Callable[[], bool]) -> None:
            holders = self.by.setdefault(shard, [])
            holders.append(who)
            try:
                while True:
                    if may_act() and len([each for each in holders if each not in self.stopped]) > 1:
                        self.doubled.append(shard)
                    await asyncio.sleep(0.01)
            finally:
                holders.remove(who)

        return work

    stopped: set[str] = field(default_factory=set)

    def shares(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for holders in self.by.values():
            for who in holders:
                counts[who] = counts.get(who, 0) + 1
        return counts


class Fleet:
    """Controllers that come and go."""

    def __init__(self, api: Api) -> None:
        self.api, self.holding = api, Holding()
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, who: str, shards: int = 5) -> None:
        one = Shards(self.api, NAMESPACE, NAME, shards, identity=who, work=self.holding.work(who), timing=TIMING)
        self.tasks[who] = asyncio.create_task(one.run())

    async def stop(self, *names: str) -> None:
        for who in names:
            self.tasks[who].cancel()
        await asyncio.gather(*(self.tasks.pop(who) for who in names), return_exceptions=True)

    async def shared(self, expected: Sequence[int]) -> None:
        async def so() -> bool:
            return sorted(self.holding.shares().values()) == sorted(expected)

        await eventually(so, lambda: (self.holding.by, self.tasks))


@pytest_asyncio.fixture
async def fleet(api: Api) -> AsyncIterator[Fleet]:
    one = Fleet(api)
    yield one
    await one.stop(*one.tasks)
    assert one.holding.doubled == [], "a shard had two holders at once"


async def test_one_alone_holds_all_and_shares_evenly_with_those_that_come_and_takes_over_from_those_that_go(
    fleet: Fleet,
) -> None:
    fleet.start("a")
    await fleet.shared([5])
    fleet.start("b")
    await fleet.shared([2, 3])
    fleet.start("c")
    await fleet.shared([1, 2, 2])
    await fleet.stop("a")
    await fleet.shared([2, 3])
    await fleet.stop("b")
    await fleet.shared([5])


async def test_those_that_start_at_the_same_time_share_too(fleet: Fleet) -> None:
    for who in "abcd":
        fleet.start(who, shards=4)
    await fleet.shared([1, 1, 1, 1])
    fleet.start("e", shards=4)
    await asyncio.sleep(2.0)
    await fleet.shared([1, 1, 1, 1])


async def test_the_shards_of_one_that_died_without_a_word_are_taken_over_when_its_leases_have_run_out(
    cluster: ControlPlane, fleet: Fleet
) -> None:
    async with await Api.from_environment(cluster.client_kubeconfig(SERVICE_ACCOUNT)) as own:
        doomed = Fleet(own)
        doomed.holding = fleet.holding
        doomed.start("doomed", shards=4)
        fleet.start("a", shards=4)
        await fleet.shared([2, 2])
        # Its connection is gone for good: it neither renews nor releases.
        await own.close()
        fleet.holding.stopped.add("doomed")

        async def taken_over() -> bool:
            return all("a" in holders for holders in fleet.holding.by.values()) and len(fleet.holding.by) == 4

        await eventually(taken_over, lambda: fleet.holding.by)
        await doomed.stop("doomed")


async def test_nobody_acts_while_another_number_of_shards_or_a_single_leader_is_at_work(fleet: Fleet, api: Api) -> None:
    async with Leadership(api, NAMESPACE, NAME, identity="alone", timing=TIMING):
        fleet.start("a", shards=3)
        await asyncio.sleep(1.5)
        assert fleet.holding.shares() == {}
    await fleet.shared([3])
    other = Fleet(api)
    other.start("b", shards=2)
    await asyncio.sleep(2.0)
    assert other.holding.shares() == {}
    campaign = asyncio.create_task(_led(api))
    await asyncio.sleep(1.0)
    assert not campaign.done()
    await fleet.stop("a")
    await other.shared([2])
    await other.stop("b")
    await campaign


async def _led(api: Api) -> None:
    async with Leadership(api, NAMESPACE, NAME, identity="later", timing=TIMING):
        pass


async def test_what_the_work_raises_comes_out(api: Api) -> None:
    async def failing(_shard: int, _may_act: Callable[[], bool]) -> None:
        raise RuntimeError("a bug")

    shards = Shards(api, NAMESPACE, NAME, 2, identity="a", work=failing, timing=TIMING)
    async with asyncio.timeout(20.0):
        with pytest.raises(RuntimeError, match="a bug"):
            await shards.run()
