"""Holding shards: a Lease for each, and a common one in which all who share the pipelines say that they live.

The common Lease also names the number of shards. Controllers that divide otherwise, or do not divide at all, cannot hold it at the same
time, so that a pipeline is never scaled by two while the number is being changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import random
from collections.abc import Awaitable, Callable
from typing import Any

from controller.sharding import MEMBERS, Members, fair_share, layout_of, lease_of, surplus
from sair.errors import NotFound, SairError
from sair.kube.client import Api
from sair.kube.election import (
    ElectionTiming,
    Observation,
    Wait,
    lease_body,
    next_step,
    observe,
    parse_lease,
    term_end_s,
)
from sair.kube.lease import Leadership, local_time_s
from sair.kube.resources import LEASES
from sair.logs import get_logger
from sair.wire import field

__all__ = ["Roster", "Shards", "Work"]

Work = Callable[[int, Callable[[], bool]], Awaitable[None]]
"""What is done with a shard while it is held: its number, and whether one may act at this moment. Cancelled when it is given up."""

_log = get_logger("shards")


class Roster:
    """The common Lease.

    Args:
        api: Client.
        namespace: Of the Lease.
        name: Of the Lease.
        shards: How many there are.
        identity: Who we are.
        timing: Durations.
        local: Local time in seconds.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        shards: int,
        *,
        identity: str,
        timing: ElectionTiming,
        local: Callable[[], float] = local_time_s,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._layout = layout_of(shards)
        self._identity = identity
        self._timing = timing
        self._local = local
        self._seen: Observation | None = None
        self._members = Members.none()
        self._until_s = float("-inf")

    def holds(self) -> bool:
        """Whether the pipelines are divided as we divide them, at this moment."""
        return self._local() < self._until_s

    def living(self) -> frozenset[str]:
        """Who shares the pipelines, ourselves if we have said so."""
        return self._members.living(self._local(), self._timing.lease_s)

    async def beat(self) -> None:
        """Say that we live, and hear who else does; whatever goes wrong shows in ``holds`` after a while.

        Raises:
            SairError: If the Lease can be neither read nor written, or somebody else wrote it first: try again.
        """
        raw = await self._read()
        if isinstance(next_step(self._look(raw), self._layout, self._timing, self._local(), random.random()), Wait):
            return
        sent_s = self._local()
        annotation = self._members.written(self._identity, sent_s, self._timing.lease_s)
        self._look(await self._write(raw, annotation))
        self._until_s = term_end_s(sent_s, self._timing)

    async def leave(self) -> None:
        """Say that we do not live any more, so that others need not wait for it."""
        self._until_s = float("-inf")
        with contextlib.suppress(SairError, TimeoutError):
            async with asyncio.timeout(self._timing.renew_deadline_s):
                raw = await self._read()
                record = self._look(raw).record
                if record is not None and record.holder == self._layout:
                    await self._write(raw, self._members.without(self._identity))

    async def _read(self) -> dict[str, Any] | None:
        try:
            return await self._api.get(LEASES.path(self._namespace, self._name))
        except NotFound:
            return None

    def _look(self, raw: dict[str, Any] | None) -> Observation:
        now = self._local()
        self._seen = observe(self._seen, parse_lease(raw) if raw is not None else None, now)
        annotations = field(raw or {}, "metadata", "annotations", default={})
        self._members = self._members.see(annotations.get(MEMBERS), now)
        return self._seen

    async def _write(self, raw: dict[str, Any] | None, annotation: str) -> dict[str, Any]:
        record = self._seen.record if self._seen is not None else None
        body = lease_body(
            self._namespace,
            self._name,
            seen=record,
            holder=self._layout,
            timing=self._timing,
            wall=dt.datetime.now(dt.UTC),
        )
        body["metadata"]["annotations"] = {MEMBERS: annotation}
        if raw is None:
            return await self._api.create(LEASES.path(self._namespace), body)
        return await self._api.replace(LEASES.path(self._namespace, self._name), body)


class Shards:
    """Holds a fair share of the shards, gives away what is more than that, and takes over those of who is gone.

    Args:
        api: Client.
        namespace: Of the Leases.
        name: Of the common Lease; those of the shards are called after it.
        shards: How many there are.
        identity: Who we are.
        work: What is done with a shard.
        timing: Durations.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        shards: int,
        *,
        identity: str,
        work: Work,
        timing: ElectionTiming,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._count = shards
        self._identity = identity
        self._work = work
        self._timing = timing
        self._roster = Roster(api, namespace, name, shards, identity=identity, timing=timing)
        self._terms = {shard: self._new_term(shard) for shard in range(shards)}
        self._held: dict[int, asyncio.Task[None]] = {}

    @property
    def held(self) -> tuple[int, ...]:
        """The shards worked on."""
        return tuple(sorted(self._held))

    async def run(self) -> None:
        """Run until cancelled; then everything is released.

        Raises:
            Exception: What the work raised.
        """
        try:
            while True:
                for task in self._held.values():
                    if task.done():
                        # Work ends by itself only when it fails, and that is for whoever runs us to see.
                        task.result()
                try:
                    await self._turn()
                except SairError as error:
                    _log.debug("shards cannot be looked after; trying again", error=str(error))
                await asyncio.sleep(self._timing.retry_s * (1 + 0.2 * random.random()))
        finally:
            await self._give_up(self.held)
            await self._roster.leave()

    async def _turn(self) -> None:
        try:
            await self._roster.beat()
        finally:
            lost = [shard for shard in self.held if not self._terms[shard].is_leader()]
            await self._give_up(self.held if not self._roster.holds() else lost)
        if not self._roster.holds():
            return
        share = fair_share(self._count, self._roster.living(), self._identity)
        await self._give_up(surplus(self._held, share))
        # Looked at even when there is nothing to take: whether its holder lives shows only to who watched for a while.
        order = range(self._count)
        start = hash(self._identity) % self._count
        for shard in (*order[start:], *order[:start]):
            if shard not in self._held:
                won = await self._terms[shard].attempt(take=len(self._held) < share)
                if won:
                    self._begin(shard)

    def _begin(self, shard: int) -> None:
        term, roster = self._terms[shard], self._roster

        def may_act() -> bool:
            return term.is_leader() and roster.holds()

        async def work() -> None:
            working = asyncio.ensure_future(self._work(shard, may_act))
            losing = asyncio.create_task(term.lost.wait())
            try:
                await asyncio.wait([working, losing], return_when=asyncio.FIRST_COMPLETED)
                if working.done():
                    working.result()
            finally:
                for task in (working, losing):
                    task.cancel()
                await asyncio.wait([working, losing])

        _log.info("holding a shard", shard=shard, of=self._count, identity=self._identity)
        self._held[shard] = asyncio.create_task(work(), name=f"shard {shard}")

    async def _give_up(self, shards: tuple[int, ...] | list[int]) -> None:
        """Stop the work first, release the Lease then."""
        tasks = {shard: self._held.pop(shard) for shard in shards}
        for task in tasks.values():
            task.cancel()
        if tasks:
            await asyncio.wait(tasks.values())
        for shard in tasks:
            await self._terms[shard].aclose()
            self._terms[shard] = self._new_term(shard)
            _log.info("gave up a shard", shard=shard, of=self._count, identity=self._identity)

    def _new_term(self, shard: int) -> Leadership:
        return Leadership(
            self._api, self._namespace, lease_of(self._name, shard), identity=self._identity, timing=self._timing
        )
