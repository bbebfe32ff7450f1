"""One scrape of one pod: Prometheus text in, checked numbers out. Metric values are untrusted input."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from sair.annotations import MetricsEndpoint
from sair.errors import MetricError

__all__ = ["PIPELINE_LATENCY", "SERVICE", "Histogram", "Scrape", "parse_exposition"]

SERVICE: Final = "sair_stage_service_seconds"
"""Optional histogram or summary of the time a replica works on a request, waiting excluded."""

PIPELINE_LATENCY: Final = "sair_pipeline_latency_seconds"
"""Optional histogram of the whole pipeline's latency, exported by its last stage."""

_CPU: Final = "process_cpu_seconds_total"
_MOST = 1e15
"""No honest counter of ours is larger: 10^15 requests are 30 years at a million a second."""
_MAX_BUCKETS: Final = 500


@dataclass(frozen=True, slots=True)
class Histogram:
    """Cumulative counts by upper bound, seconds; the last bound is +Inf."""

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()


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
    """Read what a stage's pod exports.

    Args:
        text: Prometheus' text format.
        endpoint: What the metrics are called.
        time_s: When it was scraped, Unix seconds.

    Raises:
        MetricError: Names the metric; if the text is malformed, a needed metric is missing, or a value is NaN, infinite, negative
            or absurdly large.
    """
    wanted = {
        endpoint.queue,
        endpoint.arrivals,
        _CPU,
        *(
            f"{name}{suffix}"
            for name in (endpoint.latency, PIPELINE_LATENCY, SERVICE)
            for suffix in ("_bucket", "_sum", "_count")
        ),
    }
    samples: dict[str, list[Sample]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in wanted:
                    samples.setdefault(sample.name, []).append(sample)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise MetricError("exposition", str(error)[:80], "Prometheus' text format") from error
    for name in (endpoint.queue, endpoint.arrivals):
        if name not in samples:
            raise MetricError(name, None, "the metric to be exported")
    return Scrape(
        time_s=time_s,
        arrivals=_total(samples[endpoint.arrivals]),
        queue=_total(samples[endpoint.queue]),
        latency=_histogram(endpoint.latency, samples),
        pipeline=_histogram(PIPELINE_LATENCY, samples),
        service_sum_s=_optional(f"{SERVICE}_sum", samples),
        service_count=_optional(f"{SERVICE}_count", samples),
        cpu_s=_optional(_CPU, samples),
    )


def _total(samples: Iterable[Sample]) -> float:
    return sum(_checked(sample.name, sample.value) for sample in samples)


def _optional(name: str, samples: dict[str, list[Sample]]) -> float | None:
    return _total(samples[name]) if name in samples else None


def _checked(name: str, value: float) -> float:
    if not 0 <= value <= _MOST:  # NaN fails as well
        raise MetricError(name, value, f"a number from 0 to {_MOST:g}")
    return value


def _histogram(name: str, samples: dict[str, list[Sample]]) -> Histogram:
    """Sum the series of all label sets, bucket by bucket."""
    totals: dict[float, float] = {}
    for sample in samples.get(f"{name}_bucket", ()):
        try:
            bound = float(sample.labels["le"])
        except (KeyError, ValueError) as error:
            raise MetricError(f"{name}_bucket", sample.labels.get("le"), "a number in the label le") from error
        if math.isnan(bound):
            raise MetricError(f"{name}_bucket", bound, "a number in the label le")
        totals[bound] = totals.get(bound, 0.0) + _checked(sample.name, sample.value)
    if not totals:
        return Histogram()
    if len(totals) > _MAX_BUCKETS:
        raise MetricError(f"{name}_bucket", len(totals), f"at most {_MAX_BUCKETS} buckets")
    bounds = tuple(sorted(totals))
    counts = tuple(totals[bound] for bound in bounds)
    if bounds[-1] != math.inf or any(high < low for low, high in pairwise(counts)):
        raise MetricError(f"{name}_bucket", counts[-1], 'cumulative counts up to le="+Inf"')
    return Histogram(bounds, counts)
