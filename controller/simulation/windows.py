"""What a metrics window shows of the engine: rates, percentiles, utilisation, service times."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.simulation.engine import Engine
from controller.simulation.stage import StageQueue
from controller.state import Allocation, BatchTimes, StageObservation
from sair.quantities import GpuRate

__all__ = ["observe_stage", "peak_rate", "slope"]

_FEWEST_SERVICES: Final = 8
"""Below this a variance says nothing."""

_PEAK_S: Final = 5.0


def slope(values: Sequence[float] | NDArray[np.float64], step_s: float) -> float:
    """Least-squares slope of equidistant values, per second; 0 for fewer than 3."""
    series = np.asarray(values, dtype=float)
    if len(series) < 3:
        return 0.0
    times = (np.arange(len(series)) - (len(series) - 1) / 2) * step_s
    return float(times @ series / (times @ times))


def peak_rate(arrivals: Sequence[float], since: float, now: float) -> float:
    """Highest rate over 5 s (or over all there is, if that is less) between two moments, in steps of 1 s; per second."""
    width = min(_PEAK_S, now - since)
    if width <= 0:
        return 0.0
    starts = np.arange(now - width, since - 1e-9, -1.0)
    counts = [bisect_right(arrivals, start + width) - bisect_right(arrivals, start) for start in starts]
    return max(counts) / width


def observe_stage(
    engine: Engine,
    place: int,
    *,
    since: float,
    wished: Allocation,
    replicas: tuple[int, int],
    granted_milli: int | None,
) -> StageObservation:
    """One stage between ``since`` and the engine's now.

    Utilisations come from the exact busy time of the replicas; which part of it is the CPU's and which the GPU's from the service law
    at the window's mean batch. While a kernel runs its replica's GPU counts as used in full, as a driver counts it. The service time
    is a replica's busy time per task; its squared coefficient of variation is that of a service, which is a batch where the stage
    batches.

    Args:
        engine: The engine.
        place: Number of the stage.
        since: Beginning of the window, seconds.
        wished: What was last asked for.
        replicas: (ready, starting).
        granted_milli: Lowest share granted to a ready replica.
    """
    queue, law = engine.queues[place], engine.stages[place].law
    end, begin = engine.sample(place), engine.sample_at(place, since)
    span = max(end.time_s - begin.time_s, 1e-9)
    durations, sizes = _services(queue, since)
    share = (granted_milli or 1000) / 1000
    cores = wished.cpu / 1000
    batch = float(sizes.mean()) if len(sizes) else 1.0
    busy = (end.busy_s - begin.busy_s) / max(end.ready_s - begin.ready_s, 1e-9)
    time_s = law.time_s(batch, cores, share)
    sojourns = _sojourns(queue, since)
    samples = engine.samples[place]
    first = bisect_right(samples, since, key=lambda sample: sample.time_s)
    scv = None
    if len(durations) >= _FEWEST_SERVICES:
        scv = float(durations.var() / durations.mean() ** 2)
    return StageObservation(
        name=engine.stages[place].name,
        allocation=wished,
        ready=replicas[0],
        starting=replicas[1],
        granted=GpuRate(granted_milli) if granted_milli else None,
        queue_depth=end.queue,
        queue_slope=slope([sample.queue for sample in samples[first:]], 1.0),
        arrivals_per_s=(end.arrived - begin.arrived) / span,
        departures_per_s=(end.done - begin.done) / span,
        cpu_utilisation=busy * law.core_seconds(batch, share) / (cores * time_s),
        gpu_utilisation=busy * law.gpu_time_s(batch, share) / time_s,
        service_s=float(durations.sum() / sizes.sum()) if len(sizes) else None,
        service_scv=scv,
        p99_s=float(np.percentile(sojourns, 99)) if len(sojourns) else None,
        mean_batch=float(sizes.mean()) if len(sizes) else None,
        batches=_by_size(durations, sizes) if law.max_batch > 1 else (),
    )


def _by_size(durations: NDArray[np.float64], sizes: NDArray[np.float64]) -> tuple[BatchTimes, ...]:
    """The services of each batch size, as a server tells them that labels its service times with the size."""
    found = []
    for size in np.unique(sizes):
        own = durations[sizes == size]
        scv = float(own.var(ddof=1) / own.mean() ** 2) if len(own) >= _FEWEST_SERVICES else None
        found.append(BatchTimes(int(size), float(len(own)), float(own.mean()), scv))
    return tuple(found)


def _services(queue: StageQueue, since: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Durations (seconds) and sizes of the services that ended after ``since``."""
    first = bisect_right(queue.batch_t, since)
    return np.array(queue.batch_s[first:]), np.array(queue.batch_n[first:], dtype=float)


def _sojourns(queue: StageQueue, since: float) -> NDArray[np.float64]:
    """Time in the stage, waiting included, of the tasks that left after ``since``; seconds."""
    first = bisect_right(queue.departed_t, since)
    admitted = queue.admitted_t
    entered = np.array([admitted[entry] for entry in queue.departed_entry[first:]], dtype=np.float64)
    return np.asarray(np.array(queue.departed_t[first:], dtype=np.float64) - entered)
