"""How much a pod's counters grew from scrape to scrape, series by series before anything is summed, as Prometheus' rate() does it. Pure.

A series that fell began anew at 0, so that all it says is new. One that is missing grew by nothing; when it is back it is compared with
what it said last. One that was never seen counts from its first sample, because nobody knows when it counted what it says (an exporter
that finds its server again shows the requests of weeks) - but in full where the container has run no longer than scrapes are remembered:
whatever such a pod says happened just now, and a client library that shows a label set from its first use on loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from controller.observe.exposition import MAX_SAMPLES, Labels, Observed, Scrape, size_of
from controller.observe.histogram import Histogram, add, increase

__all__ = ["KEPT_S", "Counters", "Growth", "both", "joined"]

T = TypeVar("T")

KEPT_S: Final = 120.0
"""How long scrapes are kept, and series that are missing are remembered, seconds."""


@dataclass(frozen=True, slots=True)
class Growth:
    """What a pod did between a scrape and the one before, over all its series; nothing at the first."""

    time_s: float
    queue: float
    """Requests waiting at the end."""
    arrivals: float = 0.0
    latency: Histogram = field(default_factory=Histogram)
    pipeline: Histogram = field(default_factory=Histogram)
    services: Mapping[int | None, Observed] = field(default_factory=dict)
    """By batch size; under None those whose size is not told."""
    batches: Observed = field(default_factory=lambda: Observed(0.0, 0.0))
    cpu_s: float | None = None
    """None if the pod does not say."""


class Counters:
    """The counters of one pod."""

    def __init__(self) -> None:
        self._begun = False
        self._arrivals = _Kept(_count_grown)
        self._latency = _Kept(increase)
        self._pipeline = _Kept(increase)
        self._services = _Kept(_observed_grown)
        self._batches = _Kept(_observed_grown)
        self._cpu = _Kept(_count_grown)

    def grown(self, scrape: Scrape, began_s: float | None) -> Growth:
        """Take a scrape in.

        Args:
            scrape: Later than all before it.
            began_s: When the pod's container began, Unix seconds; None if nobody knows.
        """
        now = scrape.time_s
        whole = self._begun and began_s is not None and 0.0 <= now - began_s <= KEPT_S
        self._begun = True
        services: dict[int | None, Observed] = {}
        for labels, seen in self._services.grown(scrape.services, now, whole=whole).items():
            size = size_of(labels)
            services[size] = both(services[size], seen) if size in services else seen
        batches = Observed(0.0, 0.0)
        for seen in self._batches.grown(scrape.batches, now, whole=whole).values():
            batches = both(batches, seen)
        used = self._cpu.grown(scrape.cpu_s, now, whole=whole)
        return Growth(
            time_s=now,
            queue=scrape.queue,
            arrivals=sum(self._arrivals.grown(scrape.arrivals, now, whole=whole).values()),
            latency=_sum_of(self._latency.grown(scrape.latency, now, whole=whole)),
            pipeline=_sum_of(self._pipeline.grown(scrape.pipeline, now, whole=whole)),
            services=services,
            batches=batches,
            cpu_s=sum(used.values()) if used else None,
        )


class _Kept(Generic[T]):
    """What the series of one metric said last."""

    __slots__ = ("_grown", "_last")

    def __init__(self, grown: Callable[[T, T], T]) -> None:
        self._grown = grown
        self._last: dict[Labels, tuple[float, T]] = {}

    def grown(self, said: Mapping[Labels, T], now: float, *, whole: bool) -> dict[Labels, T]:
        """Growth of those that can be compared; of the others ``whole`` says that all they say is new."""
        growth: dict[Labels, T] = {}
        for labels, value in said.items():
            known = self._last.get(labels)
            if known is not None:
                growth[labels] = self._grown(known[1], value)
            elif whole:
                growth[labels] = value
            self._last[labels] = now, value
        if len(self._last) > len(said):
            # A pod whose label sets are others at every scrape must not fill the memory.
            oldest = now if len(self._last) > 2 * MAX_SAMPLES else now - KEPT_S
            self._last = {labels: seen for labels, seen in self._last.items() if seen[0] >= oldest}
        return growth


def _count_grown(before: float, after: float) -> float:
    return after - before if after >= before else after


def _observed_grown(before: Observed, after: Observed) -> Observed:
    if after.count < before.count or after.sum < before.sum:
        return after
    return Observed(after.sum - before.sum, after.count - before.count, increase(before.buckets, after.buckets))


def both(a: Observed, b: Observed) -> Observed:
    """Sum of what two series observed."""
    return Observed(a.sum + b.sum, a.count + b.count, add(a.buckets, b.buckets))


def joined(earlier: Growth, later: Growth) -> Growth:
    """What a pod did over two stretches that follow each other."""
    services = dict(earlier.services)
    for size, seen in later.services.items():
        services[size] = both(services[size], seen) if size in services else seen
    told = [each.cpu_s for each in (earlier, later) if each.cpu_s is not None]
    return Growth(
        time_s=later.time_s,
        queue=later.queue,
        arrivals=earlier.arrivals + later.arrivals,
        latency=add(earlier.latency, later.latency),
        pipeline=add(earlier.pipeline, later.pipeline),
        services=services,
        batches=both(earlier.batches, later.batches),
        cpu_s=sum(told) if told else None,
    )


def _sum_of(series: Mapping[Labels, Histogram]) -> Histogram:
    total = Histogram()
    for each in series.values():
        total = add(total, each)
    return total
