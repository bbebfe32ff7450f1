"""A circuit breaker and a daily budget: pure values, time is an argument."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Breaker", "Spending"]

_LONGEST_PAUSE_S = 3600.0
_DAY_S = 86_400.0


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


@dataclass(frozen=True, slots=True)
class Spending:
    """Tokens and dollars of one pipeline in the current day (UTC)."""

    day: int = -1
    tokens: int = 0
    dollars: float = 0.0

    def of(self, now: float) -> bool:
        """Whether it is today's."""
        return int(now // _DAY_S) == self.day

    def add(self, now: float, tokens: int, dollars: float) -> Spending:
        """After a call that used so much."""
        day = int(now // _DAY_S)
        if day != self.day:
            return Spending(day, tokens, dollars)
        return Spending(day, self.tokens + tokens, self.dollars + dollars)

    def exceeds(self, now: float, tokens_per_day: int, dollars_per_day: float) -> bool:
        """Today's budget is used up; a limit of 0 is none."""
        if not self.of(now):
            return False
        return (0 < tokens_per_day <= self.tokens) or (0 < dollars_per_day <= self.dollars)
