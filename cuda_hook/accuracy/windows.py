"""Shares over windows and what can be said about them. Pure: arrays of busy time in, figures out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["BIN_MS", "HostDelay", "WindowError", "settling_ms", "share_error", "window_shares"]

BIN_MS = 1
"""Resolution of the ground truth."""

_BIN_NS = BIN_MS * 1_000_000


@dataclass(frozen=True, slots=True)
class WindowError:
    """Error of the share over windows of one width."""

    mean_absolute: float
    """Mean of |share − due| over the windows that count; a fraction of the GPU, NaN where no window counts."""
    mean: float
    """Mean share over them."""
    windows: int
    """How many windows counted."""
    starved: int
    """How many were left out because the host had kept the application from running."""


def window_shares(busy_ns: NDArray[np.int64], width_ms: int, step_ms: int) -> NDArray[np.float64]:
    """Share of the GPU in sliding windows.

    Args:
        busy_ns: Busy nanoseconds per bin of 1 ms.
        width_ms: Width of a window.
        step_ms: Distance between the starts of two windows.

    Returns:
        Busy time over width, per window that lies wholly inside the bins.
    """
    total = np.concatenate(([0], np.cumsum(busy_ns, dtype=np.int64)))
    starts = np.arange(0, len(busy_ns) - width_ms + 1, step_ms)
    return (total[starts + width_ms] - total[starts]) / (width_ms * _BIN_NS)


@dataclass(frozen=True, slots=True)
class HostDelay:
    """When the host kept the application from running, and what that excuses.

    Who is kept waiting falls short, and afterwards takes what it has saved up, which is at most the limiter's burst. A
    window with such a delay in it, or shortly before it, therefore says nothing, unless it holds more than the burst explains.
    """

    waited_ns: NDArray[np.int64]
    """Per bin of 1 ms, how long the application was ready to run and had no processor."""
    limit_ms: float
    """A window with no more of that than this counts like any other."""
    burst_ms: float = 20.0
    """The limiter's window W: at most r·W is made up for."""
    lookback_ms: int = 100
    """How long before a window a delay still matters."""

    def says_something(self, shares: NDArray[np.float64], due: float, width_ms: int, step_ms: int) -> NDArray[np.bool_]:
        """Tell which windows count.

        Args:
            shares: Of the windows.
            due: The share granted.
            width_ms: Width of the windows.
            step_ms: Distance between them.
        """
        total = np.concatenate((np.zeros(self.lookback_ms, dtype=np.int64), [0], np.cumsum(self.waited_ns)))
        starts = np.arange(len(shares)) * step_ms
        waited_ms = (total[starts + self.lookback_ms + width_ms] - total[starts]) / 1e6
        unexplained = shares - due > due * self.burst_ms / width_ms + 0.01
        return np.asarray((waited_ms <= self.limit_ms) | unexplained)


def share_error(
    busy_ns: NDArray[np.int64], due: float, width_ms: int, *, step_ms: int, delay: HostDelay | None = None
) -> WindowError:
    """Mean absolute error of the share over sliding windows.

    Args:
        busy_ns: Busy nanoseconds per bin of 1 ms.
        due: The share that was granted.
        width_ms: Width of a window.
        step_ms: Distance between windows.
        delay: When the host starved the application, over the same bins; such windows are left out and counted.
    """
    shares = window_shares(busy_ns, width_ms, step_ms)
    counts = np.ones(len(shares), dtype=bool)
    if delay is not None:
        counts = delay.says_something(shares, due, width_ms, step_ms)
    kept = shares[counts]
    if len(kept) == 0:
        return WindowError(float("nan"), float("nan"), 0, len(shares))
    return WindowError(
        float(np.mean(np.abs(kept - due))), float(np.mean(kept)), len(kept), int(np.count_nonzero(~counts))
    )


def settling_ms(
    busy_ns: NDArray[np.int64],
    due: float,
    tolerance: float,
    *,
    window_ms: int = 500,
    delay: HostDelay | None = None,
) -> int | None:
    """How long it took until the share was right and stayed right.

    Args:
        busy_ns: Bins from the moment of the change on.
        due: The share granted from then on.
        tolerance: Largest |share − due| that is right, over one window.
        window_ms: The window that has to be right, and every later one with it.
        delay: When the host starved the application, over the same bins; such windows are neither right nor wrong.

    Returns:
        Start in ms of the first window from which on all that say something are right; None if it never was.
    """
    shares = window_shares(busy_ns, window_ms, BIN_MS)
    wrong = np.abs(shares - due) > tolerance
    if delay is not None:
        wrong &= delay.says_something(shares, due, window_ms, BIN_MS)
    at = np.flatnonzero(wrong)
    if len(at) == 0:
        return 0
    settled = int(at[-1]) + BIN_MS
    return settled if settled <= len(busy_ns) - window_ms else None
