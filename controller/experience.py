"""An experience: one round of one pipeline, as memory keeps it."""

from __future__ import annotations

from dataclasses import dataclass

from controller.state import Action, Allocation

__all__ = ["Experience", "Outcome", "RewardTerms"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a round ended: the point that Pareto dominance compares."""

    latency_ratio: float
    """ℓ = P99 / SLO."""
    cost_ratio: float
    """c = cost / budget."""
    miss_ratio: float = 0.0
    """Misses / requests of the interval."""


@dataclass(frozen=True, slots=True)
class RewardTerms:
    """The five terms of the reward; ``pareto`` as it was at the time, recomputed at retrieval."""

    latency: float
    cost: float
    sla: float
    proactive: float
    pareto: float

    @property
    def total(self) -> float:
        """R = R_latency + R_cost + R_sla + R_proactive + R_pareto."""
        return self.latency + self.cost + self.sla + self.proactive + self.pareto


@dataclass(frozen=True, slots=True)
class Experience:
    """One round: context, action as applied, outcome, reward."""

    id: str
    """Sorts by time: zero-padded round number and the shard's writer, unique in its pipeline."""
    pipeline: str
    round: int
    time_s: float
    """Unix time in a cluster, simulated time in the simulator."""
    context: tuple[float, ...]
    """Features of the state, scaled by fixed ranges to about [0, 1]."""
    action: Action
    """What was granted and applied, not what was wished."""
    before: tuple[tuple[str, Allocation], ...]
    load_bucket: int
    """Bucket of the arrival rate; each has a frontier of its own."""
    previous_latency_ratio: float
    outcome: Outcome
    reward: RewardTerms
    surprisal: float
    predicted_reward: float | None
    """The model's prediction when the action was chosen."""
    policy: str
    """Who decided: llm, in-context, hold, probe."""
    arrivals_per_s: float
    bottleneck: str | None = None
    note: str = ""
    """Free text of a model, for people; never fed back into a prompt."""
