"""Whether this extender is the one that grants: it is if the scheduler beside it holds the schedulers' Lease. Pure.

A kube-scheduler names itself ``<host name>_<uuid>`` in the Lease, and two containers of one pod share the host name. A scheduler that
cannot renew stops itself after its renewDeadline (10 s), before the Lease (15 s) may pass to another; an extender that stops granting
when it has not seen a renewal for as long is never active together with the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sair.wire import field

__all__ = ["Leadership", "LeaseState", "parse_lease"]


@dataclass(frozen=True, slots=True)
class LeaseState:
    """Who holds the Lease, and when it was last renewed by the holder's clock; None where it is not held."""

    holder: str | None = None
    renewed: str | None = None


def parse_lease(raw: Mapping[str, Any]) -> LeaseState:
    """Read a raw Lease; one that nobody holds is valid."""
    holder, renewed = field(raw, "spec", "holderIdentity"), field(raw, "spec", "renewTime")
    return LeaseState(str(holder) if holder else None, str(renewed) if renewed else None)


class Leadership:
    """Folds what the Lease looks like into whether to grant.

    Args:
        hostname: What the own scheduler's identity begins with; None to grant without any Lease.
        fresh_s: Seconds after which a Lease that was not seen renewed counts for nothing.
        takeover_s: Seconds to hold still after the Lease came here.
    """

    def __init__(self, hostname: str | None, *, fresh_s: float, takeover_s: float) -> None:
        self._hostname = hostname
        self._fresh_s = fresh_s
        self._takeover_s = takeover_s
        self._state = LeaseState()
        self._changed_s: float | None = None
        self._renewed_s: float | None = None
        self._ours_since_s: float | None = None

    @property
    def holder(self) -> str | None:
        """Who holds the Lease, as last seen."""
        return self._state.holder

    def see(self, state: LeaseState, now: float) -> None:
        """Take in how the Lease looks.

        Args:
            state: The Lease; a default one if it does not exist.
            now: Seconds on a monotonic clock.
        """
        if state != self._state:
            # Another machine's clock is not ours: only that the Lease changes before our eyes says that its holder is alive. What the
            # first look and the first after a gap show may be long past.
            watched = self._changed_s is not None and now - self._changed_s <= self._fresh_s
            self._renewed_s = now if watched else None
            self._changed_s = now
        self._state = state
        ours = state.holder is not None and state.holder.rpartition("_")[0] == self._hostname
        if not ours:
            self._ours_since_s = None
        elif self._ours_since_s is None:
            self._ours_since_s = now

    def leads(self, now: float) -> bool:
        """Say whether to grant at this moment.

        Args:
            now: Seconds on the same clock.
        """
        if self._hostname is None:
            return True
        if self._ours_since_s is None or self._renewed_s is None:
            return False
        return now - self._renewed_s <= self._fresh_s and now - self._ours_since_s >= self._takeover_s

    def why_not(self, now: float) -> str | None:
        """Say why nothing is granted; None if it is."""
        if self.leads(now):
            return None
        if self._ours_since_s is None:
            return f"the schedulers' Lease is held by {self._state.holder or 'nobody'}"
        if self._renewed_s is None or now - self._renewed_s > self._fresh_s:
            return "the own scheduler's Lease was not seen renewed"
        return "the Lease was taken over just now"
