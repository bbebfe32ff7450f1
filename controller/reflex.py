"""The reflex: between two rounds it adds capacity that takes effect at once where a queue builds up. It never takes any away."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from controller.capacity import highest_cpu, highest_rate, misfit
from controller.cost import effective_cost
from controller.identification import StageFit, fitted_curve
from controller.knowledge import Learned
from controller.model import ServiceCurve, capacity_per_s
from controller.peak import awaited_peak, usual_rate
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

__all__ = [
    "SAME_MOMENT_S",
    "Queues",
    "acted_since",
    "freeze",
    "frozen",
    "look_every_s",
    "queue_threshold_s",
    "react",
    "surge_rate",
    "wakes",
    "watch_every_s",
]

_SLOS_PER_LOOK: Final = 2.0
_SLOWEST_S: Final = 2.0
_ALARMING: Final = 0.25
"""Part of the SLO that is an alarm when it is queued."""
_LOOKS_PER_S: Final = 200.0
_CROWDED_S: Final = 5.0
"""What a process has time for beside its rounds: a look takes a good millisecond, most of it for the scrape; from 1,000 pipelines on
rounds and looks take what they take."""
_NOTHING: Final[Mapping[str, float]] = {}
_NOTICEABLE: Final = 1.1
"""By what factor its CPU must raise what a GPU stage can serve for the reflex to raise it."""
_SURGE_SIGNIFICANCE: Final = 6.0
"""By how many standard deviations of a Poisson count arrivals must exceed the usual. With 4.5 runs cost up to three per cent more."""
_WATCHES_PER_LOOK: Final = 5.0
SAME_MOMENT_S: Final = 1e-6
"""A glance so shortly before a look is the look."""
_FREEZE_MOST_S: Final = 3600.0
_STANDS_S: Final = 1.5
"""A queue that has not become shorter for so long stays."""


@dataclass(slots=True)
class Queues:
    """What was queued at the looks of the last seconds."""

    _looks: list[tuple[float, Mapping[str, float]]] = field(default_factory=list)

    def seen(self, now: float, gauges: Sequence[StageGauge]) -> Mapping[str, float]:
        """Take a look in; returns the queues of a look that is far enough back to say that a queue stays, none if there is no such look."""
        self._looks.append((now, {gauge.name: gauge.queue_depth for gauge in gauges}))
        while len(self._looks) > 1 and self._looks[1][0] <= now - _STANDS_S:
            self._looks.pop(0)
        at_s, queued = self._looks[0]
        return queued if at_s <= now - _STANDS_S else _NOTHING

    def changed(self) -> None:
        """Something was raised: what was queued before says nothing of what is there now."""
        self._looks.clear()


def look_every_s(view: PipelineView, tuning: Tuning, pipelines: int = 1) -> float:
    """Seconds from one look of the reflex to the next.

    What arrives in a burst before the first look is late, so that a pipeline is looked at every two SLOs: at most every
    ``reflex_interval_s``, at least every 2 s. A process that could not look at all its pipelines so often looks less often, at least
    every 5 s.

    Args:
        view: The pipeline.
        tuning: ``reflex_interval_s``.
        pipelines: How many this process looks at.
    """
    wanted, affordable = min(_SLOWEST_S, _SLOS_PER_LOOK * view.slo_s), min(_CROWDED_S, pipelines / _LOOKS_PER_S)
    return max(tuning.reflex_interval_s, wanted, affordable)


def watch_every_s(learned: Learned, view: PipelineView, tuning: Tuning, pipelines: int = 1) -> float | None:
    """Seconds from one glance at the arrivals to the next, between two looks; None where memory waits for no burst.

    A known burst is met as soon as arrivals leave the usual, before anything is queued. A fifth of the time between two looks, less
    often where a process has so many pipelines that it could not.
    """
    look_s = look_every_s(view, tuning, pipelines)
    every_s = max(look_s / _WATCHES_PER_LOOK, pipelines / _LOOKS_PER_S)
    return every_s if every_s < look_s and surge_rate(learned, look_s, tuning) < math.inf else None


def wakes(learned: Learned, view: PipelineView, gauges: Sequence[StageGauge], tuning: Tuning) -> bool:
    """Whether there is anything to react to: work that is queued, a burst of a known kind, or arrivals that analogues foresee. ``react``
    holds otherwise."""
    if not tuning.reflex:
        return False
    return (
        _expected(learned, tuning) > 0
        or _surges(learned, view, gauges, tuning)
        or any(_alarms(learned, view, gauges, tuning))
    )


def react(
    learned: Learned,
    view: PipelineView,
    gauges: Sequence[StageGauge],
    room: ClusterRoom,
    tuning: Tuning,
    queued_before: Mapping[str, float] = _NOTHING,
) -> Action:
    """Raise GPU shares or CPU where more than ``queue_threshold_s`` of a stage's work is queued, in a burst a quarter of the SLO.

    Enough is added to serve what arrives and to empty the queue within ``reflex_drain_s``, in whole steps of the grid, inside the
    stage's bounds, the cluster's room and the budget. Once one stage is alarmed, the others are raised to what enters the pipeline:
    the queue would only move on to them; and where arrivals have left the usual while memory waits for a burst, at once to the whole
    reserve. Such a burst is met before anything is queued, with all the CPU that the reserve counts on. What analogues foresee is raised to
    before it comes. A queue that stays where the model sees capacity enough contradicts the model and is believed: the stage gets
    one step.

    Args:
        learned: For the service times; a stage never measured gets one step.
        view: The pipeline.
        gauges: Queues, and arrivals since about the look before.
        room: What the cluster could still hold.
        tuning: Thresholds.
        queued_before: Queue of each stage at an earlier look, by which a queue is judged to stay.

    Returns:
        Only rises, HOLD mostly. They are not bound to ±0.2 as a round's steps are.
    """
    current = {gauge.name: gauge.allocation for gauge in gauges}
    if not tuning.reflex or any(stage.name not in current for stage in view.stages):
        return HOLD
    share = visits(view, learned.ratios)
    entering = max(
        (_finite(gauge.arrivals_per_s) / share[gauge.name] for gauge in gauges if gauge.name in share), default=0.0
    )
    seen = _seen(learned, view, gauges)
    alarmed = _alarms(learned, view, gauges, tuning)
    expected = _expected(learned, tuning)
    surge = _surges(learned, view, gauges, tuning)
    if not any(alarmed) and not expected > 0 and not surge:
        return HOLD
    knobs = [(_knob(stage, gauge, fit, room), entering * share[gauge.name]) for stage, gauge, fit in seen]
    whole = max(expected, _foreseen(learned, entering, tuning) if any(alarmed) or surge else 0.0)
    rises = []
    for (knob, rate), loud in zip(knobs, alarmed, strict=True):
        backlog = knob.queue / tuning.reflex_drain_s if loud else 0.0
        wanted = whole * share[knob.stage.name]
        arriving = max(knob.arrivals_per_s, rate) if any(alarmed) else 0.0
        rise = knob.rise_to(max(arriving, wanted) + backlog, 1.0 if surge else _NOTICEABLE)
        stays = knob.queue >= queued_before.get(knob.stage.name, math.inf)
        rises.append(rise or knob.one_step() if loud and stays else rise)
    return _affordable(view, current, [delta for delta in rises if delta], room, tuning)


def _seen(
    learned: Learned, view: PipelineView, gauges: Sequence[StageGauge]
) -> list[tuple[StageView, StageGauge, StageFit | None]]:
    """The stages with a ready replica."""
    stages = ((view.stage(gauge.name), gauge) for gauge in gauges)
    return [
        (stage, gauge, learned.fits.get(gauge.name)) for stage, gauge in stages if stage is not None and gauge.ready > 0
    ]


def _alarms(learned: Learned, view: PipelineView, gauges: Sequence[StageGauge], tuning: Tuning) -> list[bool]:
    """Which of them have more than ``queue_threshold_s`` of work queued. While arrivals have left the usual a part of the SLO is enough: a
    queue just below the alarm would be no chance then, and stay for as long as the burst does."""
    threshold_s = queue_threshold_s(view, tuning)
    if 0 < tuning.burst_ratio * usual_rate(learned.peaks) < _entering(view, gauges):
        threshold_s = min(threshold_s, _ALARMING * view.slo_s)
    return [
        (queue := _finite(gauge.queue_depth)) > 1.0 and queue > threshold_s * _capacity(stage, gauge, fit)
        for stage, gauge, fit in _seen(learned, view, gauges)
    ]


def _expected(learned: Learned, tuning: Tuning) -> float:
    """What analogues foresee, requests per second; 0 if nothing."""
    return _finite(learned.foreseen_per_s) if tuning.analogues else 0.0


def _foreseen(learned: Learned, entering_per_s: float, tuning: Tuning) -> float:
    """What to raise to once arrivals leave the usual: at once to all that is held in reserve, because a burst is steeper than one look, as
    long as memory waits for one. Otherwise to what enters: chance too brings a count of half a second beyond the usual."""
    usual = usual_rate(learned.peaks)
    if not tuning.remember_peaks or entering_per_s <= tuning.burst_ratio * usual:
        return entering_per_s
    peak = awaited_peak(learned.peaks, learned.peaks.updated_s, tuning)
    # With what is kept in reserve beyond it: what piled up before this look has to be served as well.
    return max(entering_per_s, tuning.remembered_factor * peak)


def _surges(learned: Learned, view: PipelineView, gauges: Sequence[StageGauge], tuning: Tuning) -> bool:
    """A burst of the kind that memory knows begins where requests enter."""
    return _entering(view, gauges) > surge_rate(learned, look_every_s(view, tuning), tuning)


def _entering(view: PipelineView, gauges: Sequence[StageGauge]) -> float:
    """Arrivals at the busiest stage where requests enter, per second."""
    sources = {stage.name for stage in view.stages if not stage.after}
    return max((_finite(gauge.arrivals_per_s) for gauge in gauges if gauge.name in sources), default=0.0)


def surge_rate(learned: Learned, over_s: float, tuning: Tuning) -> float:
    """From which rate on arrivals are a burst of the kind that memory knows, requests per second; infinite if it waits for none.

    Args:
        learned: For the peaks.
        over_s: Over how long arrivals are counted: what chance adds to so many counts for nothing.
        tuning: ``burst_ratio``.
    """
    usual = usual_rate(learned.peaks)
    if not tuning.remember_peaks or usual <= 0 or over_s <= 0:
        return math.inf
    least = max(tuning.burst_ratio * usual, usual + _SURGE_SIGNIFICANCE * math.sqrt(usual / over_s))
    return least if awaited_peak(learned.peaks, learned.peaks.updated_s, tuning) > least else math.inf


def _finite(value: float) -> float:
    return max(0.0, value) if math.isfinite(value) else 0.0


@dataclass(frozen=True, slots=True)
class _Knob:
    """The knob of a stage that takes effect at once: its GPU share, with its CPU where that is not enough; or its CPU alone."""

    stage: StageView
    curve: ServiceCurve | None
    ready: int
    cores: float
    queue: float
    arrivals_per_s: float
    now: int
    most: int
    """What bounds and room allow."""
    step: int
    most_cpu: int
    """The same of the CPU of a GPU stage, millicores; never below what it has."""

    def capacity_per_s(self, value: int, cpu: int = 0) -> float:
        """At a setting of the knob; without a measurement what arrives counts as what can be served."""
        if self.curve is None:
            return self.arrivals_per_s
        cores, rate = (max(self.cores, cpu / 1000), value / 1000) if self.stage.uses_gpu else (value / 1000, 1.0)
        return capacity_per_s(self.curve, self.ready, cores, rate)

    def rise_to(self, needed_per_s: float, noticeable: float) -> StageDelta:
        """The least rise in whole steps that serves so much, the largest there is if none does.

        Args:
            needed_per_s: At this stage.
            noticeable: By what factor its CPU must raise what a GPU stage can serve for the CPU to be raised.
        """
        if self.curve is None:
            return self.one_step() if needed_per_s > self.arrivals_per_s else self._by(0)
        value = self.now
        while value < self.most and self.capacity_per_s(value) < needed_per_s:
            value = min(self.most, value + self.step)
        rise = self._by(value - self.now)
        if not self.stage.uses_gpu or self.capacity_per_s(value) >= needed_per_s:
            return rise
        cpu = now = round(1000 * self.cores)
        while cpu < self.most_cpu and self.capacity_per_s(value, cpu) < needed_per_s:
            cpu = min(self.most_cpu, cpu + CPU_STEP)
        if self.capacity_per_s(value, cpu) < noticeable * self.capacity_per_s(value):
            # Another replica will need that CPU.
            return rise
        return StageDelta(self.stage.name, cpu=cpu - now, gpu_milli=rise.gpu_milli)

    def one_step(self) -> StageDelta:
        """One step of the grid, less where bounds or room end before it."""
        return self._by(min(self.step, self.most - self.now))

    def _by(self, amount: int) -> StageDelta:
        more = max(0, amount)
        return (
            StageDelta(self.stage.name, gpu_milli=more)
            if self.stage.uses_gpu
            else StageDelta(self.stage.name, cpu=more)
        )


def _capacity(stage: StageView, gauge: StageGauge, fit: StageFit | None) -> float:
    """Tasks per second that the ready replicas serve as they are; without a measurement what arrives counts as what can be served."""
    if fit is None:
        return _finite(gauge.arrivals_per_s)
    rate = gauge.allocation.gpu_rate.fraction if stage.uses_gpu and gauge.allocation.gpu_rate else 1.0
    return capacity_per_s(fitted_curve(fit), gauge.ready, gauge.allocation.cpu / 1000, rate)


def _knob(stage: StageView, gauge: StageGauge, fit: StageFit | None, room: ClusterRoom) -> _Knob:
    allocation, count = gauge.allocation, [gauge.allocation.replicas]
    gpu = allocation.gpu_rate
    return _Knob(
        stage=stage,
        curve=fitted_curve(fit) if fit else None,
        ready=gauge.ready,
        cores=allocation.cpu / 1000,
        queue=_finite(gauge.queue_depth),
        arrivals_per_s=_finite(gauge.arrivals_per_s),
        now=gpu.milli if gpu else int(allocation.cpu),
        most=highest_rate(room, stage, allocation, count)[0] if gpu else highest_cpu(room, stage, allocation, count)[0],
        step=GPU_STEP_MILLI if gpu else CPU_STEP,
        most_cpu=max(int(allocation.cpu), highest_cpu(room, stage, allocation, count)[0]),
    )


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
    return max(tuning.reflex_threshold_s, _ALARMING * view.slo_s)


def frozen(learned: Learned, now: float) -> bool:
    """No downward step yet. What lies further ahead than anything freezes for was written by no controller, and is no freeze."""
    return now < learned.frozen_until_s <= now + _FREEZE_MOST_S


def acted_since(learned: Learned, since_s: float, now: float, tuning: Tuning) -> bool:
    """The reflex moved a knob after a moment. As above, of what lies too far ahead nothing is concluded."""
    return since_s + tuning.freeze_s < learned.frozen_until_s <= now + _FREEZE_MOST_S


def freeze(learned: Learned, now: float, tuning: Tuning) -> Learned:
    """After the reflex acted: no downward step for a while."""
    until_s = now + tuning.freeze_s
    return replace(learned, frozen_until_s=max(learned.frozen_until_s, until_s) if frozen(learned, now) else until_s)
