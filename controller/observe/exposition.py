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

from controller.observe.histogram import Histogram
from sair.annotations import MetricsEndpoint
from sair.errors import MetricError

__all__ = [
    "BATCH",
    "MAX_SAMPLES",
    "PIPELINE_LATENCY",
    "SERVICE",
    "Labels",
    "Observed",
    "Said",
    "Scrape",
    "needed_of",
    "parse_exposition",
    "scrape_of",
    "size_of",
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
_MAX_LABELS: Final = 2**20
"""Characters of their labels in all: to read four million of them takes seconds."""
_MAX_ODD: Final = 2**16
"""Characters of those samples that only the library can read; four million of them would take it ten seconds."""

_PLAIN: Final = (
    r'(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="[^"\\\n]*",?){0,64})\})?[ \t]+([0-9.eE+-]+|NaN|[+-]?Inf)'
    r"(?:[ \t]+[0-9.eE+-]+)?(?:[ \t]+#[ \t].*|[ \t\r]*)$"
)
"""What follows the name of a sample as nearly all are: few labels without escaped characters, the value, its time, an exemplar."""
_SHORT: Final = 100
"""Characters of labels up to which what they say is kept."""
_LABEL: Final = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="([^"\\\n]*)"', re.ASCII)


Labels = tuple[tuple[str, str], ...]
"""Of one series, sorted, without ``le``; what tells the series of one metric apart."""


class Said(NamedTuple):
    """One sample of one series."""

    labels: Labels
    le: str | None
    value: float


@dataclass(frozen=True, slots=True)
class Observed:
    """What a histogram or summary observed, ever."""

    sum: float
    count: float
    buckets: Histogram = field(default_factory=Histogram)
    """Empty where only a summary is exported."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a pod said at one moment, series by series: each of them may vanish, come back and begin anew by itself."""

    time_s: float
    queue: float
    """Requests waiting in it, over all series."""
    arrivals: Mapping[Labels, float]
    """Requests that reached the pod, ever."""
    latency: Mapping[Labels, Histogram] = field(default_factory=dict)
    pipeline: Mapping[Labels, Histogram] = field(default_factory=dict)
    """Of the whole pipeline; empty where the pod does not export it."""
    services: Mapping[Labels, Observed] = field(default_factory=dict)
    """Seconds of services; where the labels tell a size, of batches of that size."""
    batches: Mapping[Labels, Observed] = field(default_factory=dict)
    """Requests served together."""
    cpu_s: Mapping[Labels, float] = field(default_factory=dict)
    """CPU time used, ever."""


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
    length = sum(len(block) for _, block, _, _ in found)
    if length > _MAX_LABELS:
        raise MetricError("exposition", length, f"at most {_MAX_LABELS} characters of labels of a stage's own metrics")
    samples = _samples(found)
    for name, shown in needed_of(endpoint):
        if shown in samples:
            continue
        # OpenMetrics declares a counter without the suffix that its samples have.
        names = "|".join(map(re.escape, dict.fromkeys((name, name.removesuffix("_total")))))
        if not re.search(rf"^#[ \t]+TYPE[ \t]+(?:{names})[ \t]", text, re.MULTILINE):
            raise MetricError(shown, None, "the metric to be exported")
    return scrape_of(samples, endpoint, time_s)


def scrape_of(samples: Mapping[str, Sequence[Said]], endpoint: MetricsEndpoint, time_s: float) -> Scrape:
    """Put together what a pod said at one moment. Of a series that is there twice the first sample counts, as for Prometheus.

    Args:
        samples: By name.
        endpoint: What the metrics are called.
        time_s: When they were taken, Unix seconds.

    Raises:
        MetricError: Names the metric; if a value is NaN, infinite, negative or absurdly large, or a histogram is none.
    """
    services = _observed(SERVICE, samples)
    for labels in services:
        size_of(labels)
    return Scrape(
        time_s=time_s,
        queue=sum(_values(endpoint.queue, samples).values()),
        arrivals=_values(endpoint.arrivals, samples),
        latency=_histograms(f"{endpoint.latency}_bucket", samples),
        pipeline=_histograms(f"{PIPELINE_LATENCY}_bucket", samples),
        services=services,
        batches=_observed(BATCH, samples, buckets=False),
        cpu_s=_values(_CPU, samples),
    )


def size_of(labels: Labels) -> int | None:
    """The batch size that the labels of a series of services tell; None where they tell none.

    Raises:
        MetricError: If it is no size.
    """
    text = next((value for label, value in labels if label == _SIZE), None)
    if text is None:
        return None
    size = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(_SIZE_MOST)) else 0
    if not 1 <= size <= _SIZE_MOST:
        raise MetricError(f"{SERVICE}{{{_SIZE}}}", text[:80], f"a whole number from 1 to {_SIZE_MOST}")
    return size


def _samples(found: Iterable[tuple[str, str, str, str]]) -> dict[str, list[Said]]:
    samples: dict[str, list[Said]] = {}
    others: list[str] = []
    for name, block, value, line in found:
        try:
            number = float(value)
        except ValueError:
            others.append(line or f"{name}{{{block}}} {value}")
            continue
        labels, le = _labels_of(block) if len(block) <= _SHORT else _told(_LABEL.findall(block))
        samples.setdefault(name, []).append(Said(labels, le, number))
    if others:
        length = sum(map(len, others))
        if length > _MAX_ODD:
            raise MetricError(
                "exposition",
                length,
                f"at most {_MAX_ODD} characters of samples with escaped characters or very many labels",
            )
        try:
            for family in text_string_to_metric_families("\n".join(others) + "\n"):
                for sample in family.samples:
                    labels, le = _told(sample.labels.items())
                    samples.setdefault(sample.name, []).append(Said(labels, le, sample.value))
        except Exception as error:  # the parser raises whatever it stumbles over
            raise MetricError("exposition", str(error)[:80], "Prometheus' text format") from error
    return samples


@functools.lru_cache(maxsize=16_384)
def _labels_of(block: str) -> tuple[Labels, str | None]:
    """Those of a plain sample; from scrape to scrape they are the same."""
    return _told(_LABEL.findall(block))


def _told(labels: Iterable[tuple[str, str]]) -> tuple[Labels, str | None]:
    """The labels of a sample, sorted, without ``le``; and what that says."""
    others, le = [], None
    for label in labels:
        if label[0] == "le":
            le = label[1]
        else:
            others.append(label)
    return tuple(sorted(others)), le


def _values(name: str, samples: Mapping[str, Sequence[Said]]) -> dict[Labels, float]:
    values: dict[Labels, float] = {}
    for sample in samples.get(name, ()):
        values.setdefault(sample.labels, _checked(name, sample.value))
    return values


def _observed(name: str, samples: Mapping[str, Sequence[Said]], *, buckets: bool = True) -> dict[Labels, Observed]:
    sums, counts = _values(f"{name}_sum", samples), _values(f"{name}_count", samples)
    shapes = _histograms(f"{name}_bucket", samples) if buckets else {}
    return {
        labels: Observed(sums.get(labels, 0.0), counts.get(labels, 0.0), shapes.get(labels, Histogram()))
        for labels in dict.fromkeys((*sums, *counts, *shapes))
    }


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


def _histograms(name: str, samples: Mapping[str, Sequence[Said]]) -> dict[Labels, Histogram]:
    """The histogram of each label set; each may have buckets of its own."""
    said = samples.get(name, ())
    if said and all(sample.labels == said[0].labels for sample in said):
        # Of one series, as nearly all are; its bounds are the same every time.
        bounds = _bounds(tuple(sample.le for sample in said))
        counts = tuple(sample.value for sample in said)
        if bounds and counts[0] >= 0 and counts[-1] <= _MOST and all(map(operator.le, counts, counts[1:])):
            return {said[0].labels: Histogram(bounds, counts)}
    series: dict[Labels, dict[float, float]] = {}
    for sample in said:
        try:
            bound = float(sample.le or "")
        except ValueError as error:
            raise MetricError(name, sample.le, "a number in the label le") from error
        if math.isnan(bound):
            raise MetricError(name, bound, "a number in the label le")
        series.setdefault(sample.labels, {}).setdefault(bound, _checked(name, sample.value))
    histograms = {}
    for labels, buckets in series.items():
        bounds = tuple(sorted(buckets))
        counts = tuple(buckets[bound] for bound in bounds)
        if bounds[-1] != math.inf or any(high < low for low, high in pairwise(counts)):
            raise MetricError(name, counts[-1], 'cumulative counts up to le="+Inf"')
        histograms[labels] = Histogram(bounds, counts)
    return histograms
