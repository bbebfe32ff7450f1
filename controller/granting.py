"""What was granted, as against what was wished. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from controller.state import (
    LOWEST_GPU_MILLI,
    Action,
    Allocation,
    KnobOutcome,
    Observation,
    StageDelta,
    StageObservation,
)

__all__ = ["cores_of", "granted_action", "granted_allocations", "granted_of", "most_cores", "most_milli"]


def granted_allocations(observation: Observation) -> dict[str, Allocation]:
    """What stages have, not what they are wished to have, by name."""
    return {stage.name: granted_of(stage) for stage in observation.stages}


def granted_of(stage: StageObservation) -> Allocation:
    """What a stage has: what was asked for and not granted, and replicas that found no room, have changed nothing."""
    wished = stage.allocation
    cpu = min(wished.cpu, stage.granted_cpu or wished.cpu)
    has = replace(wished, replicas=wished.replicas - stage.waiting, cpu=cpu)
    return has if most_milli(stage) is None else replace(has, gpu_rate=stage.granted)


def cores_of(stage: StageObservation) -> float:
    """Cores that each replica really has."""
    return (stage.granted_cpu or stage.allocation.cpu) / 1000


def most_cores(stage: StageObservation) -> float:
    """Cores that each replica has while more are wished for and not to be had; infinite where nothing is withheld."""
    return cores_of(stage) if cores_of(stage) < stage.allocation.cpu / 1000 else math.inf


def most_milli(stage: StageObservation) -> int | None:
    """The GPU share that was granted where less was than wished for; nothing is concluded from a replica that nobody granted any."""
    wished, granted = stage.allocation.gpu_rate, stage.granted
    if wished is None or granted is None or not LOWEST_GPU_MILLI < granted.milli < wished.milli:
        return None
    return granted.milli


def granted_action(action: Action, outcomes: Sequence[KnobOutcome]) -> Action:
    """The action with each knob as it was granted; knobs without an outcome count as granted."""
    short = {(each.stage, each.knob): each.granted - each.wished for each in outcomes if each.granted != each.wished}
    return Action.of(
        StageDelta(
            delta.stage,
            _less(delta.replicas, short.get((delta.stage, "replicas"), 0)),
            _less(delta.cpu, short.get((delta.stage, "cpu"), 0)),
            _less(delta.memory, short.get((delta.stage, "memory"), 0)),
            _less(delta.gpu_milli, short.get((delta.stage, "gpu_rate"), 0)),
        )
        for delta in action.deltas
    )


def _less(delta: int, missing: int) -> int:
    return max(0, delta + missing) if delta > 0 else min(0, delta + missing)
