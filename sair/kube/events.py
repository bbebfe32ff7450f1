"""Reporting Events (events.k8s.io/v1), which ``kubectl describe`` shows, without ever making the caller wait."""

from __future__ import annotations

import asyncio
import datetime as dt
import secrets
from collections import Counter, deque
from collections.abc import Callable
from typing import Literal

from sair.errors import NotFound, SairError, TemporaryError
from sair.kube.backoff import Backoff
from sair.kube.client import Api, PatchKind
from sair.kube.errors import AlreadyExists, retry_after_s
from sair.kube.occurrences import (
    Aggregator,
    EventRate,
    Occurrence,
    Prolong,
    Reference,
    Severity,
    Write,
    event_body,
    series_body,
)
from sair.kube.resources import EVENTS
from sair.logs import get_logger

__all__ = ["EventRate", "Recorder", "Reference", "Severity"]

DropReason = Literal["queue full", "refused", "unavailable"]

_RATE = EventRate()
_BACKOFF = Backoff()
_ATTEMPTS = 3
_TICK_S = 1.0


class Recorder:
    """Takes occurrences at any time and writes them from its own task, ``run()``.

    Args:
        api: Client.
        component: Who reports, as ``sair.dev/<component>``.
        instance: Which process of it, usually the pod's name.
        rate: How much is written per object and reason.
        queue_size: Writes that may wait; what comes beyond is dropped and counted.
        wall: UTC time.
        token: Makes the random part of names.
    """

    def __init__(
        self,
        api: Api,
        component: str,
        instance: str,
        *,
        rate: EventRate = _RATE,
        queue_size: int = 1000,
        backoff: Backoff = _BACKOFF,
        wall: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        token: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._api = api
        self._controller = f"sair.dev/{component}"
        self._instance = instance
        self._aggregator = Aggregator(rate)
        self._queue: deque[Write] = deque()
        self._queue_size = queue_size
        self._backoff = backoff
        self._wall = wall
        self._token = token
        self._work = asyncio.Event()
        self.written = 0
        """Events created and series prolonged."""
        self.dropped: Counter[DropReason] = Counter()
        """Writes that never reached the API server."""
        self._log = get_logger("kube").bind(recorder=component)

    def record(
        self,
        regarding: Reference,
        reason: str,
        note: str,
        *,
        action: str,
        severity: Severity = "Normal",
    ) -> None:
        """Report that something happened; returns at once and raises nothing.

        Args:
            regarding: The object it happened to.
            reason: Why, as a CamelCase word, such as ``GpuRateRefused``.
            note: The sentence for people; cut at 1024 bytes. The same again makes a series longer; another one is an Event of its own,
                as often as the rate allows.
            action: What was done, as a CamelCase word, such as ``Granting``.
            severity: ``Normal`` or ``Warning``.
        """
        name = f"{regarding.name[:200]}.{self._token()}"
        self._enqueue(
            self._aggregator.happened(Occurrence(regarding, reason, note, action, severity), self._wall(), name)
        )

    async def run(self) -> None:
        """Write until cancelled; then tries once more, briefly, to write what is left."""
        try:
            while True:
                await self._drain()
                self._work.clear()
                try:
                    async with asyncio.timeout(_TICK_S):
                        await self._work.wait()
                except TimeoutError:
                    self._enqueue(self._aggregator.due(self._wall()))
        except asyncio.CancelledError:
            await self._finish()
            raise

    async def _finish(self) -> None:
        self._enqueue(self._aggregator.flush())
        try:
            async with asyncio.timeout(_TICK_S):
                while self._queue:
                    await self._write(self._queue[0])
                    self._queue.popleft()
        except (SairError, TimeoutError):
            self.dropped["unavailable"] += len(self._queue)
            self._queue.clear()

    async def _drain(self) -> None:
        while self._queue:
            write = self._queue[0]
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    await self._write(write)
                    self.written += 1
                except TemporaryError as error:
                    if attempt == _ATTEMPTS:
                        self._drop(write, "unavailable", error)
                        break
                    await asyncio.sleep(max(self._backoff.delay_s(attempt, 0.5), retry_after_s(error)))
                    continue
                except SairError as error:
                    self._drop(write, "refused", error)
                break
            self._queue.popleft()

    async def _write(self, write: Write) -> None:
        namespace = write.occurrence.regarding.event_namespace
        if isinstance(write, Prolong):
            try:
                await self._api.patch(EVENTS.path(namespace, write.name), series_body(write), PatchKind.MERGE)
                return
            except NotFound:
                pass  # expired or never written: say it all
        body = event_body(write, controller=self._controller, instance=self._instance)
        try:
            await self._api.create(EVENTS.path(namespace), body)
        except AlreadyExists:
            return  # an earlier attempt got through without an answer

    def _enqueue(self, writes: list[Write]) -> None:
        for write in writes:
            if len(self._queue) >= self._queue_size:
                self.dropped["queue full"] += 1
            else:
                self._queue.append(write)
        if writes:
            self._work.set()

    def _drop(self, write: Write, why: DropReason, error: SairError) -> None:
        self.dropped[why] += 1
        occurrence = write.occurrence
        self._log.warning(
            "event dropped", reason=occurrence.reason, object=occurrence.regarding.name, why=why, error=str(error)
        )
