"""One scrape of one pod: Prometheus text in, checked numbers out. Metric values are untrusted input."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from controller.observe.histogram import Histogram, add
from sair.annotations import MetricsEndpoint
from sair.errors import MetricError

__all__ = ["PIPELINE_LATENCY", "SERVICE", "Scrape", "parse_exposition"]

SERVICE: Final = "sair_stage_service_seconds"
"""Optional histogram or summary of the time a replica works on a request, waiting excluded."""

PIPELINE_LATENCY: Final = "sair_pipeline_latency_seconds"
"""Optional histogram of the whole pipeline's latency, exported by its last stage."""

_CPU: Final = "process_cpu_seconds_total"
_MOST: Final = 1e15
"""No honest counter of ours is larger: 10^15 requests are 30 years at a million a second."""
_MAX_SAMPLES: Final = 5_000
"""Parsing takes about 20 µs a sample, on the loop that renews the Lease."""
_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
_DECLARED: Final = re.compile(r"#[ \t]+TYPE[ \t]+([a-zA-Z_:][a-zA-Z0-9_:]*)", re.ASCII)


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
    service_count: float | None = None
    cpu_s: float | None = None
    """CPU time used, ever."""


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
    wanted = {
        endpoint.queue,
        endpoint.arrivals,
        _CPU,
        f"{SERVICE}_sum",
        f"{SERVICE}_count",
        f"{endpoint.latency}_bucket",
        f"{PIPELINE_LATENCY}_bucket",
    }
    lines, declared = _of_interest(text, wanted)
    samples = _samples(lines)
    for name, shown in (
        (endpoint.queue, endpoint.queue),
        (endpoint.arrivals, endpoint.arrivals),
        (endpoint.latency, f"{endpoint.latency}_bucket"),
    ):
        if shown not in samples and name not in declared:
            raise MetricError(shown, None, "the metric to be exported")
    return Scrape(
        time_s=time_s,
        arrivals=_total(samples.get(endpoint.arrivals, ())),
        queue=_total(samples.get(endpoint.queue, ())),
        latency=_histogram(f"{endpoint.latency}_bucket", samples),
        pipeline=_histogram(f"{PIPELINE_LATENCY}_bucket", samples),
        service_sum_s=_optional(f"{SERVICE}_sum", samples),
        service_count=_optional(f"{SERVICE}_count", samples),
        cpu_s=_optional(_CPU, samples),
    )


def _of_interest(text: str, wanted: set[str]) -> tuple[list[str], set[str]]:
    """The lines of wanted samples, and the names that are declared: an exporter's other thousand series cost nothing."""
    lines: list[str] = []
    declared: set[str] = set()
    for line in text.split("\n"):
        match = _NAME.match(line)
        if match is not None:
            if match[0] in wanted:
                lines.append(line)
        elif line.startswith("#") and (declaration := _DECLARED.match(line)):
            declared.add(declaration[1])
    if len(lines) > _MAX_SAMPLES:
        raise MetricError("exposition", len(lines), f"at most {_MAX_SAMPLES} samples of a stage's own metrics")
    return lines, declared


def _samples(lines: Iterable[str]) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append(sample)
    except Exception as error:  # the parser raises whatever it stumbles over
        raise MetricError("exposition", str(error)[:80], "Prometheus' text format") from error
    return samples


def _total(samples: Iterable[Sample]) -> float:
    return sum(_checked(sample.name, sample.value) for sample in samples)


def _optional(name: str, samples: dict[str, list[Sample]]) -> float | None:
    return _total(samples[name]) if name in samples else None


def _checked(name: str, value: float) -> float:
    if not 0 <= value <= _MOST:  # NaN fails as well
        raise MetricError(name, value, f"a number from 0 to {_MOST:g}")
    return value


def _histogram(name: str, samples: dict[str, list[Sample]]) -> Histogram:
    """Sum of the series of all label sets, each of which may have buckets of its own."""
    series: dict[tuple[tuple[str, str], ...], dict[float, float]] = {}
    for sample in samples.get(name, ()):
        labels = dict(sample.labels)
        try:
            bound = float(labels.pop("le"))
        except (KeyError, ValueError) as error:
            raise MetricError(name, sample.labels.get("le"), "a number in the label le") from error
        if math.isnan(bound):
            raise MetricError(name, bound, "a number in the label le")
        buckets = series.setdefault(tuple(sorted(labels.items())), {})
        buckets[bound] = _checked(name, sample.value)
    whole = Histogram()
    for buckets in series.values():
        bounds = tuple(sorted(buckets))
        counts = tuple(buckets[bound] for bound in bounds)
        if bounds[-1] != math.inf or any(high < low for low, high in pairwise(counts)):
            raise MetricError(name, counts[-1], 'cumulative counts up to le="+Inf"')
        whole = add(whole, Histogram(bounds, counts))
    return whole
