"""What a run came to, and how sure a difference between two policies is."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.simulation.plant import BillSample, Plant

__all__ = [
    "Interval",
    "RunSummary",
    "all_latencies",
    "mean_interval",
    "paired_interval",
    "summarise",
    "wilson_interval",
]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run, over the requests that arrived in a stretch of it."""

    policy: str
    seed: int
    since_s: float
    until_s: float
    requests: int
    finished: int
    failed: int
    """Dropped, given up by their client, or not finished when the run had drained."""
    missed: int
    """Finished later than the SLO, or failed."""
    p50_s: float
    p99_s: float
    """Over all requests; a failed one counts with the client's timeout, so that dropping requests never looks fast."""
    slo_s: float
    goodput_per_s: float
    effective_usd_per_hour: float
    """GPU shares held × time: true only if somebody else buys the rest of the cards."""
    whole_card_usd_per_hour: float
    """As many cards in full as the replicas need when packed by best fit."""
    effective_usd_per_1k: float
    """Per thousand requests within the SLO."""
    whole_card_usd_per_1k: float
    model_usd: float = 0.0
    """Cost of the language model, if one was asked."""

    @property
    def miss_ratio(self) -> float:
        """Missed / requests."""
        return self.missed / self.requests if self.requests else 0.0


def all_latencies(plant: Plant) -> NDArray[np.float64]:
    """Latency of each request that has arrived, in the order of arrival; infinite where it has not finished (seconds)."""
    engine = plant.engine
    latency = np.full(engine.arrived, np.inf)
    done = np.array(engine.done_id, dtype=np.int64)
    latency[done] = np.array(engine.done_t) - np.array(engine.requests.arrivals)[done]
    return latency


def summarise(
    plant: Plant, policy: str, seed: int, *, since_s: float = 0.0, until_s: float | None = None, model_usd: float = 0.0
) -> RunSummary:
    """Sum up a run.

    Args:
        plant: At the end of the run and drained: whatever has not finished counts as failed.
        policy: Who scaled.
        seed: Of the run.
        since_s: Only requests that arrived from then on count, and cost from then on.
        until_s: The same at the end; None: the plant's now.
        model_usd: Spent on a language model.
    """
    until_s = plant.now if until_s is None else until_s
    arrivals = plant.engine.requests.arrivals
    first, last = bisect_left(arrivals, since_s), bisect_right(arrivals, until_s, 0, plant.engine.arrived)
    latency = all_latencies(plant)[first:last]
    slo_s = plant.view.slo_s
    finished = int(np.isfinite(latency).sum())
    good = int((latency <= slo_s).sum())
    counted = np.minimum(latency, np.maximum(plant.setup.timeout_s, np.where(np.isfinite(latency), latency, 0.0)))
    p50, p99 = np.percentile(counted, [50, 99]) if len(counted) else (0.0, 0.0)
    hours = max(until_s - since_s, 1e-9) / 3600
    begin, end = _spent_at(plant, since_s), _spent_at(plant, until_s)
    effective = end.effective_usd - begin.effective_usd
    whole = end.whole_card_usd - begin.whole_card_usd
    per_1k = 1000 / good if good else math.inf
    return RunSummary(
        policy=policy,
        seed=seed,
        since_s=since_s,
        until_s=until_s,
        requests=len(latency),
        finished=finished,
        failed=len(latency) - finished,
        missed=len(latency) - good,
        p50_s=float(p50),
        p99_s=float(p99),
        slo_s=slo_s,
        goodput_per_s=good / (hours * 3600),
        effective_usd_per_hour=effective / hours,
        whole_card_usd_per_hour=whole / hours,
        effective_usd_per_1k=effective * per_1k,
        whole_card_usd_per_1k=whole * per_1k,
        model_usd=model_usd,
    )


def _spent_at(plant: Plant, time_s: float) -> BillSample:
    """The bill at the last sample not after a moment."""
    return plant.bill[max(0, bisect_right(plant.bill, time_s, key=lambda one: one.time_s) - 1)]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """The difference is one."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval of a mean.

    Raises:
        ValueError: With fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("an interval needs at least two values")
    from scipy.stats import t  # noqa: PLC0415 - heavy, and only reports need it

    mean = float(np.mean(values))
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def paired_interval(ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval of the mean difference ours − theirs, paired by seed.

    Raises:
        ValueError: With fewer than two pairs, or unequal numbers.
    """
    return mean_interval([one - other for one, other in zip(ours, theirs, strict=True)], confidence)


def wilson_interval(hits: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (1927)."""
    from statistics import NormalDist  # noqa: PLC0415 - beside its one use

    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = hits / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return Interval(share, centre - half, centre + half)
