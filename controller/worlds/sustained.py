"""How long a request keeps a replica that is never idle. Pure."""

from __future__ import annotations

__all__ = ["sustained_service_s"]


def sustained_service_s(
    service_s: float | None, departures_per_s: float, cpu_cores: float | None, replicas: int, cores_each: float
) -> float | None:
    """Measured service time, or the CPU time w of a request over the CPU c of a replica where that is more.

    A CPU quota is refilled ten times a second: a replica that is idle now and then runs ahead within each period, and a request
    seems to take a fraction of what it takes when the next one is always waiting. Capacity and queues follow from the latter.
    w does not depend on the quota, so w/c is right at any load. What a process uses besides (polling, metrics) is in the CPU time
    as well and would weigh on the few requests of a quiet hour; a request's own is never more than the time worked on it.

    Args:
        service_s: Mean time worked on a request, as the replicas tell; None if they do not.
        departures_per_s: Requests finished, over all replicas.
        cpu_cores: Cores used, over all replicas; None if they do not tell.
        replicas: That serve.
        cores_each: CPU of one replica, cores.

    Returns:
        Seconds per request; None if nothing was measured.
    """
    if service_s is None or cpu_cores is None or departures_per_s <= 0 or replicas <= 0 or cores_each <= 0:
        return service_s
    return max(service_s, min(cpu_cores / departures_per_s, service_s) / cores_each)
