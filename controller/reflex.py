"""The reflex: between two rounds it adds capacity that takes effect at once where a queue builds up. It never takes any away."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from controller.capacity import highest_cpu, highest_rate, misfit
from controller.cost import effective_cost
from controller.identification import StageFit, fitted_curve
from controller.knowledge import Learned
from controller.model import capacity_per_s
from controller.prediction import visits
from controller.state import (
    CPU_STEP,
    GPU_STEP_MILLI,
    HOLD,
    Action,
    Allocation,
    ClusterRoom,
    PipelineView,
    StageDelta,
    StageGauge,
    StageView,
    project_all,
)
from controller.tuning import Tuning

__all__ = ["freeze", "react"]


def react(
    learned: Learned, view: PipelineView, gauges: Sequence[StageGauge], room: ClusterRoom, tuning: Tuning
) -> Action:
    """Raise GPU shares or CPU where more than ``reflex_threshold_s`` of a stage's work is queued.

    Enough is added to serve what arrives and to empty the queue within ``reflex_drain_s``, in whole steps of the grid, inside the
    stage's bounds, the cluster's room and the budget.

    Args:
        learned: For the service times; a stage never measured gets one step.
        view: The pipeline.
        gauges: Queues and arrivals of the last 2 s.
        room: What the cluster could still hold.
        tuning: Thresholds.

    Returns:
        Only rises, HOLD mostly. They are not bound to ±0.2 as a round's steps are.
    """
    if not tuning.reflex:
        return HOLD
    current = {gauge.name: gauge.allocation for gauge in gauges}
    if any(stage.name not in current for stage in view.stages):
        return HOLD
    share = visits(view, learned.ratios)
    entering = max(
        (
            gauge.arrivals_per_s / share[gauge.name]
            for gauge in gauges
            if math.isfinite(gauge.arrivals_per_s) and gauge.name in share
        ),
        default=0.0,
    )
    threshold_s = queue_threshold_s(view, tuning)
    rises = []
    for gauge in gauges:
        stage = view.stage(gauge.name)
        if stage is not None:
            arrivals = max(gauge.arrivals_per_s, 0.0 if stage.after else entering * share[gauge.name])
            rises.append(_rise(threshold_s, stage, gauge, arrivals, learned.fits.get(gauge.name), room, tuning))
    return _affordable(view, current, [delta for delta in rises if delta], room, tuning)


def _rise(
    threshold_s: float,
    stage: StageView,
    gauge: StageGauge,
    arrivals: float,
    fit: StageFit | None,
    room: ClusterRoom,
    tuning: Tuning,
) -> StageDelta:
    allocation, none = gauge.allocation, StageDelta(stage.name)
    if not math.isfinite(gauge.queue_depth) or gauge.queue_depth <= 1.0 or gauge.ready < 1:
        return none
    arrivals = arrivals if math.isfinite(arrivals) else 0.0
    step = GPU_STEP_MILLI if allocation.gpu_rate else CPU_STEP
    if allocation.gpu_rate:
        now, most = allocation.gpu_rate.milli, highest_rate(room, stage, allocation, [allocation.replicas])[0]
    else:
        now, most = int(allocation.cpu), highest_cpu(room, stage, allocation, [allocation.replicas])[0]
    steps_most = math.ceil((most - now) / step) if most > now else 0
    if not steps_most:
        return none
    if fit is None:
        return _step(stage, step) if gauge.queue_depth > threshold_s * max(arrivals, 1.0) else none
    curve = fitted_curve(fit)

    def capacity(value: int) -> float:
        cores = allocation.cpu / 1000 if allocation.gpu_rate else value / 1000
        rate = value / 1000 if allocation.gpu_rate else 1.0
        return capacity_per_s(curve, gauge.ready, cores, rate)

    if gauge.queue_depth <= threshold_s * capacity(now):
        return none
    needed = arrivals + gauge.queue_depth / tuning.reflex_drain_s
    if capacity(now) >= needed:
        return none
    for steps in range(1, steps_most + 1):
        if capacity(min(most, now + steps * step)) >= needed:
            return _step(stage, min(steps * step, most - now))
    return _step(stage, most - now)


def _step(stage: StageView, amount: int) -> StageDelta:
    return StageDelta(stage.name, gpu_milli=amount) if stage.uses_gpu else StageDelta(stage.name, cpu=amount)


def _affordable(
    view: PipelineView, current: Mapping[str, Allocation], rises: list[StageDelta], room: ClusterRoom, tuning: Tuning
) -> Action:
    """As much of the rises as fits and can be paid for: the most halved until it does."""
    while rises:
        action = Action.of(rises)
        after = effective_cost(project_all(current, action).values(), tuning.prices)
        if after <= view.budget_per_hour and misfit(view, current, action, room) is None:
            return action
        rises = [each for each in map(_halved, rises) if each]
    return HOLD


def _halved(delta: StageDelta) -> StageDelta:
    """Half as many whole steps; none if it was one."""
    return StageDelta(
        delta.stage,
        cpu=delta.cpu // 2 // CPU_STEP * CPU_STEP,
        gpu_milli=delta.gpu_milli // 2 // GPU_STEP_MILLI * GPU_STEP_MILLI,
    )


def queue_threshold_s(view: PipelineView, tuning: Tuning) -> float:
    """How much work may be queued at a stage before that is an alarm: the tuning's, or a quarter of the SLO if that is more."""
    return max(tuning.reflex_threshold_s, 0.25 * view.slo_s)


def freeze(learned: Learned, now: float, tuning: Tuning) -> Learned:
    """After the reflex acted: no downward step for a while."""
    return replace(learned, frozen_until_s=max(learned.frozen_until_s, now + tuning.freeze_s))
