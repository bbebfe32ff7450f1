"""One scrape of one pod: Prometheus text in, checked numbers out. Metric values are untrusted input."""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from controller.observe.histogram import Histogram, add
from sair.annotations import MetricsEndpoint
from sair.errors import MetricError

__all__ = [
    "BATCH",
    "MAX_SAMPLES",
    "PIPELINE_LATENCY",
    "SERVICE",
    "Said",
    "Scrape",
    "Services",
    "needed_of",
    "parse_exposition",
    "scrape_of",
    "wanted_of",
]

SERVICE: Final = "sair_stage_service_seconds"
"""Optional histogram or summary of the time a replica works on a request, waiting excluded; with the label ``batch``, on so many
requests together, told once for all of them."""

_SIZE: Final = "batch"
_SIZE_MOST: Final = 10_000

BATCH: Final = "sair_stage_batch_size"
"""Optional histogram or summary of how many requests a replica serves together."""

PIPELINE_LATENCY: Final = "sair_pipeline_latency_seconds"
"""Optional histogram of the whole pipeline's latency, exported by its last stage."""

_CPU: Final = "process_cpu_seconds_total"
_MOST: Final = 1e15
"""No honest counter of ours is larger: 10^15 requests are 30 years at a million a second."""
MAX_SAMPLES: Final = 5_000
"""Samples of a stage's own metrics that one pod may export."""

_PLAIN: Final = r'(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="[^"\\\n]*",?)*)\})?[ \t]+([0-9.eE+-]+|NaN|[+-]?Inf)[ \t\r]*$'
"""What follows the name of a sample as nearly all are: without a time, an exemplar or an escaped character."""
_LABEL: Final = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="([^"\\\n]*)"', re.ASCII)


class Said(NamedTuple):
    """One sample of one series."""

    labels: tuple[tuple[str, str], ...]
    """Sorted, without ``le``; what tells the series of one metric apart."""
    le: str | None
    value: float


@dataclass(frozen=True, slots=True)
class Services:
    """The services of one batch size, ever."""

    size: int
    sum_s: float
    count: float
    """Of batches."""
    times: Histogram = field(default_factory=Histogram)
    """Empty where only a summary is exported."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a pod said at one moment."""

    time_s: float
    arrivals: float
    """Requests that reached the pod, ever."""
    queue: float
    """Requests waiting in it."""
    latency: Histogram = field(default_factory=Histogram)
    pipeline: Histogram = field(default_factory=Histogram)
    """Of the whole pipeline; empty where the pod does not export it."""
    service_sum_s: float | None = None
    """Of services whose batch size is not told."""
    service_count: float | None = None
    by_batch: tuple[Services, ...] = ()
    """Services whose batch size is told, by size."""
    cpu_s: float | None = None
    """CPU time used, ever."""
    batch_sum: float | None = None
    """Requests served in batches, ever."""
    batch_count: float | None = None
    """Batches served, ever."""


@functools.lru_cache(maxsize=1024)
def wanted_of(endpoint: MetricsEndpoint) -> tuple[str, ...]:
    """The names of the samples that a scrape is made of."""
    return (
        endpoint.queue,
        endpoint.arrivals,
        f"{endpoint.latency}_bucket",
        _CPU,
        f"{SERVICE}_sum",
        f"{SERVICE}_count",
        f"{SERVICE}_bucket",
        f"{BATCH}_sum",
        f"{BATCH}_count",
        f"{PIPELINE_LATENCY}_bucket",
    )


def needed_of(endpoint: MetricsEndpoint) -> tuple[tuple[str, str], ...]:
    """What a stage cannot do without: the metric's name, and the name of the samples that show it."""
    return (
        (endpoint.queue, endpoint.queue),
        (endpoint.arrivals, endpoint.arrivals),
        (endpoint.latency, f"{endpoint.latency}_bucket"),
    )


@functools.lru_cache(maxsize=1024)
def _samples_of(endpoint: MetricsEndpoint) -> re.Pattern[str]:
    """Name, labels and value of plain samples; the whole line of others, which go to the library's parser."""
    names = "|".join(map(re.escape, dict.fromkeys(wanted_of(endpoint))))
    return re.compile(rf"^(?:({names}){_PLAIN}|((?:{names})(?![a-zA-Z0-9_:]).*)$)", re.MULTILINE | re.ASCII)


def parse_exposition(text: str, endpoint: MetricsEndpoint, time_s: float) -> Scrape:
    """Read what a stage's pod exports. A needed metric may be declared without samples, as labelled ones are before first use.

    Args:
        text: Prometheus' text format.
        endpoint: What the metrics are called.
        time_s: When it was scraped, Unix seconds.

    Raises:
        MetricError: Names the metric; if a line of interest is malformed, a needed metric is missing, or a value is NaN, infinite,
            negative or absurdly large.
    """
    # An exporter's other thousand series cost next to nothing: the search for ours is one regular expression.
    found = _samples_of(endpoint).findall(text)
    if len(found) > MAX_SAMPLES:
        raise MetricError("exposition", len(found), f"at most {MAX_SAMPLES} samples of a stage's own metrics")
    samples = _samples(found)
    for name, shown in needed_of(endpoint):
        if shown not in samples and not re.search(
            rf"^#[ \t]+TYPE[ \t]+{re.escape(name)}(?![a-zA-Z0-9_:])", text, re.MULTILINE
        ):
            raise MetricError(shown, None, "the metric to be exported")
    return scrape_of(samples, endpoint, time_s)


def scrape_of(samples: Mapping[str, Sequence[Said]], endpoint: MetricsEndpoint, time_s: float) -> Scrape:
    """Put together what a pod said at one moment, summed over the series of each metric.

    Args:
        samples: By name.
        endpoint: What the metrics are called.
        time_s: When they were taken, Unix seconds.

    Raises:
        MetricError: Names the metric; if a value is NaN, infinite, negative or absurdly large, or a histogram is none.
    """
    untold, by_size = _by_size(samples)
    return Scrape(
        time_s=time_s,
        arrivals=_total(endpoint.arrivals, samples.get(endpoint.arrivals, ())),
        queue=_total(endpoint.queue, samples.get(endpoint.queue, ())),
        latency=_histogram(f"{endpoint.latency}_bucket", samples),
        pipeline=_histogram(f"{PIPELINE_LATENCY}_bucket", samples),
        service_sum_s=_optional(f"{SERVICE}_sum", untold),
        service_count=_optional(f"{SERVICE}_count", untold),
        by_batch=tuple(
            Services(
                size,
                _total(f"{SERVICE}_sum", own.get(f"{SERVICE}_sum", ())),
                _total(f"{SERVICE}_count", own.get(f"{SERVICE}_count", ())),
                _histogram(f"{SERVICE}_bucket", own),
            )
            for size, own in sorted(by_size.items())
        ),
        cpu_s=_optional(_CPU, samples),
        batch_sum=_optional(f"{BATCH}_sum", samples),
        batch_count=_optional(f"{BATCH}_count", samples),
    )


_Samples = Mapping[str, Sequence[Said]]


def _by_size(samples: _Samples) -> tuple[_Samples, Mapping[int, _Samples]]:
    """The samples of services: those whose batch size is not told, and the others by size."""
    untold: dict[str, list[Said]] = {}
    told: dict[int, dict[str, list[Said]]] = {}
    for name in (f"{SERVICE}_sum", f"{SERVICE}_count", f"{SERVICE}_bucket"):
        for sample in samples.get(name, ()):
            text = next((value for label, value in sample.labels if label == _SIZE), None)
            if text is None:
                untold.setdefault(name, []).append(sample)
                continue
            size = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(_SIZE_MOST)) else 0
            if not 1 <= size <= _SIZE_MOST:
                raise MetricError(f"{name}{{{_SIZE}}}", text[:80], f"a whole number from 1 to {_SIZE_MOST}")
            told.setdefault(size, {}).setdefault(name, []).append(sample)
    return untold, told


def _samples(found: Iterable[tuple[str, str, str, str]]) -> dict[str, list[Said]]:
    samples: dict[str, list[Said]] = {}
    others: list[str] = []
    for name, block, value, line in found:
        try:
            number = float(value)
        except ValueError:
            others.append(line or f"{name}{{{block}}} {value}")
            continue
        if block.startswith('le="') and block.count('"') == 2:
            said = Said((), block[4 : block.rindex('"')], number)
        else:
            said = _said(_LABEL.findall(block) if block else (), number)
        samples.setdefault(name, []).append(said)
    if others:
        try:
            for family in text_string_to_metric_families("\n".join(others) + "\n"):
                for sample in family.samples:
                    samples.setdefault(sample.name, []).append(_said(sample.labels.items(), sample.value))
        except Exception as error:  # the parser raises whatever it stumbles over
            raise MetricError("exposition", str(error)[:80], "Prometheus' text format") from error
    return samples


def _said(labels: Iterable[tuple[str, str]], value: float) -> Said:
    others, le = [], None
    for label in labels:
        if label[0] == "le":
            le = label[1]
        else:
            others.append(label)
    return Said(tuple(sorted(others)), le, value)


def _total(name: str, samples: Iterable[Said]) -> float:
    return sum(_checked(name, sample.value) for sample in samples)


def _optional(name: str, samples: Mapping[str, Sequence[Said]]) -> float | None:
    return _total(name, samples[name]) if name in samples else None


def _checked(name: str, value: float) -> float:
    if not 0 <= value <= _MOST:  # NaN fails as well
        raise MetricError(name, value, f"a number from 0 to {_MOST:g}")
    return value


@functools.lru_cache(maxsize=4096)
def _bounds(labels: tuple[str | None, ...]) -> tuple[float, ...]:
    """Bounds that rise to +Inf; none if they do not, or are no numbers."""
    try:
        bounds = tuple(float(label or "") for label in labels)
    except ValueError:
        return ()
    return bounds if bounds[-1] == math.inf and all(map(operator.lt, bounds, bounds[1:])) else ()


def _histogram(name: str, samples: Mapping[str, Sequence[Said]]) -> Histogram:
    """Sum of the series of all label sets, each of which may have buckets of its own."""
    said = samples.get(name, ())
    if said and not any(sample.labels for sample in said):
        # Of one series, as nearly all are; its bounds are the same every time.
        bounds = _bounds(tuple(sample.le for sample in said))
        counts = tuple(sample.value for sample in said)
        if bounds and counts[0] >= 0 and counts[-1] <= _MOST and all(map(operator.le, counts, counts[1:])):
            return Histogram(bounds, counts)
    series: dict[tuple[tuple[str, str], ...], dict[float, float]] = {}
    for sample in said:
        try:
            bound = float(sample.le or "")
        except ValueError as error:
            raise MetricError(name, sample.le, "a number in the label le") from error
        if math.isnan(bound):
            raise MetricError(name, bound, "a number in the label le")
        series.setdefault(sample.labels, {})[bound] = _checked(name, sample.value)
    whole = Histogram()
    for buckets in series.values():
        bounds = tuple(sorted(buckets))
        counts = tuple(buckets[bound] for bound in bounds)
        if bounds[-1] != math.inf or any(high < low for low, high in pairwise(counts)):
            raise MetricError(name, counts[-1], 'cumulative counts up to le="+Inf"')
        whole = add(whole, Histogram(bounds, counts))
    return whole
