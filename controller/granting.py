"""What was granted, as against what was wished. Pure."""

from __future__ import annotations

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

__all__ = ["granted_action", "granted_allocations", "granted_of"]


def granted_allocations(observation: Observation) -> dict[str, Allocation]:
    """What stages have, not what they are wished to have, by name."""
    return {stage.name: granted_of(stage) for stage in observation.stages}


def granted_of(stage: StageObservation) -> Allocation:
    """What a stage has: a share that was asked for and not granted, and replicas that found no room, have changed nothing."""
    wished = stage.allocation
    has = replace(wished, replicas=wished.replicas - stage.waiting)
    if stage.granted is None or wished.gpu_rate is None:
        return has
    short = LOWEST_GPU_MILLI < stage.granted.milli < wished.gpu_rate.milli
    return replace(has, gpu_rate=stage.granted) if short else has


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
