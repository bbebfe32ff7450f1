"""Scrapes the pods of all stages: bounded in time, size and number at once. A pod that does not answer keeps its old numbers, which age.

Nor does it take anything from the others, however many of its kind there are. A slot is held for half a second at most. Pods that are
new, pods that answered quickly, and pods that were slow or failed last have slots of their own, and nobody waits for the last: they are
asked beside, those that failed less and less often, but often enough that one that is well again is soon seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from controller.observe.exposition import parse_exposition
from controller.observe.fetching import Fetcher
from controller.observe.series import PodSeries
from controller.observe.source import Target
from sair.errors import MetricError, MetricsUnavailable
from sair.logs import get_logger

__all__ = ["Scraper"]

_log = get_logger("scraper")

_AT_ONCE: Final = 64
"""Slots of each kind."""
_SLOW_S: Final = 0.5
"""A pod that takes longer is slow. Honest ones answer within hundredths."""
_PAUSE_S: Final = 1.0
"""After the first failure; it doubles with each further one."""
_PAUSE_MOST_S: Final = 8.0


class _Slow(NamedTuple):
    """A pod nobody waits for."""

    failures: int
    """In a row; 0 of one that answered, but slowly."""
    next_s: float
    """When it may be asked again, the world's time."""


class Scraper:
    """Keeps a PodSeries per target.

    Args:
        fetcher: Asks; stays open.
        now: The world's time, Unix seconds.
    """

    def __init__(self, fetcher: Fetcher, now: Callable[[], float]) -> None:
        self._fetcher = fetcher
        self._now = now
        self._quick_slots = asyncio.Semaphore(_AT_ONCE)
        self._new_slots = asyncio.Semaphore(_AT_ONCE)
        self._slow_slots = asyncio.Semaphore(_AT_ONCE)
        self._slow: dict[str, _Slow] = {}
        self._beside: dict[str, asyncio.Task[None]] = {}
        self.series: dict[str, PodSeries] = {}
        self.failures = 0
        """Scrapes that failed, ever."""
        self.problems: dict[str, str] = {}
        """What was wrong with the last scrape of a pod, for those with which something was."""

    async def aclose(self) -> None:
        """End what is under way."""
        tasks = list(self._beside.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def scrape(self, targets: Iterable[Target]) -> None:
        """Scrape all targets once; never raises, failures are counted and logged. What slow pods say is there the next time."""
        now, waited_for = self._now(), []
        for target in targets:
            slow = self._slow.get(target.key)
            if slow is None:
                slots = self._quick_slots if target.key in self.series else self._new_slots
                waited_for.append(self._one(target, slots, _SLOW_S))
            elif now >= slow.next_s and target.key not in self._beside:
                self._ask_beside(target)
        await asyncio.gather(*waited_for)

    def keep_only(self, keys: Iterable[str]) -> None:
        """Forget pods that are gone."""
        kept = set(keys)
        for known in (self.series, self.problems, self._slow):
            for key in known.keys() - kept:
                del known[key]

    def _ask_beside(self, target: Target) -> None:
        task = asyncio.create_task(self._one(target, self._slow_slots, None), name="slow pod")
        self._beside[target.key] = task
        task.add_done_callback(lambda _task: self._beside.pop(target.key, None))

    async def _one(self, target: Target, slots: asyncio.Semaphore, held_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        slot = await _Slot.of(slots, held_s)
        began_s = loop.time()
        try:
            body = await self._fetcher.get(target.host, target.endpoint.port, target.endpoint.path)
        except MetricsUnavailable as error:
            failures = self._slow[target.key].failures + 1 if target.key in self._slow else 1
            pause_s = min(_PAUSE_MOST_S, _PAUSE_S * 2.0 ** (failures - 1))
            self._slow[target.key] = _Slow(failures, self._now() + pause_s)
            self._failed(target, error)
            return
        finally:
            slot.free()
        if loop.time() - began_s > _SLOW_S:
            self._slow[target.key] = _Slow(0, self._now())
        else:
            self._slow.pop(target.key, None)
        try:
            # The time of the answer, not of the question: counters are read when the pod writes them.
            scrape = parse_exposition(body.decode("utf-8", errors="replace"), target.endpoint, self._now())
        except MetricError as error:
            self._failed(target, error)
            return
        if self.problems.pop(target.key, None) is not None:
            _log.info("a pod's metrics are back", pod=target.key)
        self.series.setdefault(target.key, PodSeries()).append(scrape, target.began_s)

    def _failed(self, target: Target, error: MetricsUnavailable | MetricError) -> None:
        self.failures += 1
        if target.key not in self.problems:  # once, not every two seconds
            _log.warning("a pod's metrics cannot be had", pod=target.key, problem=str(error))
        self.problems[target.key] = str(error)


class _Slot:
    """One of a number of slots, given back once: when it is not needed any more, or when its time is over."""

    def __init__(self, slots: asyncio.Semaphore, held_s: float | None) -> None:
        self._slots: asyncio.Semaphore | None = slots
        self._alarm = None if held_s is None else asyncio.get_running_loop().call_later(held_s, self.free)

    @classmethod
    async def of(cls, slots: asyncio.Semaphore, held_s: float | None) -> _Slot:
        """Wait for one."""
        await slots.acquire()
        return cls(slots, held_s)

    def free(self) -> None:
        """Give it back."""
        if self._alarm is not None:
            self._alarm.cancel()
        if self._slots is not None:
            self._slots.release()
            self._slots = None
