"""A kernel bandit on SAIR's own memory: same rounds, context, actions, reward and kernels, and nothing else.

It has no queueing model, no guardrails beyond the bounds, no reserve, no reflex and no language model: what SAIR does better than this is
what those add. Every 30 s it takes the single-knob step of the highest upper confidence bound, the kernel mean of rewards near (context,
action) plus a bonus that falls with the support.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from controller.experience import Experience, RewardTerms
from controller.features import context_vector
from controller.frontier import Frontiers, load_bucket, point_of
from controller.retrieval import Memory
from controller.reward import outcome_of, reward_terms
from controller.simulation.baselines.policy import Seen
from controller.state import (
    CPU_STEP,
    GPU_STEP_MILLI,
    HOLD,
    Action,
    Allocation,
    Observation,
    PipelineView,
    StageDelta,
    StageView,
    project,
    project_all,
)
from controller.tuning import Tuning

__all__ = ["KernelBandit", "steps_within"]

ROUND_S: Final = 30.0
WINDOW_S: Final = 15.0


def steps_within(view: PipelineView, allocations: Mapping[str, Allocation]) -> list[Action]:
    """No-op and every single-knob step of the action grid that stays within the bounds."""
    found = [HOLD]
    for stage in view.stages:
        for delta in _deltas(stage):
            after = project(allocations[stage.name], delta)
            if after != allocations[stage.name] and _within(stage, after):
                found.append(Action.of([delta]))
    return found


def _deltas(stage: StageView) -> list[StageDelta]:
    deltas = [StageDelta(stage.name, replicas=count) for count in (-1, 1, 2)]
    deltas += [StageDelta(stage.name, cpu=step) for step in (-CPU_STEP, CPU_STEP)]
    if stage.uses_gpu:
        deltas += [StageDelta(stage.name, gpu_milli=count * GPU_STEP_MILLI) for count in (-4, -2, 2, 4)]
    return deltas


def _within(stage: StageView, allocation: Allocation) -> bool:
    limits, rate = stage.limits, allocation.gpu_rate
    return (
        limits.replicas_min <= allocation.replicas <= limits.replicas_max
        and limits.cpu_min <= allocation.cpu <= limits.cpu_max
        and (rate is None or limits.gpu_milli_min <= rate.milli <= limits.gpu_milli_max)
    )


class KernelBandit:
    """The bandit of one run.

    Args:
        view: The pipeline.
        tuning: Weights of the reward and of the kernels.
        bonus: Of an action without any support, in units of reward.
        name: As the table has it.
    """

    interval_s: float = ROUND_S
    window_s: float = WINDOW_S

    def __init__(
        self, view: PipelineView, *, tuning: Tuning | None = None, bonus: float = 0.3, name: str = "kernel bandit"
    ) -> None:
        self.name = name
        self._view = view
        self._tuning = tuning or Tuning()
        self._bonus = bonus
        self._memory = Memory([stage.name for stage in view.stages])
        self._frontiers = Frontiers({})
        self._rewards: list[float] = []
        self._pending: tuple[tuple[float, ...], Action, Observation, float] | None = None

    @property
    def rewards(self) -> list[float]:
        """Of all rounds so far."""
        return list(self._rewards)

    def decide(self, seen: Seen, now: float) -> Mapping[str, Allocation] | None:
        """Reward the last round, remember it, and take the most promising step."""
        observation = seen.observation
        self._learn(observation, now)
        context = context_vector(observation, self._view)
        actions = steps_within(self._view, observation.allocations)
        predictions = self._memory.predict(context, actions, self._tuning)
        bounds = [one.mean + self._bonus / math.sqrt(1 + one.support) for one in predictions]
        action = actions[max(range(len(actions)), key=bounds.__getitem__)]
        self._pending = context, action, observation, self._expected
        return {
            name: allocation
            for name, allocation in project_all(observation.allocations, action).items()
            if allocation != observation.allocations[name]
        }

    @property
    def _expected(self) -> float:
        """Mean reward so far: what an action without support is taken to bring."""
        return sum(self._rewards) / len(self._rewards) if self._rewards else 0.0

    def _learn(self, observation: Observation, now: float) -> None:
        if self._pending is None:
            return
        context, action, before, expected = self._pending
        budget = self._view.budget_per_hour
        outcome, earlier = outcome_of(observation, budget), outcome_of(before, budget)
        bucket = load_bucket(observation.arrivals_per_s)
        terms: RewardTerms = reward_terms(
            outcome, earlier.latency_ratio, self._frontiers.at(bucket), foresight=False, tuning=self._tuning
        )
        self._frontiers = self._frontiers.add(bucket, point_of(outcome))
        self._rewards.append(terms.total)
        self._memory.add(
            Experience(
                id=f"{len(self._rewards):08d}",
                pipeline=self._view.key,
                round=len(self._rewards),
                time_s=now,
                context=context,
                action=action,
                before=tuple(before.allocations.items()),
                load_bucket=bucket,
                previous_latency_ratio=earlier.latency_ratio,
                outcome=outcome,
                reward=terms,
                surprisal=0.0,
                predicted_reward=expected,
                policy="bandit",
                arrivals_per_s=observation.arrivals_per_s,
            ),
            self._tuning,
        )
