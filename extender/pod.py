"""A pod in the ledger: as it was last seen, what it is to have, and what is on its way to it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from extender.account import Account
from extender.replica import Replica
from sair.quantities import GpuRate

__all__ = ["Flight", "Pod"]


@dataclass(slots=True)
class Flight:
    """A write that was ordered and has not been seen on the pod; another one has to wait for it."""

    grant: GpuRate | None
    """The same for all its attempts, whatever is wished for meanwhile, because any of them may have happened; None: a wish alone."""
    since_s: float
    repeat: bool = False
    """The last attempt failed."""


@dataclass(slots=True)
class Pod:
    """One pod; ``wish`` must be called whenever the pod or its stage's wish has changed."""

    replica: Replica
    desired: GpuRate | None = None
    """What it is to have."""
    flight: Flight | None = None
    turn: int | None = None
    """Version of the cluster at which its raise was first wished for: its place in the queue. None: no raise."""
    told: str = ""
    """What was last reported, so that nothing is reported twice."""

    @property
    def wished(self) -> Replica:
        """The replica with what it is to have as its desired share."""
        return self.replica if self.desired == self.replica.desired else replace(self.replica, desired=self.desired)

    @property
    def place(self) -> tuple[int, str]:
        """What the queue is sorted by."""
        return (self.turn or 0, self.replica.uid)

    @property
    def most(self) -> GpuRate | None:
        """The most that may be in force: what is granted, or a raise on its way; None for a pod without a grant."""
        granted, ordered = self.replica.granted, self.flight.grant if self.flight is not None else None
        return granted if granted is None or ordered is None else max(granted, ordered)

    @property
    def is_giving_up(self) -> bool:
        """Whether a lowering is on its way."""
        granted, ordered = self.replica.granted, self.flight.grant if self.flight is not None else None
        return granted is not None and ordered is not None and ordered < granted

    def wish(self, desired: GpuRate | None, newest: int) -> None:
        """Take in what it is to have, and give it a place in the queue if that is more than it is granted.

        Args:
            desired: What it is to have.
            newest: The newest version of any pod: the place of a wish that the pod itself does not show yet.
        """
        replica, self.desired = self.replica, desired
        if desired is None or replica.granted is None or desired <= replica.granted or replica.ended:
            self.turn = None
        elif self.turn is None:
            shown = replica.desired is not None and replica.desired > replica.granted
            self.turn = replica.version if shown else newest

    def lacks_milli(self, account: Account) -> int:
        """Thousandths that a live raise needs beyond what the replica is charged for on its card."""
        if self.turn is None or self.desired is None or self.replica.deleting:
            return 0
        return max(0, self.desired.milli - account.claims[self.replica.uid].milli)
