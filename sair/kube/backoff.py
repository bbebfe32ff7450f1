"""Waiting longer after each failure in a row, with jitter so that many clients do not return at once."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Backoff"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with equal jitter.

    Args:
        base_s: Wait after the first failure, in seconds.
        cap_s: Longest wait, in seconds.
        factor: Growth per failure.
    """

    base_s: float = 0.2
    cap_s: float = 30.0
    factor: float = 2.0

    def delay_s(self, failures: int, draw: float) -> float:
        """Give the wait after a number of failures in a row: between half of min(cap, base · factor^(failures-1)) and all of it.

        Args:
            failures: Failures in a row, at least 1; 0 waits nothing.
            draw: A uniform random number in [0, 1).
        """
        if failures <= 0:
            return 0.0
        # The exponent is bounded because a float overflows after a thousand failures.
        whole_s = min(self.cap_s, self.base_s * self.factor ** min(failures - 1, 64))
        return whole_s * (0.5 + 0.5 * draw)
