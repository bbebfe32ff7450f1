"""Workloads: how the arrival rate goes over time, and requests drawn from it as a Poisson process.

Each shape scales with the pipeline's base rate. Where a shape is itself random (bursts at Poisson times) its seed is the run's, so
arrivals are doubly stochastic; two policies on one seed meet the same arrivals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.simulation.service import stream
from controller.simulation.traces import read_trace
from sair.errors import InvalidInput

__all__ = [
    "WORKLOADS",
    "RateSeries",
    "burst",
    "constant",
    "diurnal",
    "draw_arrivals",
    "ramp",
    "ramp_with_burst",
    "recurring_bursts",
    "step",
    "trace",
    "workload_named",
]

_MOST_REQUESTS: Final = 20_000_000


@dataclass(frozen=True, slots=True)
class RateSeries:
    """A rate that is constant within each second."""

    name: str
    rates_per_s: NDArray[np.float64]
    """Requests per second, one value per second."""

    @property
    def duration_s(self) -> float:
        """Length, seconds."""
        return float(len(self.rates_per_s))


def draw_arrivals(series: RateSeries, seed: int) -> NDArray[np.float64]:
    """Arrival times of a Poisson process with this rate, by inversion of its integral: sorted seconds.

    Raises:
        InvalidInput: If more than 20 million requests were to be expected.
    """
    integral = np.concatenate([[0.0], np.cumsum(series.rates_per_s)])
    expected = integral[-1]
    if not 0 <= expected <= _MOST_REQUESTS:
        raise InvalidInput("workload", f"{expected:.3g} requests", f"at most {_MOST_REQUESTS} in one run")
    generator = stream(seed, "arrivals")
    events = np.cumsum(generator.exponential(1.0, int(expected + 6 * np.sqrt(expected) + 20)))
    events = events[events < expected]
    return np.asarray(np.interp(events, integral, np.arange(len(integral), dtype=float)))


def constant(base: float, duration_s: float, seed: int = 0) -> RateSeries:
    """Poisson arrivals at the base rate."""
    return RateSeries("poisson", np.full(_seconds(duration_s), base))


def ramp(base: float, duration_s: float, seed: int = 0) -> RateSeries:
    """From half the base rate to twice of it over 70 % of the time, then level."""
    at = _phase(duration_s)
    return RateSeries("ramp", base * np.interp(at, [0, 0.7, 1], [0.5, 2.0, 2.0]))


def step(base: float, duration_s: float, seed: int = 0) -> RateSeries:
    """Twice the base rate from one moment to the next, a third of the way in; back after another third."""
    at = _phase(duration_s)
    return RateSeries("step", base * np.where((at >= 1 / 3) & (at < 2 / 3), 2.0, 1.0))


def burst(base: float, duration_s: float, seed: int = 0) -> RateSeries:
    """The base rate with one burst of three times as much: 60 s, or a tenth of the time if that is less."""
    rates = constant(base, duration_s).rates_per_s
    return RateSeries("burst", _with_burst(rates, 0.4 * duration_s, min(60.0, duration_s / 10), 3.0))


def ramp_with_burst(base: float, duration_s: float, seed: int = 0) -> RateSeries:
    """Up from half to 1.5 times the base rate and down again, with a burst of 2.5 times as much on the way up."""
    at = _phase(duration_s)
    rates = base * np.interp(at, [0, 0.1, 0.6, 0.75, 1], [0.5, 0.5, 1.5, 1.5, 0.5])
    return RateSeries("ramp-burst", _with_burst(rates, 0.4 * duration_s, min(60.0, duration_s / 20), 2.5))


def diurnal(base: float, duration_s: float, seed: int = 0) -> RateSeries:
    """A day in small: one sine from 0.4 to 1.6 times the base rate, beginning at the low."""
    return RateSeries("diurnal", base * (1 - 0.6 * np.cos(2 * np.pi * _phase(duration_s))))


def recurring_bursts(
    base: float,
    duration_s: float,
    seed: int = 0,
    *,
    times: str = "regular",
    height: tuple[float, float] = (3.0, 5.0),
    length_s: tuple[float, float] = (40.0, 60.0),
    gap_s: tuple[float, float] = (300.0, 480.0),
) -> RateSeries:
    """Bursts of 3 to 5 times the base rate for 40 to 60 s every 5 to 8 minutes.

    Args:
        base: Rate between the bursts, requests per second.
        duration_s: Length, seconds.
        seed: Of the heights, lengths and gaps.
        times: ``regular``: equal gaps (the middle of the range); ``precursor``: gaps drawn from the range, and 60 s before each burst the
            rate rises by half for 20 s; ``poisson``: exponential gaps of the same mean, at least 90 s.
        height: Range of a burst's factor.
        length_s: Range of its length.
        gap_s: Range from one beginning to the next.

    Raises:
        InvalidInput: If ``times`` is anything else.
    """
    if times not in ("regular", "precursor", "poisson"):
        raise InvalidInput("times", times, "regular, precursor or poisson")
    generator = stream(seed, "bursts", times)
    rates = constant(base, duration_s).rates_per_s.copy()
    mean = sum(gap_s) / 2
    at = 0.0
    while True:
        if times == "regular":
            at += mean
        elif times == "precursor":
            at += generator.uniform(*gap_s)
        else:
            at += max(90.0, generator.exponential(mean))
        factor, length = generator.uniform(*height), generator.uniform(*length_s)
        if at >= duration_s:
            break
        if times == "precursor":
            rates = _with_burst(rates, at - 60.0, 20.0, 1.5)
        rates = _with_burst(rates, at, length, factor)
    return RateSeries(f"bursts-{times}", rates)


def trace(path: Path, duration_s: float | None = None) -> RateSeries:
    """A trace file as it stands, cut to ``duration_s`` if it is longer.

    Raises:
        TraceError: If a line is malformed.
    """
    rates = read_trace(path)
    return RateSeries(path.stem, rates if duration_s is None else rates[: _seconds(duration_s)])


Shape = Callable[[float, float, int], RateSeries]

WORKLOADS: Final[Mapping[str, Shape]] = {
    "poisson": constant,
    "ramp": ramp,
    "burst": burst,
    "ramp-burst": ramp_with_burst,
    "step": step,
    "diurnal": diurnal,
    "bursts-regular": lambda base, duration_s, seed: recurring_bursts(base, duration_s, seed, times="regular"),
    "bursts-precursor": lambda base, duration_s, seed: recurring_bursts(base, duration_s, seed, times="precursor"),
    "bursts-poisson": lambda base, duration_s, seed: recurring_bursts(base, duration_s, seed, times="poisson"),
}
"""By the name that the command line takes."""


def workload_named(name: str, base: float, duration_s: float, seed: int) -> RateSeries:
    """One of the shapes at a pipeline's base rate.

    Raises:
        InvalidInput: If there is no workload of this name, or the duration is none.
    """
    try:
        shape = WORKLOADS[name]
    except KeyError:
        raise InvalidInput("workload", name, "one of " + ", ".join(WORKLOADS)) from None
    return shape(base, duration_s, seed)


def _seconds(duration_s: float) -> int:
    if not 1 <= duration_s <= 30 * 86_400:
        raise InvalidInput("duration", duration_s, "between 1 second and 30 days")
    return round(duration_s)


def _phase(duration_s: float) -> NDArray[np.float64]:
    count = _seconds(duration_s)
    return np.arange(count) / count


def _with_burst(rates: NDArray[np.float64], begin_s: float, length_s: float, factor: float) -> NDArray[np.float64]:
    changed = rates.copy()
    changed[max(0, round(begin_s)) : max(0, round(begin_s + length_s))] *= factor
    return changed
