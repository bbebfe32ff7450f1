"""What the pods of one stage did over the last minutes, and what that means for a window."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final

from controller.observe.exposition import Observed, Scrape
from controller.observe.growth import KEPT_S, Counters, Growth, both, joined
from controller.observe.histogram import Histogram, add, scv
from controller.state import BatchTimes

__all__ = ["KEPT_S", "PodSeries", "StageNow", "StageWindow", "now_of", "peak_of", "window_of"]

_NEARLY: Final = 0.8
"""Scrapes a little closer to each other than they were wanted count as that far apart."""

_FINE_S: Final = 4.0
_COARSE_S: Final = 1.0


class PodSeries:
    """What one pod did from scrape to scrape, oldest first."""

    def __init__(self) -> None:
        self._counters = Counters()
        self._fine: deque[Growth] = deque()
        """The last seconds."""
        self._coarse: deque[Growth] = deque()
        """What is older, so that scrapes twice a second take no more memory than one would."""

    def append(self, scrape: Scrape, began_s: float | None = None) -> None:
        """Take a scrape in; one that is not newer than the last is ignored.

        Args:
            scrape: The scrape.
            began_s: When the pod's container began, Unix seconds; None if nobody knows.
        """
        now = scrape.time_s
        if self._fine and now <= self._fine[-1].time_s:
            return
        self._fine.append(self._counters.grown(scrape, began_s))
        while self._fine[0].time_s <= now - _FINE_S:
            self._lay_by(self._fine.popleft())
        while self._coarse and self._coarse[0].time_s < now - KEPT_S:
            self._coarse.popleft()

    def _lay_by(self, growth: Growth) -> None:
        known = self._coarse
        # The growth of the first one of all does not count, so that nothing is added to it.
        if len(known) > 1 and growth.time_s - known[-2].time_s <= _COARSE_S:
            known[-1] = joined(known[-1], growth)
        else:
            known.append(growth)

    @property
    def last(self) -> Growth | None:
        """Up to the newest scrape."""
        return self._fine[-1] if self._fine else None

    def between(self, since_s: float, until_s: float) -> list[Growth]:
        """Growth up to the scrapes of a stretch, after the last one before it, whose own growth does not count."""
        found = []
        for each in chain(reversed(self._fine), reversed(self._coarse)):
            if each.time_s <= until_s:
                found.append(each)
            if each.time_s <= since_s:
                break
        return found[::-1]


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
    """Queue and arrivals, without the work on the histograms.

    Args:
        pods: Those of the stage.
        now: Time, Unix seconds.
        seconds: Over how long its arrivals are counted; of a pod that is scraped less often than that, since the scrape before.

    Returns:
        None if no pod has two scrapes to compare.
    """
    arrivals = queue = 0.0
    compared = False
    oldest = now
    for series in pods.values():
        last = series.last
        if last is None:
            continue
        oldest = min(oldest, last.time_s)
        queue += last.queue
        grown = series.between(last.time_s - _NEARLY * seconds, last.time_s)
        if len(grown) > 1:
            compared = True
            arrivals += sum(each.arrivals for each in grown[1:]) / (grown[-1].time_s - grown[0].time_s)
    return StageNow(arrivals, queue, oldest) if compared else None


def window_of(pods: Mapping[str, PodSeries], now: float, seconds: float) -> StageWindow | None:
    """Fold all pods' scrapes of the last ``seconds``.

    Returns:
        None if no pod has two scrapes to compare.
    """
    arrivals = departures = queue = queue_before = 0.0
    latency, pipeline = Histogram(), Histogram()
    batches = Observed(0.0, 0.0)
    by_size: dict[int | None, Observed] = {}
    cpu: float | None = None
    covered = 0.0
    oldest = now
    for series in pods.values():
        grown = series.between(now - seconds, now)
        if not grown:
            continue
        oldest = min(oldest, grown[-1].time_s)
        queue += grown[-1].queue
        queue_before += grown[0].queue
        if len(grown) < 2:
            continue
        span = grown[-1].time_s - grown[0].time_s
        covered = max(covered, span)
        for each in grown[1:]:
            arrivals += each.arrivals / span
            departures += each.latency.total / span
            latency = add(latency, each.latency)
            pipeline = add(pipeline, each.pipeline)
            batches = both(batches, each.batches)
            for size, seen in each.services.items():
                by_size[size] = both(by_size[size], seen) if size in by_size else seen
            if each.cpu_s is not None:
                cpu = (cpu or 0.0) + each.cpu_s / span
    if covered <= 0:
        return None
    untold = by_size.pop(None, Observed(0.0, 0.0))
    told = [(size, by_size[size]) for size in sorted(filter(None, by_size)) if by_size[size].count > 0]
    requests = sum(size * seen.count for size, seen in told)
    service_sum = untold.sum + sum(seen.sum for _, seen in told)
    service_count = untold.count + requests
    if not batches.count > 0:
        batches = Observed(requests, sum(seen.count for _, seen in told))
    return StageWindow(
        seconds=covered,
        arrivals_per_s=arrivals,
        departures_per_s=departures,
        queue=queue,
        queue_slope=(queue - queue_before) / covered,
        latency=latency,
        pipeline=pipeline,
        service_s=service_sum / service_count if service_count > 0 else None,
        cpu_cores=cpu,
        oldest_s=oldest,
        mean_batch=batches.sum / batches.count if batches.count > 0 else None,
        batches=tuple(BatchTimes(size, seen.count, seen.sum / seen.count, scv(seen.buckets)) for size, seen in told),
    )


def peak_of(pods: Mapping[str, PodSeries], now: float, seconds: float, step_s: float = 5.0) -> float:
    """Highest arrival rate over ``step_s``, over all pods together, within the last ``seconds``; 0 if nothing is known.

    Between two scrapes a pod's requests count as spread evenly.
    """
    steps = max(1, int(seconds / step_s))
    arrived = [0.0] * steps
    for series in pods.values():
        for a, b in pairwise(series.between(now - steps * step_s, now)):
            rate = b.arrivals / (b.time_s - a.time_s)
            for place in range(steps):
                begin = now - (place + 1) * step_s
                arrived[place] += rate * max(0.0, min(b.time_s, begin + step_s) - max(a.time_s, begin))
    return max(arrived) / step_s
