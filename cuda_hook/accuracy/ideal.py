"""The best any limiter can do: a kernel cannot be cut, so long kernels miss the share over short windows. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LONG_KERNEL_MS", "error_bar", "ideal_deviation", "ideal_error"]

LONG_KERNEL_MS = {100: 6.0, 1000: 20.0}
"""Width of a window in ms → the longest kernel in ms for which its fixed bar holds."""

_FIXED_BAR = {100: 0.03, 1000: 0.01}
_PHASES = 2000


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
    """Largest error of the perfectly periodic limiter in any one window, as a fraction of the GPU."""
    return float(np.max(_deviations(kernel_ms, rate, width_ms)))


def _deviations(kernel_ms: float, rate: float, width_ms: float) -> NDArray[np.float64]:
    period = kernel_ms / rate
    phases = (np.arange(_PHASES) + 0.5) / _PHASES * period

    def busy_until(t: NDArray[np.float64]) -> NDArray[np.float64]:
        whole, rest = np.divmod(t, period)
        return np.asarray(whole * kernel_ms + np.minimum(rest, kernel_ms))

    shares = (busy_until(phases + width_ms) - busy_until(phases)) / width_ms
    return np.abs(shares - rate)


def error_bar(kernel_ms: float, rate: float, width_ms: int) -> float:
    """The bar for a window: fixed for short kernels, for long ones the ideal limiter's error at this very rate and one point.

    Where a window holds a whole number of the ideal limiter's periods its error is 0 (50 ms kernels at 0.5 in 100 ms). That
    is taken as it is: a limiter is held to the point and not to what the ideal one would do at some other rate.

    Args:
        kernel_ms: Longest kernel of the load.
        rate: Granted share.
        width_ms: 100 or 1000.
    """
    fixed = _FIXED_BAR[width_ms]
    if kernel_ms <= LONG_KERNEL_MS[width_ms]:
        return fixed
    return max(fixed, ideal_error(kernel_ms, rate, width_ms) + 0.01)
