"""What a run looked like over time, for plots and reports."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from controller.simulation.plant import Plant
from controller.simulation.statistics import all_latencies

__all__ = ["Recorder", "Recording", "StageSeries"]

Series = NDArray[np.float64]

_GRAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class StageSeries:
    """One stage over time, a value per grain."""

    name: str
    ready: Series
    replicas: Series
    """Ready and starting."""
    cores: Series
    """Per replica, as wished."""
    gpu_share: Series
    """Per replica, as wished; 0 for a CPU stage."""
    queue: Series


@dataclass(frozen=True, slots=True)
class Recording:
    """A run over time; all series have one value per grain."""

    time_s: Series
    arrivals_per_s: Series
    p99_s: Series
    """Of the requests that arrived in the grain; a failed one counts with the client's timeout. NaN where none arrived."""
    missed: Series
    """Requests that arrived in the grain and missed the SLO."""
    effective_usd_per_hour: Series
    stages: tuple[StageSeries, ...]
    slo_s: float
    grain_s: float = _GRAIN_S


class Recorder:
    """Looks at a plant every few seconds.

    Args:
        plant: Advanced through the recorder, or by anybody who calls ``look`` afterwards.
    """

    def __init__(self, plant: Plant, grain_s: float = _GRAIN_S) -> None:
        self._plant = plant
        self._grain_s = grain_s
        self._rows: list[list[tuple[float, float, float, float, float]]] = []

    def advance(self, to: float) -> None:
        """Advance the plant, looking at it at every grain on the way."""
        while self._plant.now < to:
            self._plant.advance(min(to, (len(self._rows) + 1) * self._grain_s))
            self.look()

    def look(self) -> None:
        """Note the state if a grain is full."""
        while self._plant.now >= (len(self._rows) + 1) * self._grain_s:
            self._rows.append([self._row(place, name) for place, name in enumerate(self._plant.wished)])

    def _row(self, place: int, name: str) -> tuple[float, float, float, float, float]:
        allocation = self._plant.wished[name]
        ready, starting = self._plant.replicas(name)
        share = allocation.gpu_rate.fraction if allocation.gpu_rate else 0.0
        queue = self._plant.engine.queues[place].queue_depth()
        return (ready, ready + starting, allocation.cpu / 1000, share, queue)

    def finish(self, until_s: float) -> Recording:
        """The recording up to a moment; call it when the plant has drained."""
        plant, grain = self._plant, self._grain_s
        grains = min(len(self._rows), int(until_s // grain))
        table = np.array(self._rows[:grains], dtype=float).reshape(grains, len(plant.wished), 5)
        latency = all_latencies(plant)
        bins = (np.array(plant.engine.requests.arrivals[: plant.engine.arrived]) // grain).astype(np.int64)
        missed = np.bincount(bins, latency > plant.view.slo_s, grains)[:grains].astype(np.float64)
        bill = np.array([(one.time_s, one.effective_usd) for one in plant.bill])
        times = np.arange(1, grains + 1, dtype=np.float64) * grain
        spent = np.interp(np.concatenate([[0.0], times]), bill[:, 0], bill[:, 1])
        counted = np.where(np.isfinite(latency), latency, plant.setup.timeout_s)
        starts = np.searchsorted(bins, np.arange(grains + 1))
        p99 = np.array(
            [np.percentile(counted[first:last], 99) if last > first else np.nan for first, last in pairwise(starts)]
        )
        return Recording(
            time_s=times,
            arrivals_per_s=np.bincount(bins, minlength=grains)[:grains] / grain,
            p99_s=p99,
            missed=missed,
            effective_usd_per_hour=np.diff(spent) / grain * 3600,
            stages=tuple(
                StageSeries(name, *(table[:, place, column] for column in range(5)))
                for place, name in enumerate(plant.wished)
            ),
            slo_s=plant.view.slo_s,
            grain_s=grain,
        )
