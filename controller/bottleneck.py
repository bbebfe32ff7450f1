"""Which stage holds the pipeline back: in a tandem of queues the one with the highest utilisation."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["bottleneck", "utilisations"]


def utilisations(loads: Mapping[str, tuple[float, int, float]]) -> dict[str, float]:
    """λ/(c · μ(ρ)) of each stage.

    Args:
        loads: For each stage arrivals per second, serving replicas, and mean service time in seconds at what they are granted.
    """
    return {
        name: rate * service_s / replicas if replicas > 0 else float("inf")
        for name, (rate, replicas, service_s) in loads.items()
    }


def bottleneck(loads: Mapping[str, tuple[float, int, float]], *, floor: float = 0.0) -> str | None:
    """argmax over stages of λ/(c · μ(ρ)); None if there are no stages or none is busier than ``floor``.

    The stage with the highest utilisation has the largest marginal effect on latency [SAIR, arXiv 2601.22397].
    """
    busy = utilisations(loads)
    if not busy:
        return None
    name = max(busy, key=lambda each: busy[each])
    return name if busy[name] > floor else None
