"""The controller's wishes for stages: how they are read out of a Pipeline, and what each replica is to have by them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from extender.replica import Replica
from sair.errors import InvalidInput, WireError
from sair.pipeline import parse_pipeline
from sair.quantities import GpuRate
from sair.wishes import StageWish, stage_wish

__all__ = ["PipelineWishes", "Wishes", "parse_wishes"]


@dataclass(frozen=True, slots=True)
class PipelineWishes:
    """What one pipeline's replicas are to have, by stage; stages that are not named keep what their pods' annotations say."""

    pipeline: str
    """``namespace/name``."""
    stages: Mapping[str, StageWish]


def parse_wishes(raw: Mapping[str, Any]) -> PipelineWishes:
    """Read a raw Pipeline.

    Raises:
        WireError: If it is malformed, as one whose wish is no rate is.
    """
    pipeline = parse_pipeline(raw)
    try:
        wishes = {stage.name: stage_wish(pipeline, stage.name) for stage in pipeline.status.stages}
    except InvalidInput as error:
        raise WireError(error.field, error.value, error.allowed) from error
    return PipelineWishes(pipeline.key, {stage: wish for stage, wish in wishes.items() if wish is not None})


class Wishes:
    """What all stages' replicas are to have, and which pods these are."""

    def __init__(self) -> None:
        self._stages: dict[str, Mapping[str, StageWish]] = {}
        self._members: dict[str, set[str]] = {}

    def desired(self, replica: Replica) -> GpuRate | None:
        """What a replica is to have: what is wished for its stage, or else what its annotation says; None without a GPU."""
        wish = self._stages.get(replica.pipeline_key, {}).get(replica.stage)
        return replica.desired if wish is None or replica.desired is None else wish.within(replica.bounds)

    def join(self, replica: Replica) -> None:
        """Count a replica to its stage."""
        self._members.setdefault(replica.stage_key, set()).add(replica.uid)

    def leave(self, replica: Replica) -> None:
        """Count a replica to its stage no more."""
        members = self._members.get(replica.stage_key, set())
        members.discard(replica.uid)
        if not members:
            self._members.pop(replica.stage_key, None)

    def take(self, wishes: PipelineWishes) -> frozenset[str]:
        """Take in a pipeline's wishes as they are now, and give the uids of the replicas that they changed for."""
        before = self._stages.pop(wishes.pipeline, {})
        if wishes.stages:
            self._stages[wishes.pipeline] = wishes.stages
        changed = (
            stage for stage in before.keys() | wishes.stages.keys() if before.get(stage) != wishes.stages.get(stage)
        )
        return frozenset(uid for stage in changed for uid in self._members.get(f"{wishes.pipeline}/{stage}", ()))
