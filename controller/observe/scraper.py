"""Scrapes the pods of all stages: bounded in time, size and number at once. A pod that does not answer keeps its old numbers, which age."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import aiohttp

from controller.observe.exposition import parse_exposition
from controller.observe.series import PodSeries
from sair.annotations import MetricsEndpoint
from sair.errors import MetricError, MetricsUnavailable
from sair.logs import get_logger

__all__ = ["Scraper", "Target"]

_log = get_logger("scraper")

_MAX_BYTES = 4 * 2**20
_TIMEOUT_S = 1.5
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Target:
    """A pod to scrape."""

    key: str
    """``namespace/pod/uid``."""
    host: str
    endpoint: MetricsEndpoint


class Scraper:
    """Keeps a PodSeries per target.

    Args:
        session: HTTP client; stays open.
        now: The world's time, Unix seconds.
    """

    def __init__(self, session: aiohttp.ClientSession, now: Callable[[], float]) -> None:
        self._session = session
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
                text = await self._fetch(target)
            # The time of the answer, not of the question: counters are read when the pod writes them.
            scrape = parse_exposition(text, target.endpoint, self._now())
        except (MetricsUnavailable, MetricError) as error:
            self.failures += 1
            known = self.problems.get(target.key)
            self.problems[target.key] = str(error)
            if known is None:  # once, not every two seconds
                _log.warning("a pod's metrics cannot be had", pod=target.key, problem=str(error))
            return
        if self.problems.pop(target.key, None) is not None:
            _log.info("a pod's metrics are back", pod=target.key)
        self.series.setdefault(target.key, PodSeries()).append(scrape)

    async def _fetch(self, target: Target) -> str:
        host = f"[{target.host}]" if ":" in target.host else target.host
        url = f"http://{host}:{target.endpoint.port}{target.endpoint.path}"
        try:
            async with asyncio.timeout(_TIMEOUT_S), self._session.get(url, allow_redirects=False) as reply:
                if reply.status != 200:
                    raise MetricsUnavailable(f"{url} answered {reply.status}")
                body = await reply.content.read(_MAX_BYTES + 1)
                while len(body) <= _MAX_BYTES and (more := await reply.content.read(_MAX_BYTES + 1 - len(body))):
                    body += more
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise MetricsUnavailable(f"{url}: {type(error).__name__}") from error
        if len(body) > _MAX_BYTES:
            raise MetricsUnavailable(f"{url} answered more than {_MAX_BYTES} bytes")
        return body.decode("utf-8", errors="replace")
