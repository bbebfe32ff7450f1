"""What it takes to have the allocations of before a round again. Pure: the plan, in words, before anything is asked of a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.state import Allocation

__all__ = ["Change", "Plan", "plan_rollback"]


@dataclass(frozen=True, slots=True)
class Change:
    """One knob of one stage."""

    stage: str
    knob: str
    """replicas, cpu, memory or gpu_rate."""
    now: int
    then: int

    def __str__(self) -> str:
        unit = {"replicas": "", "cpu": "m", "memory": "Mi", "gpu_rate": "/1000 of a GPU"}[self.knob]
        return f"{self.stage}: {self.knob} {self.now}{unit} → {self.then}{unit}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A rollback."""

    changes: tuple[Change, ...]
    wanted: Mapping[str, Allocation]
    """Allocations to ask for, of the stages that change."""
    gone: tuple[str, ...] = ()
    """Stages that existed then and do not any more."""
    new: tuple[str, ...] = ()
    """Stages that exist now and did not then; they stay as they are."""


def plan_rollback(then: Mapping[str, Allocation], now: Mapping[str, Allocation]) -> Plan:
    """Compare.

    Args:
        then: Allocations before the round, by stage.
        now: Allocations at present, by stage.
    """
    changes: list[Change] = []
    wanted: dict[str, Allocation] = {}
    for stage in sorted(then.keys() & now.keys()):
        old, new = then[stage], now[stage]
        found = [
            Change(stage, knob, have, had)
            for knob, have, had in (
                ("replicas", new.replicas, old.replicas),
                ("cpu", int(new.cpu), int(old.cpu)),
                ("memory", int(new.memory), int(old.memory)),
                ("gpu_rate", _milli(new), _milli(old)),
            )
            # A stage that was moved to or from the GPU since has no share to go back to.
            if have != had and not (knob == "gpu_rate" and (old.gpu_rate is None or new.gpu_rate is None))
        ]
        if found:
            changes += found
            wanted[stage] = Allocation(
                old.replicas, old.cpu, old.memory, old.gpu_rate if old.gpu_rate and new.gpu_rate else new.gpu_rate
            )
    return Plan(
        tuple(changes), wanted, tuple(sorted(then.keys() - now.keys())), tuple(sorted(now.keys() - then.keys()))
    )


def _milli(allocation: Allocation) -> int:
    return 0 if allocation.gpu_rate is None else allocation.gpu_rate.milli
