"""What the pods of one stage said over the last minutes, and what that means for a window. Counters may restart at any time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from controller.observe.exposition import Scrape, Services
from controller.observe.histogram import Histogram, add, increase, scv
from controller.state import BatchTimes

__all__ = ["KEPT_S", "PodSeries", "StageNow", "StageWindow", "now_of", "peak_of", "window_of"]

KEPT_S = 120.0
"""How long scrapes are kept, seconds."""


class PodSeries:
    """Scrapes of one pod, oldest first."""

    def __init__(self) -> None:
        self._scrapes: deque[Scrape] = deque()

    def append(self, scrape: Scrape) -> None:
        """Take a scrape in; one that is not newer than the last is ignored."""
        if self._scrapes and scrape.time_s <= self._scrapes[-1].time_s:
            return
        self._scrapes.append(scrape)
        while self._scrapes[0].time_s < scrape.time_s - KEPT_S:
            self._scrapes.popleft()

    @property
    def last(self) -> Scrape | None:
        """The newest scrape."""
        return self._scrapes[-1] if self._scrapes else None

    def between(self, since_s: float, until_s: float) -> list[Scrape]:
        """Scrapes of a stretch, with the last one before it as the base to count from."""
        inside = [each for each in self._scrapes if since_s < each.time_s <= until_s]
        base = [each for each in self._scrapes if each.time_s <= since_s]
        return [*base[-1:], *inside]


@dataclass(frozen=True, slots=True)
class StageWindow:
    """One stage over a window, all its pods together."""

    seconds: float
    """Longest stretch that any pod's scrapes cover."""
    arrivals_per_s: float
    departures_per_s: float
    queue: float
    queue_slope: float
    latency: Histogram
    pipeline: Histogram
    service_s: float | None
    cpu_cores: float | None
    """Cores used, over all pods; None if no pod says."""
    oldest_s: float
    """Time of the newest scrape of the pod that was silent longest."""
    mean_batch: float | None = None
    """Mean number of requests served together; None if no pod says."""
    batches: tuple[BatchTimes, ...] = ()
    """Services whose batch size is told."""


@dataclass(frozen=True, slots=True)
class StageNow:
    """One stage right now, all its pods together: what the reflex looks at."""

    arrivals_per_s: float
    queue: float
    oldest_s: float
    """Time of the newest scrape of the pod that was silent longest."""


def now_of(pods: Mapping[str, PodSeries], now: float, seconds: float) -> StageNow | None:
    """Queue and arrivals as ``window_of`` gives them, without the work on the histograms.

    Returns:
        None if no pod has two scrapes to compare.
    """
    arrivals = queue = 0.0
    compared = False
    oldest = now
    for series in pods.values():
        scrapes = series.between(now - seconds, now)
        if not scrapes:
            continue
        oldest = min(oldest, scrapes[-1].time_s)
        queue += scrapes[-1].queue
        if len(scrapes) > 1:
            compared = True
            arrivals += _grown(s.arrivals for s in scrapes) / (scrapes[-1].time_s - scrapes[0].time_s)
    return StageNow(arrivals, queue, oldest) if compared else None


def window_of(pods: Mapping[str, PodSeries], now: float, seconds: float) -> StageWindow | None:
    """Fold all pods' scrapes of the last ``seconds``.

    Returns:
        None if no pod has two scrapes to compare.
    """
    arrivals = departures = queue = queue_before = 0.0
    latency, pipeline = Histogram(), Histogram()
    service_sum = service_count = batch_sum = batch_count = cpu = 0.0
    by_size: dict[int, Services] = {}
    has_cpu = False
    covered = 0.0
    oldest = now
    for series in pods.values():
        scrapes = series.between(now - seconds, now)
        if not scrapes:
            continue
        oldest = min(oldest, scrapes[-1].time_s)
        queue += scrapes[-1].queue
        queue_before += scrapes[0].queue
        if len(scrapes) < 2:
            continue
        span = scrapes[-1].time_s - scrapes[0].time_s
        covered = max(covered, span)
        arrivals += _grown(s.arrivals for s in scrapes) / span
        for before, after in pairwise(scrapes):
            done = increase(before.latency, after.latency)
            departures += done.total / span
            latency = add(latency, done)
            pipeline = add(pipeline, increase(before.pipeline, after.pipeline))
            _add_services(by_size, before.by_batch, after.by_batch)
        service_sum += _grown(s.service_sum_s for s in scrapes if s.service_sum_s is not None)
        service_count += _grown(s.service_count for s in scrapes if s.service_count is not None)
        batch_sum += _grown(s.batch_sum for s in scrapes if s.batch_sum is not None)
        batch_count += _grown(s.batch_count for s in scrapes if s.batch_count is not None)
        used = [s.cpu_s for s in scrapes if s.cpu_s is not None]
        if len(used) > 1:
            has_cpu = True
            cpu += _grown(used) / span
    if covered <= 0:
        return None
    told = [each for _, each in sorted(by_size.items()) if each.count > 0]
    service_sum += sum(each.sum_s for each in told)
    requests = sum(each.size * each.count for each in told)
    service_count += requests
    if not batch_count > 0:
        batch_sum, batch_count = requests, sum(each.count for each in told)
    return StageWindow(
        seconds=covered,
        arrivals_per_s=arrivals,
        departures_per_s=departures,
        queue=queue,
        queue_slope=(queue - queue_before) / covered,
        latency=latency,
        pipeline=pipeline,
        service_s=service_sum / service_count if service_count > 0 else None,
        cpu_cores=cpu if has_cpu else None,
        oldest_s=oldest,
        mean_batch=batch_sum / batch_count if batch_count > 0 else None,
        batches=tuple(BatchTimes(each.size, each.count, each.sum_s / each.count, scv(each.times)) for each in told),
    )


def _add_services(found: dict[int, Services], before: Iterable[Services], after: Iterable[Services]) -> None:
    """Add what was served between two scrapes of one pod to ``found``, by batch size."""
    old = {each.size: each for each in before}
    for now in after:
        base, known = old.get(now.size), found.get(now.size, Services(now.size, 0.0, 0.0))
        if base is not None and (now.count < base.count or now.sum_s < base.sum_s):
            base = None  # a restart: all is new
        found[now.size] = Services(
            now.size,
            known.sum_s + now.sum_s - (base.sum_s if base else 0.0),
            known.count + now.count - (base.count if base else 0.0),
            add(known.times, increase(base.times, now.times) if base else now.times),
        )


def peak_of(pods: Mapping[str, PodSeries], now: float, seconds: float, step_s: float = 5.0) -> float:
    """Highest arrival rate over ``step_s``, over all pods together, within the last ``seconds``; 0 if nothing is known.

    Between two scrapes a pod's requests count as spread evenly.
    """
    steps = max(1, int(seconds / step_s))
    arrived = [0.0] * steps
    for series in pods.values():
        for a, b in pairwise(series.between(now - steps * step_s, now)):
            rate = _grown((a.arrivals, b.arrivals)) / (b.time_s - a.time_s)
            for place in range(steps):
                begin = now - (place + 1) * step_s
                arrived[place] += rate * max(0.0, min(b.time_s, begin + step_s) - max(a.time_s, begin))
    return max(arrived) / step_s


def _grown(values: Iterable[float]) -> float:
    """How much a counter grew over its values; where it fell it was reset and began anew at 0."""
    total, before = 0.0, None
    for value in values:
        if before is not None:
            total += value - before if value >= before else value
        before = value
    return total
