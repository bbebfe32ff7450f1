"""The share of a GPU that a stage's replicas are to have, as the controller left it in the Pipeline's status. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sair.annotations import Bounds
from sair.pipeline import Pipeline
from sair.quantities import GpuRate

__all__ = ["StageWish", "stage_wish"]


@dataclass(frozen=True, slots=True)
class StageWish:
    """One stage's wish, and the bounds that the Pipeline's author set for it; None where there is none."""

    rate: GpuRate
    low: GpuRate | None = None
    high: GpuRate | None = None

    def within(self, own: Bounds) -> GpuRate:
        """The share a replica is to have: the wish within the Pipeline's bounds, or within the replica's own where that sets none."""
        low, high = self.low or own.gpu_rate_min, self.high or own.gpu_rate_max
        rate = self.rate if low is None else max(self.rate, low)
        return rate if high is None else min(rate, high)


def stage_wish(pipeline: Pipeline, stage: str) -> StageWish | None:
    """Read the wish for one stage's replicas; None where nobody but the user sets rates.

    It counts while the pipeline is scaled automatically: for the user (``spec.mode``), and for the controller (``status.mode``),
    which may be holding still because the stages contradict each other.

    Raises:
        InvalidInput: If the rate or a bound is none; names it.
    """
    if (pipeline.spec.mode or "auto") != "auto" or (pipeline.status.mode or "auto") != "auto":
        return None
    status = pipeline.status.stage(stage)
    if status is None or status.gpu_rate is None:
        return None
    bounds = pipeline.spec.bounds.get(stage)
    return StageWish(
        GpuRate.parse(status.gpu_rate, field=f"Pipeline {pipeline.key} status.stages[{stage}].gpuRate"),
        _bound(bounds.gpu_rate_min, stage, "gpuRateMin") if bounds else None,
        _bound(bounds.gpu_rate_max, stage, "gpuRateMax") if bounds else None,
    )


def _bound(text: str | None, stage: str, name: str) -> GpuRate | None:
    return GpuRate.parse(text, field=f"spec.bounds.{stage}.{name}") if text else None
