"""The service time of a stage that does not export it, from what it does export. Pure; meant to err towards too long."""

from __future__ import annotations

import math
from itertools import pairwise

from controller.observe.histogram import Histogram

__all__ = ["estimated_service_s", "mean_latency_s"]


def mean_latency_s(latency: Histogram) -> float | None:
    """Mean of a latency histogram, each request in the middle of its bucket; None if nothing was counted or some lie in +Inf."""
    if latency.total <= 0 or len(latency.bounds) < 2 or latency.counts[-2] < latency.total:
        return None
    total, low = latency.counts[0] * max(0.0, latency.bounds[0]) / 2, latency.bounds[0]
    for (below, count), high in zip(pairwise(latency.counts), latency.bounds[1:], strict=True):
        if count > below:
            total += (count - below) * (low + high) / 2
        low = high
    return total / latency.total


def estimated_service_s(
    latency: Histogram,
    queues: tuple[float, float],
    arrivals_per_s: float,
    departures_per_s: float,
    replicas: int,
    cpu_s: float | None,
) -> float | None:
    """Busy time of one replica per request, where nobody measured it.

    - Requests wait at both ends of the window: no replica was ever idle, so S = replicas / departures.
    - Else by Little's law, wait = queue / arrivals with the shorter of the two queues: S = latency − wait. Too long rather than too
      short, because the queue in between may have been longer.
    - Unless replicas would have had to work more than all the time for that: then each serves several requests at once, and how
      many it can serve is known from its CPU time alone, if at all.

    Args:
        latency: Of the window, waiting included.
        queues: Requests waiting at its beginning and its end, over all replicas.
        arrivals_per_s: Over all replicas.
        departures_per_s: The same.
        replicas: Those that serve.
        cpu_s: CPU time of a request over the CPU of a replica, seconds; None if unknown.

    Returns:
        Seconds; None if there is nothing to go by: such a stage is never made smaller.
    """
    whole, waiting = mean_latency_s(latency), max(0.0, min(queues))
    if replicas <= 0 or not 0 < departures_per_s < math.inf or not math.isfinite(waiting):
        return None
    if waiting >= replicas:
        return replicas / departures_per_s
    if whole is None or not 0 < arrivals_per_s < math.inf:
        return None
    working = max(0.0, whole - waiting / arrivals_per_s)
    if working > 0 and working * departures_per_s <= replicas:
        return max(working, cpu_s or 0.0)
    return cpu_s if cpu_s is not None and cpu_s > 0 else None
