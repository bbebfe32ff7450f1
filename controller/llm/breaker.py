"""A circuit breaker: a pure value, time is an argument."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Breaker"]

_LONGEST_PAUSE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """Opens after ``limit`` failures in a row, asks again after a pause that doubles while the server stays bad."""

    limit: int
    pause_s: float
    failures: int = 0
    trips: int = 0
    closed_at: float = float("-inf")
    """World time from which on calls are allowed again."""

    def allows(self, now: float) -> bool:
        """A call may be made."""
        return now >= self.closed_at

    def failed(self, now: float) -> Breaker:
        """After a failure. Behind a breaker that was open one failure is enough to open it again; one of a call that began before it
        opened says nothing new."""
        if not self.allows(now):
            return self
        failures = self.failures + 1
        if failures < self.limit and self.trips == 0:
            return replace(self, failures=failures)
        pause = min(_LONGEST_PAUSE_S, self.pause_s * 2**self.trips)
        return replace(self, failures=0, trips=min(self.trips + 1, 16), closed_at=now + pause)

    def succeeded(self) -> Breaker:
        """After a success."""
        return replace(self, failures=0, trips=0, closed_at=float("-inf"))
