"""The reward of a round: latency, cost, SLO, foresight and Pareto terms (SAIR, arXiv 2601.22397)."""

from __future__ import annotations

import math
from typing import Final

from controller.experience import Outcome, RewardTerms
from controller.frontier import Frontier, point_of
from controller.state import Action, Observation
from controller.tuning import Tuning

__all__ = ["LATENCY_RATIO_CAP", "foresaw", "outcome_of", "pareto_term", "reward_terms"]

LATENCY_RATIO_CAP: Final = 4.0
"""ℓ counts no further than this: the quadratic term is −18 there, and one lost round must not drown the kernel means."""


def outcome_of(observation: Observation, budget_per_hour: float) -> Outcome:
    """Where a round ended. No finished request while some arrive counts as the worst latency; without arrivals ℓ is 0."""
    p99 = observation.p99_s
    if p99 is None or not math.isfinite(p99) or p99 < 0:
        latency = LATENCY_RATIO_CAP if observation.arrivals_per_s > 0 or observation.missed else 0.0
    else:
        latency = min(LATENCY_RATIO_CAP, p99 / observation.slo_s)
    cost = observation.cost_per_hour / budget_per_hour if math.isfinite(observation.cost_per_hour) else 1.0
    answered = observation.completed + max(0, observation.missed)
    return Outcome(latency, max(0.0, cost), min(1.0, max(0, observation.missed) / answered) if answered > 0 else 0.0)


def reward_terms(
    outcome: Outcome, previous_latency_ratio: float, frontier: Frontier, *, foresight: bool, tuning: Tuning
) -> RewardTerms:
    """All five terms, R = R_latency + R_cost + R_sla + R_proactive + R_pareto.

    - R_latency = w₁ · clip((ℓ_prev − ℓ)/ℓ_prev, −1, 1)
    - R_cost = −w₂ · c
    - R_sla = −w₃ · max(0, ℓ − 1)²
    - R_proactive = β · 1[ℓ ≤ 1 and a predicted bottleneck gained capacity]
    - R_pareto: see ``pareto_term``; 0 with ``pareto`` off

    Args:
        outcome: (ℓ, c) at the end of the round.
        previous_latency_ratio: ℓ_prev, before the action.
        frontier: What (ℓ, c) is compared with.
        foresight: A predicted bottleneck gained capacity.
        tuning: Weights.
    """
    latency, before = outcome.latency_ratio, previous_latency_ratio
    change = (before - latency) / before if before > 0 else 0.0
    return RewardTerms(
        latency=tuning.latency_weight * min(1.0, max(-1.0, change)),
        cost=-tuning.cost_weight * outcome.cost_ratio,
        sla=-tuning.sla_weight * max(0.0, latency - 1.0) ** 2,
        proactive=tuning.proactive_bonus if foresight and latency <= 1.0 else 0.0,
        pareto=pareto_term(outcome, frontier, tuning.distance) if tuning.pareto else 0.0,
    )


def pareto_term(outcome: Outcome, frontier: Frontier, distance: str = "igd+") -> float:
    """R_pareto = 1 + H(y) for a non-dominated y = (ℓ, c), H its hypervolume contribution; else 0.8/(1 + d(y))."""
    point = point_of(outcome)
    if frontier.accepts(point):
        return 1.0 + frontier.contribution(point)
    return 0.8 / (1.0 + frontier.distance(point, distance))


def foresaw(action: Action, bottleneck: str | None) -> bool:
    """Whether the stage that was predicted to be the bottleneck gained capacity and lost none."""
    if bottleneck is None:
        return False
    delta = action.on(bottleneck)
    return max(delta.replicas, delta.cpu, delta.gpu_milli) > 0 and min(delta.replicas, delta.cpu, delta.gpu_milli) >= 0
