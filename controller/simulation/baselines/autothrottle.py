"""An Autothrottle-style controller (microsoft/autothrottle): a slow contextual bandit sets targets for fast local loops.

The Tower decides every 60 s. Context: requests per second. Arms: a target for the CPU stages and one for the GPU stages. Cost as
published: in [0, 1] the normalised allocation while the SLO is met, in [2, 3] 2 + the normalised latency when it is missed.
Exploration is ε-greedy to arms next to the present one, over a kernel mean of costs by context.

The Captains hold the target in each stage. The published ones read the kernel's CFS throttle counts and set CPU quotas; there is no
such counter here, nor for a GPU's share, so they hold a utilisation instead, with the same asymmetry: up at once in proportion to the
excess, down to the highest demand of the last 30 s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Final

from controller.cost import effective_cost
from controller.simulation.baselines.policy import Seen
from controller.simulation.baselines.rho_target import RateTarget
from controller.simulation.pipelines import PipelineSetup
from controller.simulation.service import stream
from controller.state import Allocation
from sair.quantities import GpuRate

__all__ = ["Autothrottle", "Tower", "tower_cost"]

TOWER_S: Final = 60.0
CAPTAIN_S: Final = 2.0
TARGETS: Final = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_FULL: Final = GpuRate(1000)
_BANDWIDTH: Final = 0.25
"""Of the kernel, in units of log(requests per second)."""


def tower_cost(usd: float, most_usd: float, p99_s: float | None, slo_s: float) -> float:
    """[0, 1] by allocation if the SLO is met, [2, 3] by latency if it is missed (1 at twice the SLO and above)."""
    if p99_s is not None and p99_s > slo_s:
        return 2 + min(1.0, (p99_s - slo_s) / slo_s)
    return min(1.0, usd / most_usd)


class Tower:
    """The bandit.

    Args:
        seed: Of its exploration.
        epsilon: Probability of exploring.
    """

    def __init__(self, seed: int, epsilon: float = 0.1) -> None:
        self._arms = list(product(TARGETS, TARGETS))
        self._rounds: list[tuple[float, int, float]] = []
        self._random = stream(seed, "autothrottle")
        self._epsilon = epsilon

    @property
    def arms(self) -> list[tuple[float, float]]:
        """(target of the CPU stages, target of the GPU stages)."""
        return list(self._arms)

    def learn(self, rate_per_s: float, arm: tuple[float, float], cost: float) -> None:
        """One round's outcome."""
        self._rounds.append((math.log(max(rate_per_s, 0.1)), self._arms.index(arm), cost))

    def expected_cost(self, rate_per_s: float, arm: tuple[float, float]) -> float:
        """Kernel mean over past rounds near in load and in both targets; an arm never seen near is taken to be cheap (optimism)."""
        context = math.log(max(rate_per_s, 0.1))
        weights = total = 0.0
        for seen, number, cost in self._rounds:
            other = self._arms[number]
            apart = ((seen - context) / _BANDWIDTH) ** 2
            apart += sum(((one - two) / 0.07) ** 2 for one, two in zip(arm, other, strict=True))
            weight = math.exp(-apart / 2)
            weights += weight
            total += weight * cost
        prior = 0.05
        return (total + prior * (1 - sum(arm) / 2)) / (weights + prior)

    def choose(self, rate_per_s: float, current: tuple[float, float]) -> tuple[float, float]:
        """The arm for the next round; from one round to the next a target moves by one notch at most."""
        near = [
            arm
            for arm in self._arms
            if all(abs(TARGETS.index(one) - TARGETS.index(two)) <= 1 for one, two in zip(arm, current, strict=True))
        ]
        if self._random.random() < self._epsilon:
            return near[int(self._random.integers(len(near)))]
        return min(near, key=lambda arm: self.expected_cost(rate_per_s, arm))


class Autothrottle:
    """Tower and Captains for one pipeline; replicas stay.

    Args:
        setup: Its prices and SLO count.
        seed: Of the Tower's exploration.
        name: As the table has it.
    """

    interval_s: float = CAPTAIN_S
    window_s: float = CAPTAIN_S

    def __init__(self, setup: PipelineSetup, seed: int, *, name: str = "Autothrottle-style") -> None:
        self.name = name
        self._setup = setup
        view = setup.view
        self._uses_gpu = {stage.name: stage.uses_gpu for stage in view.stages}
        self._captains = RateTarget(view, down_after_s=30.0)
        self._tower = Tower(seed)
        self._arm = (0.5, 0.5)
        self._round: list[tuple[float, float | None, float]] = []
        self._next_tower = TOWER_S
        largest = [
            Allocation(
                stage.initial.replicas, stage.limits.cpu_max, stage.initial.memory, stage.initial.gpu_rate and _FULL
            )
            for stage in setup.stages
        ]
        self._most_usd = effective_cost(largest, setup.prices)

    def decide(self, seen: Seen, now: float) -> Mapping[str, Allocation] | None:
        """Captains every 2 s, the Tower every 60 s."""
        observation = seen.observation
        usd = effective_cost(observation.allocations.values(), self._setup.prices)
        self._round.append((observation.arrivals_per_s, observation.p99_s, usd))
        if now >= self._next_tower:
            self._next_tower += TOWER_S
            count = len(self._round)
            rate = sum(one[0] for one in self._round) / count
            latencies = sorted(one[1] for one in self._round if one[1] is not None)
            p99 = latencies[int(0.95 * (len(latencies) - 1))] if latencies else None
            spent = sum(one[2] for one in self._round) / count
            self._tower.learn(rate, self._arm, tower_cost(spent, self._most_usd, p99, self._setup.slo_s))
            self._arm = self._tower.choose(rate, self._arm)
            self._round.clear()
        self._captains.set_targets({name: self._arm[gpu] for name, gpu in self._uses_gpu.items()})
        return self._captains.decide(seen, now)
