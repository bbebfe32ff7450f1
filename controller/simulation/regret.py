"""Regret of a round, split into what retrieval did not cover and what selection did not take.

With values V from rollouts on the same requests, all feasible actions A, the covered ones A(E) ⊆ A (projections of the retrieved
experiences' actions, and no-op) and the action a that was taken:

regret = max over A of V − V(a); coverage = max over A of V − max over A(E) of V; selection = max over A(E) of V − V(a).

The two parts add up to the regret exactly. Selection can be negative where an action outside A(E) was taken (of a model in free mode).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from controller.simulation.plant import Plant
from controller.state import HOLD, Action, Allocation, project_all

__all__ = ["RegretAccount", "RoundRegret", "action_values", "round_regret"]


@dataclass(frozen=True, slots=True)
class RoundRegret:
    """One round; all in units of the value."""

    coverage: float
    selection: float
    probe: bool = False

    @property
    def instantaneous(self) -> float:
        """Best value of all actions − value of the one taken: the two parts telescope to it."""
        return self.coverage + self.selection


def round_regret(
    values: Mapping[Action, float], covered: Iterable[Action], taken: Action, *, probe: bool = False
) -> RoundRegret:
    """Split one round's regret.

    Args:
        values: Value of every feasible action; no-op and the one taken must be among them.
        covered: Feasible projections of the retrieved actions; no-op counts as covered whether or not it is named. Those without a
            value are not feasible and are left out.
        taken: The action applied.
        probe: It was a forced probe.

    Raises:
        ValueError: If no-op or the action taken has no value.
    """
    if taken not in values or HOLD not in values:
        raise ValueError("no-op and the action taken need a value")
    best = max(values.values())
    best_covered = max(values[action] for action in {HOLD, *covered} if action in values)
    own = values[taken]
    return RoundRegret(best - best_covered, best_covered - own, probe)


def action_values(
    plant: Plant,
    actions: Iterable[Action],
    horizon_s: float,
    reward: Callable[[Plant, Action], float],
    *,
    keep_s: float = 60.0,
) -> dict[Action, float]:
    """Value of each action by a rollout from now, all on the same requests, no further change on the way.

    Args:
        plant: Left as it is.
        actions: No-op is valued in any case.
        horizon_s: Length of a rollout, seconds.
        reward: Value of a plant at the end of the rollout of an action.
        keep_s: History that each copy keeps, for a reward that looks back.
    """
    values = {}
    for action in {HOLD, *actions}:
        copy = plant.copy(keep_s=max(keep_s, horizon_s))
        before: Mapping[str, Allocation] = copy.wished
        if action:
            after = project_all(before, action)
            copy.apply({name: one for name, one in after.items() if one != before[name]})
        copy.advance(copy.now + horizon_s)
        values[action] = reward(copy, action)
    return values


@dataclass(slots=True)
class RegretAccount:
    """Regret over a run; forced probes are summed apart, for they are not the policy's choice."""

    rounds: list[RoundRegret] = field(default_factory=list)

    def add(self, regret: RoundRegret) -> None:
        """One more round."""
        self.rounds.append(regret)

    def total(self, *, probes: bool = False) -> RoundRegret:
        """Sums over the rounds that were (not) probes."""
        chosen: Sequence[RoundRegret] = [one for one in self.rounds if one.probe == probes]
        return RoundRegret(
            sum(one.coverage for one in chosen),
            sum(one.selection for one in chosen),
            probes,
        )
