"""The pure core of leader election by Lease: what a candidate does next, given what it has seen and its own clock.

Safety rests on local time alone, so that clocks may differ between machines. A follower counts a leader as gone once it has
itself seen no new version of the Lease for the whole lease duration. A leader counts its own term from the moment at which it
*sent* the last successful renewal, which no follower can have seen before, and ends it after the renew deadline, which is
shorter. What both must share is only the rate at which their clocks run, within the ratio of the two.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from sair.errors import InvalidInput, WireError
from sair.kube.resources import LEASES
from sair.wire import field

__all__ = [
    "Acquire",
    "ElectionTiming",
    "LeaseRecord",
    "Observation",
    "Renew",
    "Step",
    "Wait",
    "lease_body",
    "next_step",
    "observe",
    "parse_lease",
    "term_end_s",
]


@dataclass(frozen=True, slots=True)
class ElectionTiming:
    """Durations of an election, in seconds; the defaults are those of Kubernetes' own components."""

    lease_s: float = 15.0
    """Followers wait this long after the last renewal they saw. A whole number, as the Lease carries it."""
    renew_deadline_s: float = 10.0
    """A leader that could not renew for so long stops being one."""
    retry_s: float = 2.0
    """Pause between attempts; jittered upwards by up to a fifth for candidates."""

    @classmethod
    def within(cls, lease_s: int) -> Self:
        """Durations for a Lease of so many seconds, in the proportions of the defaults."""
        usual = cls()
        scale = lease_s / usual.lease_s
        return cls(lease_s, usual.renew_deadline_s * scale, usual.retry_s * scale)

    def __post_init__(self) -> None:
        if self.lease_s < 1 or self.lease_s != int(self.lease_s):
            raise InvalidInput("lease_s", self.lease_s, "a whole number of seconds, at least 1")
        if not 0 < self.renew_deadline_s < self.lease_s:
            raise InvalidInput(
                "renew_deadline_s",
                self.renew_deadline_s,
                f"more than 0 and less than lease_s, which is {self.lease_s:g}",
            )
        if not 0 < self.retry_s < self.renew_deadline_s:
            raise InvalidInput(
                "retry_s",
                self.retry_s,
                f"more than 0 and less than renew_deadline_s, which is {self.renew_deadline_s:g}",
            )


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What a Lease says. Its times are other machines' clocks: shown to people, never compared."""

    holder: str
    """Identity of the leader; empty when released."""
    duration_s: int
    transitions: int
    resource_version: str
    acquired: str = ""

    @property
    def holder_host(self) -> str:
        """The pod name that kube-scheduler and other Go components put before ``_<uuid>`` in their identity."""
        return self.holder.split("_", 1)[0]


@dataclass(frozen=True, slots=True)
class Observation:
    """The Lease as last seen (None: it does not exist), and when on the local clock this version was first seen, in seconds."""

    record: LeaseRecord | None
    since_s: float

    def live(self, now: float) -> bool:
        """Say whether somebody holds the Lease and was seen to renew it within its duration."""
        record = self.record
        return record is not None and record.holder != "" and now - self.since_s < record.duration_s

    def held_by(self, identity: str, now: float) -> bool:
        """Say whether this identity holds it."""
        return self.record is not None and self.record.holder == identity and self.live(now)


@dataclass(frozen=True, slots=True)
class Acquire:
    """Write the Lease with ourselves as its holder; create it if there is none."""


@dataclass(frozen=True, slots=True)
class Renew:
    """Write the Lease anew, we hold it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again after so many seconds."""

    seconds: float


Step: TypeAlias = Acquire | Renew | Wait


def observe(previous: Observation | None, record: LeaseRecord | None, now: float) -> Observation:
    """Note what the server says; the local time is kept while the version stays the same."""
    if previous is not None and previous.record == record:
        return previous
    return Observation(record, now)


def next_step(seen: Observation, identity: str, timing: ElectionTiming, now: float, draw: float) -> Step:
    """Decide what a candidate, or the holder, does now.

    Args:
        seen: The Lease as just read or written.
        identity: Our own.
        timing: Durations.
        now: Local time in seconds.
        draw: A uniform random number in [0, 1), for jitter.
    """
    if seen.record is None or seen.record.holder == "":
        return Acquire()
    if seen.record.holder == identity:
        return Renew()
    if not seen.live(now):
        return Acquire()
    expires_in_s = seen.since_s + seen.record.duration_s - now
    pause_s = timing.retry_s * (1 + 0.2 * draw)
    # Not a moment early, and a little spread, so that candidates do not all write at the same instant.
    return Wait(max(min(pause_s, expires_in_s + 0.1 * draw), 0.001))


def term_end_s(sent_s: float, timing: ElectionTiming) -> float:
    """Local time until which a leader whose last renewal was sent at ``sent_s`` may act."""
    return sent_s + timing.renew_deadline_s


def parse_lease(raw: Mapping[str, Any]) -> LeaseRecord:
    """Parse a raw Lease; also for watching another component's, such as kube-scheduler's.

    Raises:
        WireError: If it has no usable resource version or duration.
    """
    spec = field(raw, "spec", default={})
    version = field(raw, "metadata", "resourceVersion")
    if not isinstance(version, str) or not version:
        raise WireError("Lease.metadata.resourceVersion", version, "a resource version")
    holder = field(spec, "holderIdentity", default="")
    duration_s = field(spec, "leaseDurationSeconds", default=1 if not holder else None)
    if not isinstance(duration_s, int) or duration_s <= 0:
        raise WireError("Lease.spec.leaseDurationSeconds", duration_s, "a positive whole number of seconds")
    return LeaseRecord(
        holder=str(holder),
        duration_s=duration_s,
        transitions=int(field(spec, "leaseTransitions", default=0)),
        resource_version=version,
        acquired=str(field(spec, "acquireTime", default="")),
    )


def lease_body(
    namespace: str, name: str, *, seen: LeaseRecord | None, holder: str, timing: ElectionTiming, wall: dt.datetime
) -> dict[str, Any]:
    """Build the Lease to write, with the version it replaces as precondition.

    Args:
        namespace: Of the Lease.
        name: Of the Lease.
        seen: The record it replaces; None to create.
        holder: The new holder; empty to release.
        timing: Durations.
        wall: Current UTC time, for people.
    """
    stamp = wall.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    taking = seen is None or seen.holder != holder
    record = seen or LeaseRecord("", 1, 0, "")
    spec: dict[str, Any] = {
        "holderIdentity": holder,
        "leaseDurationSeconds": int(timing.lease_s) if holder else 1,
        "renewTime": stamp,
        "acquireTime": stamp if taking or not record.acquired else record.acquired,
        "leaseTransitions": record.transitions + (1 if seen is not None and taking and holder else 0),
    }
    metadata = {"name": name, "namespace": namespace}
    if seen is not None:
        metadata["resourceVersion"] = seen.resource_version
    return {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": spec}
