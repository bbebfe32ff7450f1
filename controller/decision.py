"""What travels through a round: a proposal, the guardrails' verdicts on it, and the decision that is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from controller.state import HOLD, Action, Allocation, ClusterRoom, Observation, PipelineView

__all__ = ["Decision", "Proposal", "Situation", "Verdict"]


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything a round sees of the world."""

    view: PipelineView
    observation: Observation
    room: ClusterRoom
    now: float
    """World time, seconds."""

    @property
    def latency_limit_s(self) -> float:
        """What predicted P99 may use: preference · SLO."""
        return self.view.preference * self.view.slo_s


@dataclass(frozen=True, slots=True)
class Proposal:
    """An action somebody wants, before the guardrails."""

    action: Action
    policy: str
    """Who proposes: llm, in-context, hold, probe."""
    reason: str = ""
    candidate: int | None = None
    """Number of the menu's candidate; None for an action of the proposer's own."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One guardrail's word on a proposal."""

    rule: str
    outcome: Literal["pass", "changed", "rejected"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The record of one round's decision: what was wished, what the guardrails let through and why."""

    pipeline: str
    round: int
    time_s: float
    policy: str
    wished: Action
    action: Action
    """What is applied; HOLD if nothing was let through."""
    before: dict[str, Allocation]
    after: dict[str, Allocation]
    """Allocations to ask the world for."""
    verdicts: tuple[Verdict, ...]
    reason: str = ""
    candidate: int | None = None
    bottleneck: str | None = None
    predicted_p99_s: float | None = None
    predicted_cost_per_hour: float | None = None
    predicted_reward: float | None = None
    epsilon: float = 0.0

    @property
    def held(self) -> bool:
        """Nothing changes."""
        return self.action == HOLD

    @property
    def rejected(self) -> bool:
        """A guardrail refused the whole proposal."""
        return any(verdict.outcome == "rejected" for verdict in self.verdicts)
