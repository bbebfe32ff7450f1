"""Scrapes the pods of all stages: bounded in time, size and number at once. A pod that does not answer keeps its old numbers, which age."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from controller.observe.exposition import parse_exposition
from controller.observe.fetching import Fetcher
from controller.observe.series import PodSeries
from controller.observe.source import Target
from sair.errors import MetricError, MetricsUnavailable
from sair.logs import get_logger

__all__ = ["Scraper"]

_log = get_logger("scraper")

_AT_ONCE = 64


class Scraper:
    """Keeps a PodSeries per target.

    Args:
        fetcher: Asks; stays open.
        now: The world's time, Unix seconds.
    """

    def __init__(self, fetcher: Fetcher, now: Callable[[], float]) -> None:
        self._fetcher = fetcher
        self._now = now
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self.series: dict[str, PodSeries] = {}
        self.failures = 0
        """Scrapes that failed, ever."""
        self.problems: dict[str, str] = {}
        """What was wrong with the last scrape of a pod, for those with which something was."""

    async def scrape(self, targets: Iterable[Target]) -> None:
        """Scrape all targets once; never raises, failures are counted and logged."""
        await asyncio.gather(*(self._one(target) for target in targets))

    def keep_only(self, keys: Iterable[str]) -> None:
        """Forget pods that are gone."""
        kept = set(keys)
        for key in self.series.keys() - kept:
            del self.series[key]
        for key in self.problems.keys() - kept:
            del self.problems[key]

    async def _one(self, target: Target) -> None:
        try:
            async with self._slots:
                body = await self._fetcher.get(target.host, target.endpoint.port, target.endpoint.path)
            # The time of the answer, not of the question: counters are read when the pod writes them.
            scrape = parse_exposition(body.decode("utf-8", errors="replace"), target.endpoint, self._now())
        except (MetricsUnavailable, MetricError) as error:
            self.failures += 1
            known = self.problems.get(target.key)
            self.problems[target.key] = str(error)
            if known is None:  # once, not every two seconds
                _log.warning("a pod's metrics cannot be had", pod=target.key, problem=str(error))
            return
        if self.problems.pop(target.key, None) is not None:
            _log.info("a pod's metrics are back", pod=target.key)
        self.series.setdefault(target.key, PodSeries()).append(scrape, target.began_s)
