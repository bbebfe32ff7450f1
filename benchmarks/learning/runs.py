"""Runs of the policy as values: what to run, and what it came to in every five seconds. A run happens once, whoever asks for it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from controller.cost import effective_cost
from controller.knowledge import Knowledge, begin, moved_by
from controller.simulation.baselines.static import right_size
from controller.simulation.pipelines import PipelineSetup, batch_curve_of, pipeline_named, with_wrong_prior
from controller.simulation.statistics import all_latencies
from controller.simulation.trial import run_trial
from controller.simulation.workloads import RateSeries, workload_named
from controller.tuning import Tuning
from sair.errors import InvalidInput

__all__ = ["GRAIN_S", "Change", "Course", "Run", "Static", "bursts", "run", "series_of", "setup_of", "size"]

GRAIN_S = 5.0
Change = tuple[tuple[str, Any], ...]
"""Fields of the tuning that differ from the defaults."""
Told = Literal["nothing", "prior", "truth"]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the built-in policy."""

    pipeline: str
    workload: str
    duration_s: float
    seed: int
    change: Change = ()
    told: Told = "nothing"
    """What is known of the service times before the first measurement: nothing, what the user believes, or the truth."""
    wrong_prior: bool = False
    """The GPU stages behave otherwise than the user believes."""
    stops_s: float | None = None
    """From then on the workload stays at its base rate."""
    oversized: int = 1
    """Begins with so many times the replicas of the right-sized static allocation; 1: as the user wrote it."""
    settled_s: float = 0.0
    """What of the run that static allocation is sized for."""
    earlier: Run | None = None
    """A run before this one, whose memory is carried over."""
    preference: float = 0.85
    """Fraction of the SLO that predicted P99 may use."""
    fixed_share: bool = False
    """GPU shares stay as the user wrote them."""


@dataclass(frozen=True, slots=True)
class Static:
    """The static allocation that is right-sized in hindsight for a run's very requests."""

    pipeline: str
    workload: str
    duration_s: float
    seed: int
    settled_s: float


@dataclass(frozen=True, slots=True)
class Course:
    """What a run came to, in grains of ``GRAIN_S`` seconds."""

    requests: NDArray[np.float64]
    missed: NDArray[np.float64]
    """By the time at which the request arrived."""
    usd: NDArray[np.float64]
    """Effective cost."""

    def misses(self, since_s: float = 0.0, until_s: float = float("inf")) -> float:
        """Missed / requests, of those that arrived in a stretch."""
        part = self._part(since_s, until_s)
        return float(self.missed[part].sum() / max(1.0, self.requests[part].sum()))

    def usd_per_hour(self, since_s: float = 0.0, until_s: float = float("inf")) -> float:
        """Mean effective cost over a stretch."""
        part = self.usd[self._part(since_s, until_s)]
        return float(part.mean() / GRAIN_S * 3600)

    def _part(self, since_s: float, until_s: float) -> slice:
        last = len(self.requests) if until_s == float("inf") else round(until_s / GRAIN_S)
        return slice(round(since_s / GRAIN_S), last)


def setup_of(pipeline: str, *, wrong_prior: bool = False, fixed_share: bool = False) -> PipelineSetup:
    """A pipeline, possibly behaving otherwise than its user believes, possibly with GPU shares that stay as the user wrote them."""
    setup = pipeline_named(pipeline)
    setup = with_wrong_prior(setup) if wrong_prior else setup
    return _with_fixed_shares(setup) if fixed_share else setup


def series_of(pipeline: str, workload: str, duration_s: float, seed: int, stops_s: float | None = None) -> RateSeries:
    """The arrival rate of a run."""
    base = pipeline_named(pipeline).base_rate_per_s
    series = workload_named(workload, base, duration_s, seed)
    if stops_s is None:
        return series
    rates = series.rates_per_s.copy()
    rates[round(stops_s) :] = base
    return RateSeries(series.name, rates)


def bursts(series: RateSeries) -> list[tuple[float, float, float]]:
    """(begin, end, factor) of each burst of a workload of recurring bursts, seconds; a precursor is none."""
    high = np.concatenate([[False], series.rates_per_s > 2.0 * series.rates_per_s.min(), [False]])
    edges = np.flatnonzero(high[1:] != high[:-1])
    found = []
    for start, end in pairwise(edges.tolist()):
        if high[start + 1]:
            found.append((float(start), float(end), float(series.rates_per_s[start] / series.rates_per_s.min())))
    return found


@lru_cache(maxsize=256)
def size(job: Static) -> tuple[float, PipelineSetup]:
    """Cost of the right-sized static allocation, $/h, and the pipeline that begins with it."""
    setup = setup_of(job.pipeline)
    series = series_of(job.pipeline, job.workload, job.duration_s, job.seed)
    found = right_size(setup, series, job.seed, since_s=job.settled_s)
    return effective_cost(found.values(), setup.prices), setup.starting_at(found)


def run(job: Run) -> Course:
    """Run it; a second time it is remembered."""
    return _run(job)[0]


@lru_cache(maxsize=64)
def _run(job: Run) -> tuple[Course, Knowledge]:
    setup = setup_of(job.pipeline, wrong_prior=job.wrong_prior, fixed_share=job.fixed_share)
    setup = replace(setup, preference=job.preference)
    series = series_of(job.pipeline, job.workload, job.duration_s, job.seed, job.stops_s)
    if job.oversized > 1:
        fitting = size(Static(job.pipeline, job.workload, job.duration_s, job.seed, job.settled_s))[1]
        setup = _grown(fitting, job.oversized)
    tuning = replace(Tuning(), **dict(job.change))
    done = run_trial(setup, series, job.seed, tuning=tuning, knowledge=_known(job, setup))
    plant = done.plant
    grains = int(job.duration_s // GRAIN_S)
    latency = all_latencies(plant)
    place = (np.array(plant.engine.requests.arrivals[: plant.engine.arrived]) // GRAIN_S).astype(np.int64)
    bill = np.array([(sample.time_s, sample.effective_usd) for sample in plant.bill])
    spent = np.interp(np.arange(grains + 1) * GRAIN_S, bill[:, 0], bill[:, 1])
    course = Course(
        requests=np.bincount(place, minlength=grains)[:grains].astype(np.float64),
        missed=np.bincount(place, (latency > plant.view.slo_s).astype(np.float64), grains)[:grains].astype(np.float64),
        usd=np.diff(spent),
    )
    return course, done.knowledge


def _known(job: Run, setup: PipelineSetup) -> Knowledge:
    if job.earlier is not None:
        _, before = _run(job.earlier)
        # A memory grows where it is; the earlier run's must stay as it was.
        memory = deepcopy(before.memory)
        return replace(before, memory=memory, learned=moved_by(before.learned, -job.earlier.duration_s))
    if job.told == "nothing":
        return begin(setup.view)
    laws = {stage.plan.name: stage.prior if job.told == "prior" else stage.plan.law for stage in setup.stages}
    return begin(setup.view, {name: batch_curve_of(law) for name, law in laws.items()})


def _with_fixed_shares(setup: PipelineSetup) -> PipelineSetup:
    stages = []
    for stage in setup.stages:
        rate = stage.initial.gpu_rate
        fixed = replace(stage.limits, gpu_milli_min=rate.milli, gpu_milli_max=rate.milli) if rate else stage.limits
        stages.append(replace(stage, limits=fixed))
    return replace(setup, stages=tuple(stages))


def _grown(setup: PipelineSetup, factor: int) -> PipelineSetup:
    """So many times the replicas, or as many as bounds and cards allow and the rest by the share."""
    grown = {}
    for stage in setup.stages:
        initial = stage.initial
        grown[stage.plan.name] = replace(initial, replicas=min(stage.limits.replicas_max, factor * initial.replicas))
    found = setup.starting_at(grown)
    begin_usd = effective_cost((stage.initial for stage in found.stages), setup.prices)
    least_usd = 0.9 * factor * effective_cost((stage.initial for stage in setup.stages), setup.prices)
    if begin_usd < least_usd:
        raise InvalidInput("oversized", factor, "what the bounds of the pipeline's replicas allow")
    return found
