"""The loads that the rate has to hold for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OVERLAPPING", "PAIR_SHAPES", "RATES", "SHAPES", "SYNCED", "Shape"]


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to keep a GPU busy."""

    name: str
    """What tables call it."""
    load: str
    """Argument of the load generator: ``kind:kernel_us:grid[:option…]``."""
    kernel_ms: float
    """Longest single piece of work."""


SHAPES = (
    Shape("1 ms, grid 8192, async", "kernel:1000:8192", 1.0),
    Shape("1 ms, grid 8192, sync", "kernel:1000:8192:sync", 1.0),
    Shape("200 us, grid 132", "kernel:200:132", 0.2),
    Shape("5 ms, grid 132", "kernel:5000:132", 5.0),
    Shape("50 ms, grid 65536, sync", "kernel:50000:65536:sync", 50.0),
    Shape("cooperative, 1 ms", "cooperative:1000:132", 1.0),
    Shape("_ptsz, 1 ms", "ptsz:1000:8192", 1.0),
    Shape("graph, 1 ms", "graph:1000:132:nodes=4", 1.0),
    Shape("mix 20 us / 10 ms, 4 streams", "mix:0:1", 10.0),
)

RATES = (0.1, 0.3, 0.5, 0.8)

OVERLAPPING = (SHAPES[8], Shape("1 ms, grid 132, 4 streams", "kernel:1000:132:streams=4", 1.0))
"""What runs side by side on a GPU that lets it."""

SYNCED = Shape("4 x 20 us, sync", "kernel:20:132:burst=4:sync", 0.08)
"""Waits after so little work that most of it is not measured."""

PAIR_SHAPES = (SHAPES[2], SHAPES[0], SHAPES[3])
"""Short, middle and long kernels: all nine ordered pairs are run."""
