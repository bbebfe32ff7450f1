"""End-to-end latency of a pipeline from its stages' histograms. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.observe.histogram import Histogram, is_open, quantile, share_below
from controller.observe.series import StageWindow
from controller.state import PipelineView
from sair.errors import MetricsUnavailable

__all__ = ["EndToEnd", "end_to_end", "entering", "finished_per_s", "sinks"]


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """Seconds, and the share of requests within the SLO; None if nothing finished."""

    p50_s: float | None
    p99_s: float | None
    within: float | None


def sinks(view: PipelineView) -> list[str]:
    """The stages after which none comes."""
    upstream = {name for stage in view.stages for name in stage.after}
    return [stage.name for stage in view.stages if stage.name not in upstream]


def entering(rates_per_s: Iterable[float]) -> float:
    """Requests per second that enter, from what arrives at the stages that begin: a request goes to each of them."""
    return max(rates_per_s, default=0.0)


def finished_per_s(view: PipelineView, windows: Mapping[str, StageWindow]) -> float:
    """Requests per second that are done: a request is when it has left each of the last stages."""
    return min((windows[name].departures_per_s for name in sinks(view)), default=0.0)


def end_to_end(view: PipelineView, windows: Mapping[str, StageWindow]) -> EndToEnd:
    """Read the last stages' own histogram of the whole pipeline where there is one.

    Otherwise the stages' quantiles are summed along the slowest path, which is exact for constant delays and else too high: too
    much capacity is the safe side.

    Args:
        view: The pipeline.
        windows: Of each of its stages.

    Raises:
        MetricsUnavailable: If P99 lies above the highest finite bucket and that is below the SLO: nobody can say whether it holds.
    """
    own = {name: windows[name].pipeline for name in sinks(view) if windows[name].pipeline.total > 0}
    if own:
        name, worst = max(own.items(), key=lambda item: (is_open(item[1], 0.99), quantile(item[1], 0.99) or 0.0))
        _check(f"the pipeline as stage {name} exports it", worst, view.slo_s)
        return EndToEnd(quantile(worst, 0.5), quantile(worst, 0.99), share_below(worst, view.slo_s))
    for stage, window in windows.items():
        _check(f"stage {stage}", window.latency, view.slo_s)
    p50, p99 = (
        _along(view, {name: quantile(window.latency, q) for name, window in windows.items()}) for q in (0.5, 0.99)
    )
    shares = [share_below(window.latency, view.slo_s) for window in windows.values()]
    return EndToEnd(p50, p99, None if p99 is None else min((share or 0.0 for share in shares), default=None))


def _check(what: str, histogram: Histogram, slo_s: float) -> None:
    highest = histogram.bounds[-2] if len(histogram.bounds) > 1 else 0.0
    if is_open(histogram, 0.99) and highest < slo_s:
        raise MetricsUnavailable(
            f"P99 of {what} lies above its highest bucket, {highest:g} s; buckets up to the SLO of {slo_s:g} s are needed"
        )


def _along(view: PipelineView, latencies: Mapping[str, float | None]) -> float | None:
    """The slowest path; None as soon as a stage finished nothing."""
    until: dict[str, float] = {}
    for stage in view.stages:
        latency = latencies[stage.name]
        if latency is None:
            return None
        until[stage.name] = latency + max((until[name] for name in stage.after), default=0.0)
    return max(until.values(), default=None)
