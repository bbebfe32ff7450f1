"""The best any limiter can do: a kernel cannot be cut, so long kernels miss the share over short windows. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LONG_KERNEL_MS", "error_bar", "ideal_deviation", "ideal_error", "worst_ideal_error"]

LONG_KERNEL_MS = {100: 6.0, 1000: 20.0}
"""Width of a window in ms → the longest kernel in ms for which its fixed bar holds."""

_FIXED_BAR = {100: 0.03, 1000: 0.01}
_PHASES = 2000
_NEIGHBOURS = np.linspace(0.8, 1.25, 46)
"""Rates around the granted one whose ideal error counts as well."""


def ideal_error(kernel_ms: float, rate: float, width_ms: float) -> float:
    """Mean absolute error of a perfectly periodic limiter.

    It runs one kernel of length d every d/r. Seen through a window of width w that starts at a uniformly drawn phase, the
    share is F(φ + w) − F(φ) over w with F the running integral of the periodic busy indicator; the error is the mean of its
    distance from r over all phases.

    Args:
        kernel_ms: d, the kernel's length.
        rate: r, the granted share in (0, 1].
        width_ms: w.

    Returns:
        The error as a fraction of the GPU.
    """
    return float(np.mean(_deviations(kernel_ms, rate, width_ms)))


def ideal_deviation(kernel_ms: float, rate: float, width_ms: float) -> float:
    """Largest error of the perfectly periodic limiter in any one window, over the rates between 0.8 r and 1.25 r."""
    rates = np.minimum(rate * _NEIGHBOURS, 0.99)
    return max(float(np.max(_deviations(kernel_ms, float(near), width_ms))) for near in rates)


def _deviations(kernel_ms: float, rate: float, width_ms: float) -> NDArray[np.float64]:
    period = kernel_ms / rate
    phases = (np.arange(_PHASES) + 0.5) / _PHASES * period

    def busy_until(t: NDArray[np.float64]) -> NDArray[np.float64]:
        whole, rest = np.divmod(t, period)
        return np.asarray(whole * kernel_ms + np.minimum(rest, kernel_ms))

    shares = (busy_until(phases + width_ms) - busy_until(phases)) / width_ms
    return np.abs(shares - rate)


def worst_ideal_error(kernel_ms: float, rate: float, width_ms: float) -> float:
    """The ideal error at the worst rate between 0.8 r and 1.25 r.

    Where a window happens to hold a whole number of periods the ideal error is exactly zero (50 ms kernels at r = 0.5 in
    windows of 100 ms), which a limiter that is off by a microsecond cannot keep; its neighbours show what is reachable.
    """
    rates = np.minimum(rate * _NEIGHBOURS, 0.99)
    return max(ideal_error(kernel_ms, float(near), width_ms) for near in rates)


def error_bar(kernel_ms: float, rate: float, width_ms: int) -> float:
    """The bar for a window: fixed for short kernels, the ideal limiter's error and one point for long ones.

    Args:
        kernel_ms: Longest kernel of the load.
        rate: Granted share.
        width_ms: 100 or 1000.
    """
    fixed = _FIXED_BAR[width_ms]
    if kernel_ms <= LONG_KERNEL_MS[width_ms]:
        return fixed
    return max(fixed, worst_ideal_error(kernel_ms, rate, width_ms) + 0.01)
