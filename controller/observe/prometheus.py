"""Reads the pods' metrics from a Prometheus server: raw samples, many pods a query, one question for all who ask at the same time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from controller.observe.answer import by_pod, missing_of, parse_declared, parse_matrix, scrapes_of
from controller.observe.exposition import wanted_of
from controller.observe.promql import one_of, samples_of
from controller.observe.series import KEPT_S, PodSeries
from controller.observe.source import Target
from sair.errors import MetricsUnavailable, SairError
from sair.logs import get_logger

__all__ = ["PrometheusServer", "PrometheusSource"]

_log = get_logger("prometheus")

_MAX_BYTES: Final = 32 * 2**20
_TIMEOUT_S: Final = 5.0
_PODS_A_QUERY: Final = 50
_AT_ONCE: Final = 4
_WANTED_S: Final = 60.0
"""A pod nobody asked for so long is not read along with others any more."""
_UNSEEN_S: Final = 10.0
_DECLARED_S: Final = 60.0
_LATE_S: Final = 3.0
"""Samples become visible some time after the moment they carry."""
_AHEAD_S: Final = 5.0
"""Samples further in the future than this tell of clocks that differ."""


@dataclass(frozen=True, slots=True)
class PrometheusServer:
    """Where the server is, and how it knows pods."""

    url: str
    """Base URL, without /api/v1."""
    namespace_label: str = "namespace"
    pod_label: str = "pod"
    token_file: Path | None = None
    """Bearer token, read anew once a minute, because such tokens change."""


class PrometheusSource:
    """Keeps a PodSeries per pod, as ``Scraper`` does, from what the server scraped.

    Args:
        session: HTTP client; stays open. Its TLS settings count.
        server: The server.
        now: The world's time, Unix seconds.
        refresh_s: The server is asked for a pod at most once in so many seconds, whoever asks.
        unseen_s: The same of a pod of which it has nothing yet.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        server: PrometheusServer,
        now: Callable[[], float],
        *,
        refresh_s: float = 2.0,
        unseen_s: float = _UNSEEN_S,
    ) -> None:
        self._session = session
        self._server = server
        self._now = now
        self._refresh_s = refresh_s
        self._unseen_s = unseen_s
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._wanted: dict[str, tuple[Target, float]] = {}
        self._asked: dict[str, float] = {}
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._declared: dict[str, tuple[bool, float]] = {}
        self._token = ("", -math.inf)
        self._away = False
        self.series: dict[str, PodSeries] = {}
        self.failures = 0
        self.problems: dict[str, str] = {}
        self.queries = 0
        """Requests sent to the server, ever."""

    async def aclose(self) -> None:
        """End what is under way."""
        tasks = set(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def scrape(self, targets: Iterable[Target]) -> None:
        """Bring some pods up to date; never raises. What others are about to need is read in the same queries."""
        now, mine = self._now(), list(targets)
        for target in mine:
            self._wanted[target.key] = target, now
        if any(self._is_due(target.key, now) for target in mine):
            self._wanted = {key: each for key, each in self._wanted.items() if now - each[1] < _WANTED_S}
            due = [target for target, _ in self._wanted.values() if self._is_due(target.key, now)]
            # Those of which nothing is known yet are read from further back.
            for some in (
                [target for target in due if target.key in self.series],
                [target for target in due if target.key not in self.series],
            ):
                for start in range(0, len(some), _PODS_A_QUERY):
                    self._begin(some[start : start + _PODS_A_QUERY], now)
        tasks = {self._under_way[target.key] for target in mine if target.key in self._under_way}
        if tasks:
            # Not gather: one who stops waiting must not end what the others wait for.
            await asyncio.wait(tasks)

    def keep_only(self, keys: Iterable[str]) -> None:
        """Forget pods that are gone."""
        kept = set(keys)
        for known in (self.series, self.problems, self._asked, self._wanted):
            for key in known.keys() - kept:
                del known[key]

    def _is_due(self, key: str, now: float) -> bool:
        if key in self._under_way:
            return False
        pause_s = self._refresh_s if key in self.series else self._unseen_s
        return now - self._asked.get(key, -math.inf) >= pause_s

    def _begin(self, targets: Sequence[Target], now: float) -> None:
        task = asyncio.create_task(self._refresh(targets), name="prometheus")
        for target in targets:
            self._asked[target.key] = now
            self._under_way[target.key] = task

        def ended(_task: asyncio.Task[None]) -> None:
            for target in targets:
                if self._under_way.get(target.key) is task:
                    del self._under_way[target.key]

        task.add_done_callback(ended)

    async def _refresh(self, targets: Sequence[Target]) -> None:
        try:
            async with self._slots:
                await self._read(targets)
        except SairError as error:
            if not self._away:  # once, not for every pod every two seconds
                _log.warning("Prometheus cannot be read", problem=str(error))
            self._away = True
            self.failures += len(targets)
            self.problems.update((target.key, str(error)) for target in targets)
            return
        if self._away:
            _log.info("Prometheus can be read again")
        self._away = False

    async def _read(self, targets: Sequence[Target]) -> None:
        now, server = self._now(), self._server
        known = [self._newest(target.key) for target in targets]
        matchers = (
            one_of("__name__", (name for target in targets for name in wanted_of(target.endpoint))),
            one_of(server.namespace_label, (target.pod[0] for target in targets)),
            one_of(server.pod_label, (target.pod[1] for target in targets)),
        )
        seconds = min(KEPT_S, now - min(known) + _LATE_S)
        answer = parse_matrix(await self._post("query", {"query": samples_of(matchers, seconds)}))
        found = by_pod(answer, server.namespace_label, server.pod_label)
        for target in targets:
            own = found.get(target.pod, [])
            if not own and target.key in self.series:
                continue  # nothing new; what is known ages
            missing = missing_of(own, target.endpoint) if own else []
            # One that had samples before has merely not been scraped since.
            declared = [] if target.key not in self.series else missing
            declared += [name for name in missing if name not in declared and await self._is_declared(name)]
            pod = scrapes_of(own, target.endpoint, declared, self._newest(target.key))
            problem = pod.problem
            for scrape in pod.scrapes:
                if scrape.time_s > now + _AHEAD_S:
                    problem = f"Prometheus has a sample from {scrape.time_s - now:.0f} s ahead of this clock"
                    break
                self.series.setdefault(target.key, PodSeries()).append(scrape, target.began_s)
            self._note(target.key, problem)

    def _newest(self, key: str) -> float:
        last = self.series[key].last if key in self.series else None
        return last.time_s if last is not None else -math.inf

    def _note(self, key: str, problem: str) -> None:
        if not problem:
            if self.problems.pop(key, None) is not None:
                _log.info("a pod's metrics are back", pod=key)
            return
        self.failures += 1
        if key not in self.problems:
            _log.warning("a pod's metrics cannot be had", pod=key, problem=problem)
        self.problems[key] = problem

    async def _is_declared(self, name: str) -> bool:
        """Whether a target declares a metric of which there is no sample; OpenMetrics declares counters without their suffix."""
        known, at = self._declared.get(name, (False, -math.inf))
        if self._now() - at < _DECLARED_S:
            return known
        known = False
        for family in dict.fromkeys((name, name.removesuffix("_total"))):
            known = known or parse_declared(await self._get("metadata", {"metric": family, "limit": "1"}))
        self._declared[name] = known, self._now()
        return known

    async def _post(self, what: str, form: Mapping[str, str]) -> bytes:
        return await self._request("POST", what, data=dict(form))

    async def _get(self, what: str, params: Mapping[str, str]) -> bytes:
        return await self._request("GET", what, params=dict(params))

    async def _request(
        self, method: str, what: str, *, data: dict[str, str] | None = None, params: dict[str, str] | None = None
    ) -> bytes:
        url = f"{self._server.url.rstrip('/')}/api/v1/{what}"
        headers = await self._authorisation()
        self.queries += 1
        try:
            async with (
                asyncio.timeout(_TIMEOUT_S),
                self._session.request(
                    method, url, data=data, params=params, headers=headers, allow_redirects=False
                ) as reply,
            ):
                body = await reply.content.read(_MAX_BYTES + 1)
                while len(body) <= _MAX_BYTES and (more := await reply.content.read(_MAX_BYTES + 1 - len(body))):
                    body += more
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise MetricsUnavailable(f"{url}: {type(error).__name__}") from error
        if len(body) > _MAX_BYTES:
            raise MetricsUnavailable(f"{url} answered more than {_MAX_BYTES} bytes")
        # Of a query that failed the body says why; of anything else nobody knows what it would say.
        if reply.status != 200 and reply.content_type != "application/json":
            raise MetricsUnavailable(f"{url} answered {reply.status}")
        return body

    async def _authorisation(self) -> dict[str, str]:
        path = self._server.token_file
        if path is None:
            return {}
        now = self._now()
        if now - self._token[1] >= _WANTED_S:
            try:
                self._token = (await asyncio.to_thread(path.read_text)).strip(), now
            except (OSError, UnicodeDecodeError) as error:
                raise MetricsUnavailable(f"the token of Prometheus cannot be read: {error}") from error
        if not self._token[0].isascii() or not self._token[0].isprintable():
            raise MetricsUnavailable("the token of Prometheus is none: it holds other characters than a header may")
        return {"Authorization": f"Bearer {self._token[0]}"}
