"""A reflector: keeps a typed copy of one collection by list and watch, and tells one callback what changes, in order."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sair.errors import ApiUnavailable, SairError, WireError
from sair.kube.backoff import Backoff
from sair.kube.changes import Added, Change, Deleted, Malformed, Modified, Synced
from sair.kube.client import PAGE_SIZE, Api
from sair.kube.errors import Gone, retry_after_s
from sair.kube.fold import Fold, Listing
from sair.kube.resources import Resource
from sair.logs import get_logger

__all__ = ["Added", "Change", "Deleted", "Health", "Malformed", "Modified", "Reflector", "Synced", "WatchTiming"]

T = TypeVar("T")

_BACKOFF = Backoff()


@dataclass(frozen=True, slots=True)
class WatchTiming:
    """How patient a reflector is; all in seconds."""

    watch_s: float = 300.0
    """The server ends a watch after this up to twice this, drawn anew each time, so that reconnections spread."""
    silence_s: float = 150.0
    """No byte for so long and the connection counts as hung. An idle watch of Kubernetes 1.34 gets its first bookmark after
    120 s and then one every 60 s (measured)."""
    stale_s: float = 180.0
    """Without word from the server for so long the copy counts as stale."""
    backoff: Backoff = _BACKOFF
    """Waits after failures in a row."""
    stable_s: float = 5.0
    """A watch that lived this long counts as a success; until then the failures before it are remembered."""
    relist_after: int = 3
    """Watches failing in a row after which the list is read anew instead."""


@dataclass(frozen=True, slots=True)
class Health:
    """How a reflector is doing."""

    synced: bool
    staleness_s: float
    """Seconds since the server was last heard; infinite before the first word."""
    stale: bool
    failures: int
    """Failures in a row."""
    last_error: str | None
    """Of the current run of failures."""
    malformed: int
    """Objects whose latest version could not be parsed."""
    parse_errors: int
    """Versions that could not be parsed, ever."""
    lists: int
    watches: int
    events: int


_TIMING = WatchTiming()


class Reflector(Generic[T]):
    """List and watch of one collection; run it as a task with ``run()``.

    Args:
        api: Client; one connection of it is taken.
        resource: What to reflect.
        parse: Turns a raw object into a typed one (never None) or raises; such an object keeps its last good version.
        on_event: Told every change, one at a time and in order; sync or async. It holds the stream up while it runs; what it raises
            ends ``run()``, because after that its view and the store would differ.
        namespace: None for all namespaces.
        label_selector: Server-side selection by labels.
        field_selector: Server-side selection by fields.
        timing: Patience.
        page_size: Objects per page of a list.
        monotonic: Local time in seconds.
        draw: Uniform random numbers in [0, 1).
        sleep: Waits a number of seconds.
    """

    def __init__(
        self,
        api: Api,
        resource: Resource,
        parse: Callable[[dict[str, Any]], T],
        on_event: Callable[[Change[T]], Awaitable[None] | None] | None = None,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        timing: WatchTiming = _TIMING,
        page_size: int = PAGE_SIZE,
        monotonic: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._path = resource.path(namespace)
        self._on_event = on_event
        self._timing = timing
        self._page_size = page_size
        self._monotonic = monotonic
        self._draw = draw
        self._sleep = sleep
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        self._selectors = {name: value for name, value in selectors.items() if value is not None}
        self._fold: Fold[T] = Fold(parse)
        self._synced = asyncio.Event()
        self._heard_at_s: float | None = None
        self._failures = 0
        self._last_error: str | None = None
        self._lists = self._watches = self._events = 0
        self._log = get_logger("kube").bind(resource=resource.plural)

    @property
    def synced(self) -> bool:
        """Whether the first list has been delivered whole."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Wait until the first list has been delivered whole."""
        await self._synced.wait()

    def snapshot(self) -> Mapping[str, T]:
        """Give every object's last good version by ``namespace/name``; the mapping never changes, so it may be kept."""
        return self._fold.snapshot()

    def get(self, key: str) -> T | None:
        """Give one object's last good version by ``namespace/name``."""
        return self._fold.get(key)

    @property
    def malformed(self) -> Mapping[str, str]:
        """What is wrong with each object whose latest version could not be parsed, by key."""
        return self._fold.malformed

    def staleness_s(self, now: float) -> float:
        """Seconds since the server was last heard (event, bookmark or list); infinite before the first word.

        Args:
            now: Time on the same clock as ``monotonic``.
        """
        return float("inf") if self._heard_at_s is None else max(0.0, now - self._heard_at_s)

    def health(self, now: float) -> Health:
        """Describe how it is doing; ``now`` as in ``staleness_s``."""
        staleness_s = self.staleness_s(now)
        return Health(
            synced=self.synced,
            staleness_s=staleness_s,
            stale=staleness_s > self._timing.stale_s,
            failures=self._failures,
            last_error=self._last_error,
            malformed=len(self._fold.malformed),
            parse_errors=self._fold.parse_errors,
            lists=self._lists,
            watches=self._watches,
            events=self._events,
        )

    async def run(self) -> None:
        """Reflect until cancelled. The API server's failures are waited out; only what ``on_event`` raises comes out."""
        while True:
            try:
                if self._fold.resource_version is None:
                    await self._list()
                await self._watch()
            except _CallbackFailed as failure:
                raise failure.error from None
            except SairError as error:
                await self._recover(error)

    async def _list(self) -> None:
        self._lists += 1
        try:
            listing, version = await self._collect(self._page_size)
        except Gone:
            # The snapshot expired between two pages: a page of everything cannot.
            listing, version = await self._collect(0)
        await self._deliver(self._fold.replace(listing, version))
        self._synced.set()

    async def _collect(self, page_size: int) -> tuple[Listing[T], str]:
        listing: Listing[T] = Listing()
        version = ""
        async with contextlib.aclosing(self._api.pages(self._path, self._selectors, page_size=page_size)) as pages:
            async for page in pages:
                self._heard_at_s = self._monotonic()
                self._fold.collect(listing, page.items or ())
                version = page.metadata.resource_version
        if not version:
            raise WireError(f"list of {self._path}", version, "metadata.resourceVersion")
        return listing, version

    async def _watch(self) -> None:
        self._watches += 1
        server_timeout_s = self._timing.watch_s * (1 + self._draw())
        params = {
            **self._selectors,
            "resourceVersion": self._fold.resource_version or "",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(server_timeout_s))),
        }
        began_s = self._monotonic()
        try:
            await self._follow(params, began_s)
        except SairError:
            if self._monotonic() - began_s >= self._timing.stable_s:
                # What ended had been well before: its end is the first failure, not one more of those before it.
                self._succeeded()
            raise
        if self._monotonic() - began_s < min(self._timing.stable_s, server_timeout_s / 2):
            # A server or proxy that hangs up at once: without a wait this would be a busy loop.
            raise ApiUnavailable(f"watch of {self._path}: ended at once")
        self._succeeded()

    async def _follow(self, params: Mapping[str, str], began_s: float) -> None:
        async with contextlib.aclosing(self._api.watch(self._path, params, silence_s=self._timing.silence_s)) as events:
            async for event in events:
                self._heard_at_s = self._monotonic()
                self._events += 1
                changes = self._fold.apply(event)
                if self._heard_at_s - began_s >= self._timing.stable_s:
                    self._succeeded()
                await self._deliver(changes)

    async def _recover(self, error: SairError) -> None:
        self._failures += 1
        self._last_error = str(error)
        if isinstance(error, Gone | WireError) or self._failures % self._timing.relist_after == 0:
            self._fold.forget_version()
        first_gone = isinstance(error, Gone) and self._failures == 1
        wait_s = (
            0.0 if first_gone else max(self._timing.backoff.delay_s(self._failures, self._draw()), retry_after_s(error))
        )
        self._log.warning("watch interrupted", error=str(error), failures=self._failures, wait_s=round(wait_s, 3))
        await self._sleep(wait_s)

    def _succeeded(self) -> None:
        self._failures, self._last_error = 0, None

    async def _deliver(self, changes: list[Change[T]]) -> None:
        for change in changes:
            if isinstance(change, Malformed):
                self._log.warning("object kept at its last good version", key=change.key, error=change.error)
            if self._on_event is None:
                continue
            try:
                outcome = self._on_event(change)
                if inspect.isawaitable(outcome):
                    await outcome
            except Exception as error:
                raise _CallbackFailed(error) from error


class _CallbackFailed(Exception):
    """Carries what the callback raised past the handling of the API server's errors."""

    def __init__(self, error: Exception) -> None:
        self.error = error
