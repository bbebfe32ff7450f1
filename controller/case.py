"""What a guard judges by, and how an action is rewritten delta by delta."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from controller.decision import Situation
from controller.knowledge import Learned
from controller.prediction import PipelineModel
from controller.state import Action, Allocation, StageDelta

__all__ = ["Case", "breached", "each_delta", "no_fall"]


@dataclass(frozen=True)
class Case:
    """What a guard judges by."""

    situation: Situation
    learned: Learned
    model: PipelineModel

    @cached_property
    def current(self) -> dict[str, Allocation]:
        """Allocations now; a stage that was not observed is missing."""
        return self.situation.observation.allocations


def breached(case_or_situation: Case | Situation) -> bool:
    """P99 above the SLO, or requests arrive and none finishes."""
    situation = case_or_situation.situation if isinstance(case_or_situation, Case) else case_or_situation
    observation = situation.observation
    if observation.p99_s is None:
        return observation.arrivals_per_s > 0
    return not observation.p99_s <= situation.view.slo_s


def each_delta(action: Action, change: Callable[[StageDelta], StageDelta]) -> Action:
    """Rewrite each delta of an action; what becomes empty is dropped."""
    changed = tuple(map(change, action.deltas))
    return action if changed == action.deltas else Action.of(changed)


def no_fall(delta: StageDelta) -> StageDelta:
    """The delta with its rises alone."""
    return StageDelta(
        delta.stage, max(0, delta.replicas), max(0, delta.cpu), max(0, delta.memory), max(0, delta.gpu_milli)
    )
