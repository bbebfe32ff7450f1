"""One round of one pipeline as a pure state machine.

The loop calls, with the world's answers as values::

    knowledge, experience = take_in(knowledge, view, observation, tuning)   # experience of the round before; None if none is pending
    menu = candidates(knowledge, situation, tuning)                 # admissible candidates with digests, experiences to show
    proposal = choose(knowledge, menu, tuning, rng)                 # or probe(...) or what a language model answers
    decision = admit(knowledge, menu, proposal, tuning)             # guardrails in order, every verdict kept
    outcomes = <the world applies decision.after>
    knowledge = applied(knowledge, situation, decision, outcomes, tuning)

and between two rounds, every ``look_every_s``, if something ``wakes`` it, what ``react`` of ``controller.reflex`` says, followed by
``knowledge = reflexed(knowledge, action, now, tuning)`` if anything of that was granted; the next round begins with ``reacted``.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from controller.analogues import GROWTH_LEAST, expected_growth, remember
from controller.applying import applied, reacted, reflexed, undone
from controller.bottleneck import bottleneck
from controller.decision import Decision, Proposal, Situation
from controller.experience import Experience
from controller.features import context_vector
from controller.frontier import GLOBAL, load_bucket
from controller.granting import cores_of, granted_allocations
from controller.guardrails import Case
from controller.identification import fit_stage
from controller.knowledge import Knowledge, Learned, begin, learn, restore, stored
from controller.menu import Menu, compose, model_reward
from controller.peak import record
from controller.planning import cheapest, steps_towards
from controller.plausible import RATE_MOST, RESIDUAL_MOST, plausible_rate
from controller.policies.in_context import decide
from controller.prediction import PipelineModel
from controller.probing import epsilon, forced_probe
from controller.reflex import acted_since
from controller.refusing import admitted
from controller.reward import foresaw, outcome_of, reward_terms
from controller.state import (
    ClusterRoom,
    Observation,
    PipelineView,
    difference,
    project_all,
)
from controller.tuning import Tuning

__all__ = [
    "admit",
    "applied",
    "begin",
    "candidates",
    "choose",
    "conclude",
    "learn",
    "observe",
    "probe",
    "reacted",
    "reflexed",
    "restore",
    "stored",
    "take_in",
    "undone",
]

_RATIO_WEIGHT = 0.2
_RESIDUAL_WEIGHT = 0.25
_SURGE_MOST = 20.0
_SURGE_LEAST_PER_S = 100.0
"""A peak counts up to 20 times the usual rate, or 100/s if that is more: bursts are three to five times it, and those that are really
larger lift the usual rate as they come again."""
_SAMPLES_LEAST = 100
"""Requests that a P99 must rest on to correct the model."""


def observe(knowledge: Knowledge, view: PipelineView, observation: Observation, tuning: Tuning) -> Knowledge:
    """Fold an observation in: service times and variance, fan-outs, peaks, analogues, the model's residual.

    A window in which the reflex moved a knob measures two allocations at once and does not count for service times.
    """
    learned, now = knowledge.learned, observation.time_s
    moved = acted_since(learned, now - observation.window_s, now, tuning)
    fits = dict(learned.fits)
    for stage in observation.stages:
        fit = fits.get(stage.name)
        if moved and fit is not None:
            continue
        fresh = fit_stage(
            fit,
            stage,
            window_s=observation.window_s,
            now=now,
            half_life_s=tuning.identification_half_life_s,
            learn=tuning.identification,
        )
        if fresh is not None:
            fits[stage.name] = fresh
    most = _believable_per_s(learned, observation)
    rate = min(observation.arrivals_per_s, most)
    peaks = record(learned.peaks, rate, min(observation.arrivals_peak_per_s, most), now, tuning)
    growth = (
        expected_growth(learned.analogues, peaks, rate, observation.arrivals_slope, now, tuning.analogues_ahead_s)
        if tuning.analogues and math.isfinite(rate)
        else 1.0
    )
    learned = replace(
        learned,
        fits=fits,
        foreseen_per_s=plausible_rate(rate * growth) if growth >= GROWTH_LEAST else 0.0,
        ratios=_ratios(learned.ratios, view, observation),
        residual=_residual(knowledge, view, observation, moved, tuning),
        peaks=peaks,
        analogues=remember(
            learned.analogues,
            peaks,
            rate,
            observation.arrivals_slope,
            peaks.recent[-1][1] if peaks.recent else 0.0,
            now,
            tuning.analogues_ahead_s,
        )
        if tuning.analogues
        else learned.analogues,
    )
    return replace(knowledge, learned=learned)


def _believable_per_s(learned: Learned, observation: Observation) -> float:
    """Up to which rate a peak is remembered: one wrong counter must not keep every replica for days. In the first window what was
    answered is all there is to compare with."""
    answered = max(0, observation.completed) / max(1.0, observation.window_s)
    usual = answered if learned.peaks.first_s is None else learned.peaks.base
    return min(RATE_MOST, max(_SURGE_LEAST_PER_S, _SURGE_MOST * usual))


def _residual(knowledge: Knowledge, view: PipelineView, observation: Observation, moved: bool, tuning: Tuning) -> float:
    """Fold log(observed P99 / predicted P99) in, where the pipeline was calm enough for a stationary model to say anything."""
    old = knowledge.learned.residual
    if moved or observation.p99_s is None or not observation.p99_s > 0 or observation.completed < _SAMPLES_LEAST:
        return old
    model = PipelineModel.of(knowledge, Situation(view, observation, ClusterRoom(()), observation.time_s), tuning)
    if not model.complete or observation.p99_s > 2.0 * observation.slo_s:
        return old
    rate = observation.arrivals_per_s
    forecast = model.forecast(observation.allocations, arrivals_per_s=rate, only_ready=True, backlog=False, caution=0.0)
    plain = forecast.p99_s / model.correction
    if not plain > 0 or max(forecast.utilisations.values()) > tuning.utilisation_limit:
        return old
    seen = min(RESIDUAL_MOST, max(-RESIDUAL_MOST, math.log(observation.p99_s) - math.log(plain)))
    return old + _RESIDUAL_WEIGHT * (seen - old)


def _ratios(old: dict[str, float], view: PipelineView, observation: Observation) -> dict[str, float]:
    """Tasks that arrive at each stage per task that leaves the stages above, smoothed over about five rounds."""
    ratios = dict(old)
    for stage in view.stages:
        seen = observation.stage(stage.name)
        above = [observation.stage(name) for name in stage.after]
        rates = [each.departures_per_s for each in above if each is not None]
        entering = sum(rates) / len(rates) if rates else observation.arrivals_per_s
        if seen is None or not entering > 0.5 or not 0 < seen.arrivals_per_s < math.inf:
            continue
        now = min(100.0, max(0.01, seen.arrivals_per_s / entering))
        ratios[stage.name] = (
            now if stage.name not in ratios else ratios[stage.name] + _RATIO_WEIGHT * (now - ratios[stage.name])
        )
    return ratios


def conclude(
    knowledge: Knowledge, observation: Observation, view: PipelineView, tuning: Tuning, *, writer: str = "0"
) -> Experience | None:
    """The experience of the round that was waiting for its outcome; None if none was.

    The action is what the allocations show: what was granted, and what the reflex added since.

    Args:
        knowledge: With the pending round; memory and frontiers as they were.
        observation: The settled window after it.
        view: For the budget.
        tuning: Weights.
        writer: Part of the id that tells the writers of one pipeline's memory apart.
    """
    pending = knowledge.learned.pending
    if pending is None:
        return None
    outcome = outcome_of(observation, view.budget_per_hour)
    bucket = load_bucket(observation.arrivals_per_s)
    before = dict(pending.before)
    after = {**before, **{name: each for name, each in granted_allocations(observation).items() if name in before}}
    action = difference(before, after, sorted(before))
    frontier = knowledge.frontiers.at(GLOBAL if tuning.frontier_scope == "global" else bucket)
    reward = reward_terms(
        outcome, pending.latency_ratio, frontier, foresight=foresaw(action, pending.bottleneck), tuning=tuning
    )
    return Experience(
        id=f"{pending.round:08d}-{writer}",
        pipeline=knowledge.pipeline,
        round=pending.round,
        time_s=pending.time_s,
        context=pending.context,
        action=action,
        before=pending.before,
        load_bucket=bucket,
        previous_latency_ratio=pending.latency_ratio,
        outcome=outcome,
        reward=reward,
        surprisal=0.0,
        # What was predicted of another action says nothing of this one.
        predicted_reward=pending.predicted_reward if action == pending.action else None,
        policy=pending.policy,
        arrivals_per_s=observation.arrivals_per_s,
        bottleneck=pending.bottleneck,
    )


def take_in(
    knowledge: Knowledge, view: PipelineView, observation: Observation, tuning: Tuning, *, writer: str = "0"
) -> tuple[Knowledge, Experience | None]:
    """What every round does with what it saw: conclude the one before, learn from it, fold the observation in.

    Args:
        knowledge: With the pending round, if any.
        view: As it is now.
        observation: The settled window.
        tuning: As always.
        writer: Part of the experience's id.

    Returns:
        The new knowledge, in which nothing is pending, and the experience of the round before; None if none was pending.
    """
    experience = conclude(knowledge, observation, view, tuning, writer=writer)
    if experience is not None:
        knowledge, surprisal = learn(knowledge, experience, tuning)
        experience = replace(experience, surprisal=surprisal)
        knowledge = replace(knowledge, learned=replace(knowledge.learned, pending=None))
    return observe(knowledge, view, observation, tuning), experience


def candidates(knowledge: Knowledge, situation: Situation, tuning: Tuning) -> Menu:
    """The menu of this round. Pure, and the same for every policy that chooses from it."""
    learned, observation, view = knowledge.learned, situation.observation, situation.view
    rate = observation.arrivals_per_s
    growth = learned.foreseen_per_s / rate if learned.foreseen_per_s > 0 and rate > 0 else 1.0
    model = PipelineModel.of(knowledge, situation, tuning, growth)
    current = observation.allocations
    case = Case(situation, learned, model)
    plan, planned = None, []
    if model.stages and all(stage.name in current for stage in view.stages):
        plan = cheapest(model, current, situation.latency_limit_s, situation.room)
        planned = steps_towards(model, current, plan, situation.latency_limit_s, situation.room)
    context = context_vector(observation, view)
    recollections = tuple(knowledge.memory.retrieve(context, knowledge.frontiers, tuning))
    hot = _hot(model, observation)
    return compose(knowledge, case, plan, planned, recollections, context, hot, tuning)


def _hot(model: PipelineModel, observation: Observation) -> str | None:
    loads = {}
    for stage in observation.stages:
        fitted = model.stages.get(stage.name)
        rate = stage.granted or stage.allocation.gpu_rate
        if fitted is not None:
            each = 1.0 / fitted.capacity_per_s(1.0, cores_of(stage), rate.fraction if rate else 1.0)
            arrivals = max(stage.arrivals_per_s, observation.arrivals_per_s * fitted.visits)
            loads[stage.name] = (arrivals, stage.ready, each)
    return bottleneck(loads)


def choose(knowledge: Knowledge, menu: Menu, tuning: Tuning, rng: np.random.Generator) -> Proposal:
    """A forced probe with probability ε, else the built-in policy."""
    return probe(knowledge, menu, tuning, rng) or decide(menu)


def probe(knowledge: Knowledge, menu: Menu, tuning: Tuning, rng: np.random.Generator) -> Proposal | None:
    """This round's forced probe, if the dice want one and something safe is left to try."""
    number = forced_probe(menu.safe, knowledge.learned.round, tuning, rng)
    if number is None:
        return None
    chance = epsilon(knowledge.learned.round, tuning)
    return Proposal(menu[number].action, "probe", f"forced probe (ε = {chance:.3f}) of a safe action", number)


def admit(knowledge: Knowledge, menu: Menu, proposal: Proposal, tuning: Tuning) -> Decision:
    """Pass a proposal through the guardrails and record what each said. What was refused lately is left out first.

    Args:
        knowledge: For the round's number.
        menu: Of this round; it carries the situation and the model.
        proposal: Of any policy; actions from the menu pass as they are, others are cut or refused.
        tuning: ε and weights.
    """
    case = menu.case
    situation, current = case.situation, case.current
    action, verdicts = admitted(proposal.action, case)
    after = project_all(current, action)
    known = all(stage.name in current for stage in situation.view.stages)
    expected = (
        case.model.forecast(after, arrivals_per_s=situation.observation.arrivals_per_s, only_ready=True, caution=0.0)
        if known
        else None
    )
    reward = None
    if expected is not None and case.model.complete:
        foresight = foresaw(action, menu.bottleneck)
        reward = model_reward(situation, knowledge, expected.p99_s, expected.cost_per_hour, foresight, tuning)
    return Decision(
        pipeline=situation.view.key,
        round=knowledge.learned.round,
        time_s=situation.now,
        policy=proposal.policy,
        wished=proposal.action,
        action=action,
        before=dict(current),
        after=after,
        verdicts=verdicts,
        reason=proposal.reason,
        candidate=proposal.candidate,
        bottleneck=menu.bottleneck,
        predicted_p99_s=expected.p99_s if expected is not None and case.model.complete else None,
        predicted_cost_per_hour=expected.cost_per_hour if expected else None,
        predicted_reward=reward,
        epsilon=epsilon(knowledge.learned.round, tuning),
    )
