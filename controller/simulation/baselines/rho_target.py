"""ρ-target: replicas stay, each stage's share (or CPU) follows its utilisation.

Every 5 s: ρ ← ρ · utilisation / target, up at once, down to the highest wish of the last 60 s. A CPU stage's cores follow in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from controller.simulation.baselines.policy import Seen, clamp_cpu, clamp_rate, limits_of
from controller.state import Allocation, PipelineView, StageObservation

__all__ = ["RateTarget", "wanted_amount"]

DOWN_AFTER_S: Final = 60.0


def wanted_amount(amount: float, utilisation: float, target: float) -> float:
    """amount · utilisation / target: what would be used to the target at the same load."""
    return amount * utilisation / target


class RateTarget:
    """The law for all stages of a pipeline.

    Args:
        view: The pipeline.
        target: Wanted utilisation of share and CPU.
        down_after_s: How long a lower demand must last.
        hold_within: Relative changes smaller than this are not worth a patch.
    """

    interval_s: float = 5.0
    window_s: float = 5.0
    name: str = "ρ-target"

    def __init__(
        self,
        view: PipelineView,
        *,
        target: float = 0.6,
        down_after_s: float = DOWN_AFTER_S,
        hold_within: float = 0.05,
        name: str = "ρ-target",
    ) -> None:
        self.name = name
        self._view = view
        self._targets = {stage.name: target for stage in view.stages}
        self._down_after_s = down_after_s
        self._hold_within = hold_within
        self._wishes: dict[str, list[tuple[float, float]]] = {stage.name: [] for stage in view.stages}

    def decide(self, seen: Seen, now: float) -> Mapping[str, Allocation] | None:
        """One step of the law for every stage."""
        wanted = {}
        for stage in seen.observation.stages:
            allocation = self._follow(stage, now)
            if allocation != stage.allocation:
                wanted[stage.name] = allocation
        return wanted

    def set_targets(self, targets: Mapping[str, float]) -> None:
        """Other targets by stage, from the next step on."""
        self._targets.update(targets)

    def _follow(self, stage: StageObservation, now: float) -> Allocation:
        rate = stage.allocation.gpu_rate
        current = float(stage.allocation.cpu if rate is None else rate.milli)
        used = stage.cpu_utilisation if rate is None else stage.gpu_utilisation
        wishes = self._wishes[stage.name]
        wishes.append((now, wanted_amount(current, used, self._targets[stage.name])))
        wishes[:] = [wish for wish in wishes if wish[0] > now - self._down_after_s]
        amount = max(wish[1] for wish in wishes)
        if amount < current and now < self._down_after_s:
            return stage.allocation
        if abs(amount - current) <= self._hold_within * current:
            return stage.allocation
        limits = limits_of(self._view, stage.name)
        if rate is None:
            return replace(stage.allocation, cpu=clamp_cpu(amount, limits))
        return replace(stage.allocation, gpu_rate=clamp_rate(amount, limits))
