"""Holding leadership by a Lease: campaign, renew, notice the loss in time, release at the end."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import random
import socket
import time
import uuid
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from sair.errors import Conflict, NotFound, SairError
from sair.kube.client import Api
from sair.kube.election import (
    ElectionTiming,
    LeaseRecord,
    Observation,
    Wait,
    lease_body,
    next_step,
    observe,
    parse_lease,
    term_end_s,
)
from sair.kube.errors import retry_after_s
from sair.kube.resources import LEASES
from sair.logs import get_logger

__all__ = ["ElectionTiming", "Leadership", "lead", "local_time_s", "own_identity"]

T = TypeVar("T")

_TIMING = ElectionTiming()
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def own_identity() -> str:
    """Name this process: host name (the pod's name) and a random part, so that a restarted pod is another candidate."""
    return f"{socket.gethostname()}_{uuid.uuid4()}"


def local_time_s() -> float:
    """Seconds on a clock that nobody sets and that, where the system has such a one, runs on while it sleeps."""
    return time.clock_gettime(_CLOCK)


class Leadership:
    """One term of leadership: ``async with`` waits until it is won, holds it, and releases it at the end.

    ::

        async with Leadership(api, "sair-system", "sair-controller") as term:
            while not term.lost.is_set(): ...

    Whoever acts as leader asks ``is_leader()`` right before acting: the answer depends on the clock alone, so it is right even if
    this process was stopped for a while and nobody could tell it. Once lost, a term stays lost; begin another one to campaign again.

    Args:
        api: Client.
        namespace: Of the Lease.
        name: Of the Lease.
        identity: Unique among candidates.
        timing: Durations.
        on_lost: Called once if the term ends against our will.
        local: Local time in seconds.
        wall: UTC time, written into the Lease for people.
        draw: Uniform random numbers in [0, 1).
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        *,
        identity: str | None = None,
        timing: ElectionTiming = _TIMING,
        on_lost: Callable[[], None] | None = None,
        local: Callable[[], float] = local_time_s,
        wall: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self.identity = identity if identity is not None else own_identity()
        self._timing = timing
        self._on_lost = on_lost
        self._local = local
        self._wall = wall
        self._draw = draw
        self._seen: Observation | None = None
        self._until_s: float | None = None
        self._renewing: asyncio.Task[None] | None = None
        self.lost = asyncio.Event()
        """Set when the term ended against our will, before anybody else can have begun theirs."""
        self._log = get_logger("kube").bind(lease=f"{namespace}/{name}", identity=self.identity)

    @property
    def holder(self) -> str | None:
        """Identity of whoever holds the Lease as last seen; None if nobody was seen to."""
        record = self._seen.record if self._seen else None
        return record.holder or None if record else None

    def is_leader(self) -> bool:
        """Say whether this process may act as leader at this moment."""
        return self._until_s is not None and not self.lost.is_set() and self._local() < self._until_s

    async def __aenter__(self) -> Self:
        await self._campaign()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def attempt(self, *, take: bool = True) -> bool:
        """Look at the Lease once and, if it is to be had, try once to take it: for who holds several, and not always wants one more.

        Call it every ``retry_s`` even while ``take`` is False: only who has watched a Lease for its whole duration knows that its holder
        is gone.

        Args:
            take: Whether to take it.

        Returns:
            Whether the term has begun; end it with ``aclose``.

        Raises:
            SairError: If the Lease can be neither read nor written.
        """
        step = next_step(await self._read(), self.identity, self._timing, self._local(), self._draw())
        if isinstance(step, Wait) or not take:
            return False
        sent_s = self._local()
        try:
            await self._write(self.identity)
        except Conflict:
            return False  # a lost race
        return self._begin(sent_s)

    async def aclose(self) -> None:
        """End the term: nobody here acts as leader from here on, then the Lease is released."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
        held = self.is_leader()
        # From here on nobody here acts as leader, so the Lease may be given away.
        self._until_s = None
        if held:
            await self._release()

    async def _campaign(self) -> None:
        while True:
            try:
                seen = await self._read()
                step = next_step(seen, self.identity, self._timing, self._local(), self._draw())
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                    continue
                sent_s = self._local()
                await self._write(self.identity)
            except SairError as error:
                # A lost race shows as Conflict; whatever it is, look again.
                self._log.debug("not elected", error=str(error))
                await asyncio.sleep(max(self._timing.retry_s * (1 + 0.2 * self._draw()), retry_after_s(error)))
                continue
            if self._begin(sent_s):
                return

    def _begin(self, sent_s: float) -> bool:
        self._until_s = term_end_s(sent_s, self._timing)
        if not self.is_leader():
            return False
        self._log.info("elected")
        self._renewing = asyncio.create_task(self._keep(), name=f"lease {self._namespace}/{self._name}")
        return True

    async def _keep(self) -> None:
        try:
            await self._renew_until_lost()
        except Exception as error:  # whatever it is, nobody renews any more, and that must be known
            self._log.error("renewal failed unexpectedly", error=repr(error))
        self._lose()

    async def _renew_until_lost(self) -> None:
        until_s = self._until_s or 0.0
        while (left_s := until_s - self._local()) > 0:
            await asyncio.sleep(min(self._timing.retry_s, left_s))
            left_s = until_s - self._local()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(left_s, 0.0)):
                    sent_s = self._local()
                    if await self._renew():
                        until_s = term_end_s(sent_s, self._timing)
                        self._until_s = until_s
                    elif self.holder != self.identity:
                        return

    async def _renew(self) -> bool:
        try:
            await self._write(self.identity)
            return True
        except SairError as error:
            self._log.warning("lease not renewed", error=str(error))
        # Our write may have gone through without an answer, or somebody touched the Lease's metadata: only reading tells.
        with contextlib.suppress(SairError):
            await self._read()
        return False

    def _lose(self) -> None:
        self._until_s = None
        self.lost.set()
        self._log.warning("leadership lost", holder=self.holder)
        if self._on_lost is not None:
            self._on_lost()

    async def _release(self) -> None:
        try:
            async with asyncio.timeout(self._timing.renew_deadline_s):
                # Read first: a renewal that was cancelled on the way may have changed the version.
                await self._read()
                if self.holder == self.identity:
                    await self._write("")
                    self._log.info("leadership released")
        except (SairError, TimeoutError) as error:
            self._log.warning("lease not released; it will expire", error=str(error))

    async def _read(self) -> Observation:
        try:
            record: LeaseRecord | None = parse_lease(await self._api.get(LEASES.path(self._namespace, self._name)))
        except NotFound:
            record = None
        self._seen = observe(self._seen, record, self._local())
        return self._seen

    async def _write(self, holder: str) -> None:
        record = self._seen.record if self._seen else None
        body = lease_body(
            self._namespace, self._name, seen=record, holder=holder, timing=self._timing, wall=self._wall()
        )
        if record is None:
            answer: dict[str, Any] = await self._api.create(LEASES.path(self._namespace), body)
        else:
            answer = await self._api.replace(LEASES.path(self._namespace, self._name), body)
        self._seen = observe(self._seen, parse_lease(answer), self._local())


async def lead(make_term: Callable[[], Leadership], work: Callable[[Leadership], Awaitable[T]]) -> T:
    """Do some work only ever as leader: wait for a term, work, and if the term is lost cancel the work and campaign anew.

    Args:
        make_term: Makes a new term to campaign for.
        work: What a leader does; cancelled when the term is lost.

    Returns:
        What the work returns; what it raises comes out. The Lease is released in both cases.
    """
    while True:
        async with make_term() as term:
            working = asyncio.ensure_future(work(term))
            losing = asyncio.create_task(term.lost.wait())
            try:
                await asyncio.wait([working, losing], return_when=asyncio.FIRST_COMPLETED)
                if working.done():
                    return working.result()
            finally:
                for task in (working, losing):
                    task.cancel()
                await asyncio.wait([working, losing])
