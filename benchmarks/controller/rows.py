"""Lines of the table, the bars they are held against, and the sizes at which they are measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

__all__ = ["BARS", "FULL", "INTERVAL_S", "QUICK", "Part", "Row", "Sizes", "median_ms"]

INTERVAL_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything is measured."""

    core: tuple[int, ...]
    """Experiences in the memory of a decision core."""
    core_rounds: int
    core_lived: int
    """Rounds that it has lived in the simulated world before."""
    pipelines: tuple[int, ...]
    """In the Kubernetes world; the last is the one that is held against its bar."""
    turns: int
    """Pipeline rounds in the Kubernetes world, at least one per pipeline."""
    sharded: int
    """Pipelines that are divided among shards."""
    shards: int
    retrieval: tuple[int, ...]
    """Experiences; the first and the last are held against a bar each."""
    retrievals: int
    growth: tuple[int, ...]
    redis: tuple[int, ...]
    callers: tuple[int, ...]
    """Pipelines that want an answer of a language model at the same moment."""


FULL: Final = Sizes(
    core=(100, 1_000, 10_000),
    core_rounds=100,
    core_lived=40,
    pipelines=(10, 100, 1_000),
    turns=300,
    sharded=1_000,
    shards=4,
    retrieval=(10_000, 100_000, 1_000_000),
    retrievals=200,
    growth=(1_000, 10_000, 100_000),
    redis=(1_000, 10_000, 100_000),
    callers=(10, 100, 1_000),
)
QUICK: Final = Sizes(
    core=(100, 1_000, 10_000),
    core_rounds=20,
    core_lived=40,
    pipelines=(10, 25, 100),
    turns=20,
    sharded=60,
    shards=4,
    retrieval=(10_000, 20_000, 50_000),
    retrievals=40,
    growth=(500, 1_000, 3_000),
    redis=(500, 1_500, 5_000),
    callers=(10, 50, 100),
)

BARS: Final[Mapping[str, float]] = {
    "interval": INTERVAL_S,
    "unowned": 0.0,
    "largest shard": 1.5,
    # Of the time that an even part may take, as much more as the largest shard may be larger.
    "busiest shard": 1.5 * INTERVAL_S,
    "retrieval": 1.0,
    "large retrieval": 30.0,
    "memory": 8.0,
    "redis read": 400.0,
    "redis save": 10.0,
    "model calls": 16.0,
    "pipeline calls": 1.0,
    "unanswered": 0.0,
}
"""Highest value that is good enough, in the unit of its row. Retrieval's are medians; its P99 is shown beside them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    size: str
    value: float
    unit: str
    bar: float | None = None
    """Highest value that is good enough."""

    @property
    def missed(self) -> bool:
        """The bar is missed."""
        return self.bar is not None and not self.value <= self.bar

    def __str__(self) -> str:
        bar = "" if self.bar is None else f"{'MISSED' if self.missed else 'ok':>7}  at most {self.bar:g}"
        return f"{self.what:<44} {self.size:>26} {self.value:>12.3f} {self.unit:<22}{bar}"


class Part(Protocol):
    """A part of the benchmark."""

    def __call__(self, sizes: Sizes, bars: Mapping[str, float], folder: Path) -> Iterator[Row]:
        """Measure; ``folder`` is empty and its own."""
        ...


def median_ms(samples: Sequence[float]) -> float:
    """Median of seconds, as milliseconds."""
    return float(np.median(samples)) * 1000
