"""Who was active on a card and how long each container had it, folded from what pages and NVML say. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cuda_hook.agent.nvml import UtilizationSample

__all__ = ["FOREIGN", "BusyAccount", "CardActivity", "Seen", "busy_tenants"]

DEFAULT_SAMPLE_NS = 166_666_667
"""NVML's sampling period on the cards we know, 1/6 s; taken until two samples of one process show the real one."""

_SHORTEST_SAMPLE_NS = 20_000_000
_LONGEST_SAMPLE_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Seen:
    """What one page said of one card at one moment."""

    launches: int
    """Of all processes, those that ended included."""
    outstanding_ns: int
    """Busy time charged for work that has not completed."""


def busy_tenants(before: Mapping[str, Seen], now: Mapping[str, Seen]) -> frozenset[str]:
    """Tenants that submitted work since the look before, or whose work is still running.

    Args:
        before: Tenant → what its page said then.
        now: Likewise now; a tenant that is new counts when it has work under way.
    """
    return frozenset(
        tenant
        for tenant, seen in now.items()
        if seen.outstanding_ns > 0 or (tenant in before and seen.launches != before[tenant].launches)
    )


@dataclass(slots=True)
class BusyAccount:
    """Busy time of one container on one card, added up from NVML's samples."""

    busy_ns: int = 0
    from_ns: int = 0
    until_ns: int = 0


@dataclass(slots=True)
class CardActivity:
    """One card's history; times are ns of CLOCK_MONOTONIC, what NVML says is converted by the caller.

    NVML reports a process only for samples in which it was not idle, and a sample some time after it ended. Time counts as
    covered up to the latest sample boundary that any process reported, or, when all are silent, up to three samples ago:
    a process that was busy then would have been reported by now.
    """

    sample_ns: int = DEFAULT_SAMPLE_NS
    accounts: dict[str, BusyAccount] = field(default_factory=dict)
    active_at: dict[str, int] = field(default_factory=dict)
    """Tenant → when it was last seen active."""
    _boundary_ns: int = 0
    _last_end: dict[int, int] = field(default_factory=dict)

    def add_samples(
        self, samples: Iterable[tuple[str, int, UtilizationSample]], tenants: Iterable[str], now_ns: int
    ) -> None:
        """Account new samples.

        Args:
            samples: Tenant, the sample's end in ns of CLOCK_MONOTONIC, and the sample; ends later than any seen before.
            tenants: Containers that have a page on this card; their accounts advance even when they are idle.
            now_ns: Time of the look.
        """
        ordered = sorted(samples, key=lambda item: item[1])
        for tenant, end_ns, sample in ordered:
            self._learn_period(sample.pid, end_ns)
            account = self.accounts.setdefault(tenant, BusyAccount(0, end_ns - self.sample_ns, end_ns))
            account.busy_ns += round(sample.busy * self.sample_ns)
            self._boundary_ns = max(self._boundary_ns, end_ns)
        self._boundary_ns = max(self._boundary_ns, now_ns - 3 * self.sample_ns)
        for tenant in tenants:
            account = self.accounts.setdefault(tenant, BusyAccount(0, self._boundary_ns, self._boundary_ns))
            account.until_ns = max(account.until_ns, self._boundary_ns)

    def _learn_period(self, pid: int, end_ns: int) -> None:
        before = self._last_end.get(pid)
        self._last_end[pid] = end_ns
        if before is None:
            return
        gap = end_ns - before
        # A missing sample makes a gap of several periods; the shortest gap is one.
        if _SHORTEST_SAMPLE_NS <= gap <= _LONGEST_SAMPLE_NS and gap < 1.5 * self.sample_ns:
            self.sample_ns = gap

    def mark_active(self, tenants: Iterable[str], now_ns: int) -> None:
        """Note who was active at a time."""
        for tenant in tenants:
            self.active_at[tenant] = now_ns

    def peers_of(self, tenant: str, now_ns: int, recent_ns: int) -> tuple[int, int]:
        """How many other tenants are active, and when one last was.

        Args:
            tenant: Whose peers.
            now_ns: Now.
            recent_ns: How long ago still is "active".

        Returns:
            Count, and the time in ns (0: never).
        """
        times = [at for name, at in self.active_at.items() if name != tenant]
        return sum(now_ns - at <= recent_ns for at in times), max(times, default=0)

    def forget(self, tenants: Iterable[str], pids: Iterable[int]) -> None:
        """Drop all but these tenants and processes, so that a long-lived agent stays small."""
        kept_tenants, kept_pids = set(tenants), set(pids)
        self.accounts = {name: account for name, account in self.accounts.items() if name in kept_tenants}
        self.active_at = {name: at for name, at in self.active_at.items() if name in kept_tenants or name == FOREIGN}
        self._last_end = {pid: end for pid, end in self._last_end.items() if pid in kept_pids}


FOREIGN = "\0foreign"
"""Stands for every process on a card that belongs to no page."""
