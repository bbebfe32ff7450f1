"""What one measurement came to: figures, bars, and whether each bar was met. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Figure", "Verdict", "table"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number beside its bar."""

    name: str
    value: float
    bar: float | None
    """Largest value allowed; None where the figure is only shown."""
    unit: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the bar holds; a value that could not be measured meets none."""
        return self.bar is None or self.value <= self.bar

    def __str__(self) -> str:
        places = 0 if self.unit == "ms" else 2
        shown = "none" if math.isnan(self.value) else f"{self.value:.{places}f}{self.unit}"
        if self.bar is None:
            return shown
        limit = f"{self.bar:.{places}f}"
        return f"{shown} {'<=' if self.is_met else '>'} {limit}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the table."""

    group: str
    case: str
    figures: tuple[Figure, ...]
    starved: int = 0
    """Windows left out because the host starved the application."""
    windows: int = 0
    """Windows that counted."""
    note: str = ""

    @property
    def is_met(self) -> bool:
        """Whether every bar of the row holds."""
        return all(figure.is_met for figure in self.figures)

    @property
    def is_conclusive(self) -> bool:
        """Whether the host let the application run in at least a quarter of the windows."""
        return self.windows >= self.starved / 3


def table(verdicts: Sequence[Verdict]) -> Iterable[str]:
    """Write the rows for a terminal, one group after another."""
    for group in dict.fromkeys(verdict.group for verdict in verdicts):
        rows = [verdict for verdict in verdicts if verdict.group == group]
        headings = [figure.name for figure in rows[0].figures]
        cells = [[row.case, *map(str, row.figures), str(row.starved), _state(row)] for row in rows]
        heading = ["case", *headings, "starved", ""]
        widths = [max(len(line[i]) for line in [heading, *cells]) for i in range(len(heading))]
        yield ""
        yield group
        for line in [heading, *cells]:
            yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _state(row: Verdict) -> str:
    state = "ok" if row.is_met else "MISSED"
    if not row.is_conclusive:
        state = "STARVED" if row.is_met else "MISSED (host starved)"
    return f"{state} {row.note}".rstrip()
