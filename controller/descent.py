"""When capacity may be taken away: rules 6, 9 and 10, and what they look at."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from controller.case import Case, breached, each_delta, no_fall
from controller.decision import Situation
from controller.granting import cores_of
from controller.identification import fitted_curve, gpu_part
from controller.prediction import StageModel
from controller.reflex import frozen, queue_threshold_s
from controller.state import Action, StageDelta, StageObservation, project, project_all

__all__ = ["FreshMetrics", "Reserve", "SafeDescent", "growing", "stale"]

_DOUBT: Final = 3.0
"""Standard deviations of the fit: with that many a stage whose split was never measured is believed to use its GPU half of the time."""


def growing(stage: StageObservation, threshold_s: float) -> bool:
    """The queue grows and holds more than ``threshold_s`` of the stage's capacity; a few waiting requests are no growth."""
    if not math.isfinite(stage.queue_depth) or not math.isfinite(stage.queue_slope):
        return True
    busy = stage.service_s if stage.service_s and math.isfinite(stage.service_s) else None
    capacity = stage.ready / busy if busy else stage.departures_per_s
    return stage.queue_slope > 0 and stage.queue_depth > max(1.0, threshold_s * capacity)


def _worked(seen: StageObservation, model: StageModel) -> float:
    """CPU utilisation without the core that a host thread keeps busy while it waits for the GPU: CUDA's synchronisation spins.

    It spins only while its replica serves and the GPU works. Where that is not told apart, all that the fit leaves in doubt is work.
    """
    rate, spun = seen.granted or seen.allocation.gpu_rate, max(0.0, seen.gpu_utilisation)
    if rate is None or not math.isfinite(spun):
        return seen.cpu_utilisation
    if seen.service_s is not None and seen.ready > 0:
        spun = min(spun, seen.departures_per_s * seen.service_s / seen.ready)
    cores = cores_of(seen)
    if not seen.gpu_measured:
        spun *= gpu_part(model.fit, cores, rate.fraction, max(1.0, seen.mean_batch or 1.0), _DOUBT)
    return max(0.0, seen.cpu_utilisation - spun / cores)


def _at_full_batches(seen: StageObservation, model: StageModel) -> float:
    """Which part of the time it takes now a stage would take for the same requests if its batches were full.

    A stage that batches fills the time it is given: with short batches it is busy also where it has much to spare.
    """
    curve, batch = fitted_curve(model.fit), seen.mean_batch
    if batch is None or not 1.0 < batch < curve.batch_max:
        return 1.0
    cores = cores_of(seen)
    share = seen.allocation.gpu_rate.fraction if seen.allocation.gpu_rate else 1.0
    return float(curve.service_s(cores, share, curve.batch_max) / curve.service_s(cores, share, batch))


def stale(situation: Situation, scrape_interval_s: float) -> str | None:
    """Why the metrics cannot be trusted for a downward step, None if they can."""
    observation = situation.observation
    if not observation.age_s < 2 * scrape_interval_s:
        return f"metrics are {observation.age_s:.0f} s old"
    numbers = [observation.arrivals_per_s, observation.cost_per_hour]
    for stage in situation.view.stages:
        seen = observation.stage(stage.name)
        if seen is None:
            return f"no metrics of {stage.name}"
        numbers += [seen.queue_depth, seen.arrivals_per_s, seen.cpu_utilisation, seen.gpu_utilisation]
        if seen.service_s is None and observation.arrivals_per_s > 0:
            return f"no service time of {stage.name}"
    if observation.p99_s is None and observation.arrivals_per_s > 0:
        return "no P99"
    if any(not math.isfinite(number) or number < 0 for number in numbers):
        return "a metric is no sensible number"
    return None


@dataclass(frozen=True, slots=True)
class SafeDescent:
    """6: a downward step leaves projected utilisation and P99 under target at the recent peak, and none is taken in a breach."""

    name: str = "safe descent"

    def judge(self, action: Action, case: Case) -> tuple[Action, str]:
        """Take the falls out where they are not safe."""
        falling = [delta for delta in action.deltas if delta.is_down]
        if not falling:
            return action, ""
        reason = self._refusal(action, falling, case)
        return (each_delta(action, no_fall), reason) if reason else (action, "")

    def _refusal(self, action: Action, falling: list[StageDelta], case: Case) -> str | None:
        situation = case.situation
        if breached(case):
            return "P99 is above the SLO"
        threshold_s = queue_threshold_s(situation.view, case.model.tuning)
        for seen in situation.observation.stages:
            if growing(seen, threshold_s):
                return f"the queue of {seen.name} grows"
        if frozen(case.learned, situation.now):
            return "the reflex has just added capacity"
        for delta in falling:
            stage = situation.observation.stage(delta.stage)
            reason = self._projected(delta, stage, case) if stage else f"no metrics of {delta.stage}"
            if reason:
                return reason
        return self._modelled(action, falling, case)

    def _modelled(self, action: Action, falling: list[StageDelta], case: Case) -> str | None:
        """What the identified model says of utilisation and P99 after the step, at the rate that the knobs are set for."""
        if not case.model.complete:
            return "not every stage has been measured"
        limit_s = case.situation.latency_limit_s
        forecast = case.model.forecast(project_all(case.current, action), only_ready=True)
        for delta in falling:
            if not forecast.utilisations.get(delta.stage, math.inf) <= case.model.tuning.utilisation_limit:
                return f"{delta.stage} would be {forecast.utilisations[delta.stage]:.0%} busy at the recent peak"
        if not forecast.p99_s <= limit_s:
            return f"P99 at the recent peak would be {forecast.p99_s:.3g} s of {limit_s:.3g} s"
        return None

    def _projected(self, delta: StageDelta, seen: StageObservation, case: Case) -> str | None:
        """What the observed utilisation says, whatever the model believes."""
        if delta.stage not in case.model.stages:
            return f"no service time of {delta.stage} is known yet"
        if delta.memory < 0:
            return f"nothing is known of the memory that {delta.stage} uses"
        stage, now, after = case.model.stages[delta.stage], seen.allocation, project(seen.allocation, delta)
        if after.replicas < 1 or seen.ready < 1:
            return f"{delta.stage} would have no replica"
        served = seen.arrivals_per_s
        peak = case.model.arrivals_per_s * stage.visits
        growth = max(1.0, peak / served) if served > 0 else 1.0
        fewer = seen.ready / max(1, min(after.replicas, seen.ready))
        limit = max(case.model.tuning.utilisation_limit, 1.0)
        shares = [("CPU", _worked(seen, stage), max(now.cpu, seen.granted_cpu or 0) / after.cpu)]
        if now.gpu_rate and after.gpu_rate:
            used = seen.gpu_utilisation * _at_full_batches(seen, stage)
            shares.append(("GPU", used, now.gpu_rate.milli / after.gpu_rate.milli))
        for what, used, less in shares:
            touched = fewer > 1.0 or less > 1.0
            if touched and not used * fewer * less * growth <= limit:
                return f"{delta.stage} would use {used * fewer * less * growth:.0%} of its {what}"
        return None


@dataclass(frozen=True, slots=True)
class FreshMetrics:
    """9: on stale or missing metrics hold or go up, never down."""

    name: str = "fresh metrics"

    def judge(self, action: Action, case: Case) -> tuple[Action, str]:
        """Take the falls out."""
        reason = stale(case.situation, case.model.tuning.scrape_interval_s)
        return (each_delta(action, no_fall), reason) if reason else (action, "")


@dataclass(frozen=True, slots=True)
class Reserve:
    """10: Σ over replicas of μ at the highest knobs covers the recent and the remembered peak wherever a replica goes.

    A share is raised in 0.1 s, a replica in minutes: shares are lowered before replicas are removed.
    """

    name: str = "reserve"

    def judge(self, action: Action, case: Case) -> tuple[Action, str]:
        """Keep the replicas that the reserve needs."""
        if not case.model.tuning.reserve:
            return action, ""
        lacking: list[str] = []

        def keep(delta: StageDelta) -> StageDelta:
            stage = case.model.stages.get(delta.stage)
            if delta.replicas >= 0:
                return delta
            if stage and not case.model.shortfall(stage, project(case.current[delta.stage], delta)) > 1e-9:
                return delta
            lacking.append(delta.stage)
            return replace(delta, replicas=0)

        after = each_delta(action, keep)
        return (
            after,
            f"{', '.join(lacking)} at its highest knobs would not cover {case.model.reserve_per_s:.1f} requests/s",
        )
