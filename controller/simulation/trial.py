"""A trial: the decision core against a plant, round for round as the controller's loop runs it, but without clock, Redis and journal.

For experiments that need thousands of rounds. What it decides is exactly what ``session.run_sair`` decides on the same seed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from controller import round as rounds
from controller.decision import Decision, Situation
from controller.knowledge import Knowledge, Learned, begin
from controller.menu import Menu
from controller.model import ServiceCurve
from controller.reflex import SAME_MOMENT_S, Queues, look_every_s, react, surge_rate, wakes, watch_every_s
from controller.simulation.baselines.runner import drain
from controller.simulation.engine import Requests
from controller.simulation.pipelines import PipelineSetup
from controller.simulation.plant import Plant
from controller.simulation.recording import Recorder, Recording
from controller.simulation.statistics import RunSummary, summarise
from controller.simulation.workloads import RateSeries, draw_arrivals
from controller.state import HOLD, project_all
from controller.tuning import Tuning

__all__ = ["Trial", "run_trial"]


@dataclass(frozen=True, slots=True)
class Trial:
    """A finished run, drained, with what was learned in it."""

    plant: Plant
    knowledge: Knowledge
    recording: Recording
    duration_s: float
    seed: int
    name: str

    def summary(self, since_s: float = 0.0, until_s: float | None = None) -> RunSummary:
        """Over the requests that arrived in a stretch, and what that stretch cost."""
        end = self.duration_s if until_s is None else until_s
        return summarise(self.plant, self.name, self.seed, since_s=since_s, until_s=end)


OnRound = Callable[[Plant, Knowledge, Menu, Decision], None]


def run_trial(
    setup: PipelineSetup,
    series: RateSeries,
    seed: int,
    *,
    tuning: Tuning | None = None,
    knowledge: Knowledge | None = None,
    priors: Mapping[str, ServiceCurve] | None = None,
    requests: Requests | None = None,
    name: str = "SAIR (built-in policy)",
    on_round: OnRound | None = None,
) -> Trial:
    """Run the built-in policy over a whole workload.

    Args:
        setup: The pipeline; its initial allocation is where the run begins.
        series: Its arrival rate.
        seed: Of arrivals, demands, cold starts and probes.
        tuning: The decision core's parameters; the pipeline's prices are put in.
        knowledge: What an earlier run learned, its times before 0 (``knowledge.moved_by``); its memory is added to.
        priors: A belief about the stages' service times to begin with, where there is no knowledge.
        requests: Drawn before for the same stages, arrivals and seed.
        name: Of the row in a table.
        on_round: Called with the plant, what is known, the round's menu and what was decided, before that is applied.
    """
    tuning = replace(tuning or Tuning(), prices=setup.prices)
    plant = Plant(setup, draw_arrivals(series, seed), seed, requests=requests)
    recorder = Recorder(plant)
    view = plant.view
    learned = knowledge or begin(view, priors)
    rng = np.random.default_rng([seed, zlib.crc32(view.key.encode())])
    queues = Queues()
    before, next_round, every_s = 0.0, tuning.interval_s, look_every_s(view, tuning)
    while plant.now < series.duration_s:
        to = min(next_round, plant.now + every_s)
        to = _next_look(plant, learned.learned, to, every_s, tuning)
        recorder.advance(to)
        if to < next_round:
            gauges = plant.gauges(every_s)
            queued = queues.seen(plant.now, gauges)
            if not wakes(learned.learned, view, gauges, tuning):
                continue
            if action := react(learned.learned, view, gauges, plant.room(), tuning, queued):
                wanted = project_all({gauge.name: gauge.allocation for gauge in gauges}, action)
                plant.apply({delta.stage: wanted[delta.stage] for delta in action.deltas})
                queues.changed()
                learned = rounds.reflexed(learned, action, plant.now, tuning)
            continue
        if plant.now >= series.duration_s:
            break
        learned = _round(plant, learned, min(before, plant.now - tuning.window_s), tuning, rng, on_round)
        before, next_round = plant.now, next_round + tuning.interval_s
    drain(plant)
    return Trial(plant, learned, recorder.finish(series.duration_s), series.duration_s, seed, name)


def _next_look(plant: Plant, learned: Learned, to: float, every_s: float, tuning: Tuning) -> float:
    """``to``, or the moment before at which a glance at the arrivals finds a known burst. Nothing else comes of a glance."""
    step_s, least = watch_every_s(learned, plant.view, tuning), surge_rate(learned, every_s, tuning)
    if step_s is None or plant.entering_per_s(every_s) > least:
        return to
    at = plant.now + step_s
    while at < to - SAME_MOMENT_S and plant.entering_per_s(every_s, at) <= least:
        at += step_s
    return min(at, to)


def _round(
    plant: Plant,
    knowledge: Knowledge,
    peak_since_s: float,
    tuning: Tuning,
    rng: np.random.Generator,
    on_round: OnRound | None,
) -> Knowledge:
    view = plant.view
    observation = plant.observe(tuning.window_s, max(0.0, peak_since_s))
    knowledge, _ = rounds.take_in(knowledge, view, observation, tuning)
    situation = Situation(view, observation, plant.room(), plant.now)
    menu = rounds.candidates(knowledge, situation, tuning)
    proposal = rounds.choose(knowledge, menu, tuning, rng)
    decision = rounds.admit(knowledge, menu, proposal, tuning)
    if on_round is not None:
        on_round(plant, knowledge, menu, decision)
    outcomes = []
    if decision.action != HOLD:
        outcomes = plant.apply({delta.stage: decision.after[delta.stage] for delta in decision.action.deltas})
    return rounds.applied(knowledge, situation, decision, outcomes, tuning)
