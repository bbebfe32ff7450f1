"""Kubernetes' VerticalPodAutoscaler (kubernetes/autoscaler): a decaying histogram of CPU use recommends each stage's CPU.

Histogram: buckets from 0.01 core on, each 5 % wider than the one before, weights halved every 24 h. Target = P90 · 1.15,
lower bound = P50 · 1.15 · (1 + 0.001/confidence)^−2, upper bound = P95 · 1.15 · (1 + 1/confidence) with confidence =
min(days, samples/1440). Recommender and updater run every 60 s; the updater acts only when what is granted lies outside the bounds,
and only on workloads of at least two replicas. It resizes in place, where older versions evict up to half of the replicas at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from controller.simulation.baselines.policy import Seen, clamp_cpu, limits_of
from controller.state import Allocation, PipelineView

__all__ = ["CpuHistogram", "Recommendation", "VerticalPodAutoscaler", "recommend"]

FIRST_BUCKET_CORES: Final = 0.01
GROWTH: Final = 1.05
HALF_LIFE_S: Final = 24 * 3600.0
MARGIN: Final = 1.15
LEAST_WEIGHT_CORES: Final = 0.1
MIN_REPLICAS: Final = 2
"""``--min-replicas`` of the updater."""


def bucket_of(cores: float) -> int:
    """Number of the bucket that holds a sample."""
    if cores < FIRST_BUCKET_CORES:
        return 0
    return int(math.log(cores * (GROWTH - 1) / FIRST_BUCKET_CORES + 1) / math.log(GROWTH))


def bucket_start(number: int) -> float:
    """Lower edge of a bucket, cores: a geometric series."""
    return float(FIRST_BUCKET_CORES * (GROWTH**number - 1) / (GROWTH - 1))


@dataclass(slots=True)
class CpuHistogram:
    """CPU use of one workload's containers; old samples fade."""

    weights: dict[int, float] = field(default_factory=dict)
    samples: int = 0
    first_s: float | None = None
    last_s: float = 0.0

    def add(self, cores: float, weight: float, time_s: float) -> None:
        """One sample of a minute."""
        bucket = bucket_of(cores)
        self.weights[bucket] = self.weights.get(bucket, 0.0) + weight * 2 ** (time_s / HALF_LIFE_S)
        self.samples += 1
        self.first_s = time_s if self.first_s is None else self.first_s
        self.last_s = max(self.last_s, time_s)

    def percentile(self, share: float) -> float:
        """Upper edge of the bucket that holds this percentile, cores; 0 without samples."""
        threshold = share * sum(self.weights.values())
        reached = 0.0
        for bucket in sorted(self.weights):
            reached += self.weights[bucket]
            if reached >= threshold:
                return bucket_start(bucket + 1)
        return 0.0

    @property
    def confidence(self) -> float:
        """Days of history, or samples / 1440 if that is less."""
        days = 0.0 if self.first_s is None else (self.last_s - self.first_s) / 86_400
        return min(days, self.samples / 1440)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Cores per replica."""

    lower: float
    target: float
    upper: float


def recommend(histogram: CpuHistogram) -> Recommendation | None:
    """What the recommender says; None without samples. Without any confidence the bounds are open."""
    if not histogram.samples:
        return None
    confidence = histogram.confidence
    target = histogram.percentile(0.9) * MARGIN
    if confidence == 0:
        return Recommendation(0.0, target, math.inf)
    lower = histogram.percentile(0.5) * MARGIN * (1 + 0.001 / confidence) ** -2
    upper = histogram.percentile(0.95) * MARGIN * (1 + 1 / confidence)
    return Recommendation(lower, target, upper)


class VerticalPodAutoscaler:
    """One VPA per stage; replicas and shares stay.

    Args:
        view: The pipeline.
        history: CPU use by stage before the run, cores per replica, a value per minute; it ends when the run begins. Without it a run of
            less than an hour is over before the VPA dares to scale down.
        name: As the table has it.
    """

    interval_s: float = 60.0
    window_s: float = 60.0

    def __init__(
        self, view: PipelineView, *, history: Mapping[str, Sequence[float]] | None = None, name: str = "VPA"
    ) -> None:
        self.name = name
        self._view = view
        self._histograms = {stage.name: CpuHistogram() for stage in view.stages}
        for stage, used in (history or {}).items():
            for number, cores in enumerate(used):
                self._histograms[stage].add(cores, max(cores, LEAST_WEIGHT_CORES), (number - len(used)) * 60.0)

    def decide(self, seen: Seen, now: float) -> Mapping[str, Allocation] | None:
        """Take one minute's samples, recommend, update."""
        wanted = {}
        for stage in seen.observation.stages:
            cores = stage.allocation.cpu / 1000
            histogram = self._histograms[stage.name]
            for _ in range(stage.ready):
                histogram.add(stage.cpu_utilisation * cores, max(cores, LEAST_WEIGHT_CORES), now)
            advice = recommend(histogram)
            if advice is None or stage.allocation.replicas < MIN_REPLICAS or advice.lower <= cores <= advice.upper:
                continue
            cpu = clamp_cpu(advice.target * 1000, limits_of(self._view, stage.name))
            if cpu != stage.allocation.cpu:
                wanted[stage.name] = replace(stage.allocation, cpu=cpu)
        return wanted
