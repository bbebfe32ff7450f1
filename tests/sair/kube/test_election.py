from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sair.errors import InvalidInput, WireError
from sair.kube.election import (
    Acquire,
    ElectionTiming,
    LeaseRecord,
    Observation,
    Renew,
    Wait,
    lease_body,
    next_step,
    observe,
    parse_lease,
    term_end_s,
)

TIMING = ElectionTiming()
WALL = dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC)


def held(by: str, version: int = 1, duration_s: int = 15) -> LeaseRecord:
    return LeaseRecord(by, duration_s, 0, str(version))


def test_a_lease_that_does_not_exist_or_was_released_is_taken_at_once() -> None:
    assert next_step(Observation(None, 0.0), "me", TIMING, 0.0, 0.5) == Acquire()
    assert next_step(Observation(held(""), 0.0), "me", TIMING, 0.0, 0.5) == Acquire()


def test_a_follower_waits_while_the_leader_renews_and_takes_over_when_it_has_not_for_the_whole_duration() -> None:
    seen = Observation(held("other"), 100.0)
    assert isinstance(next_step(seen, "me", TIMING, 114.99, 0.5), Wait)
    assert next_step(seen, "me", TIMING, 115.0, 0.5) == Acquire()


def test_a_follower_counts_from_the_moment_it_saw_the_version_first() -> None:
    first = observe(None, held("other"), 100.0)
    assert observe(first, held("other"), 110.0) == first
    assert observe(first, held("other", version=2), 110.0).since_s == 110.0


def test_the_duration_that_counts_is_the_one_in_the_lease() -> None:
    seen = Observation(held("other", duration_s=60), 100.0)
    assert isinstance(next_step(seen, "me", TIMING, 130.0, 0.0), Wait)


def test_the_holder_renews() -> None:
    assert next_step(Observation(held("me"), 0.0), "me", TIMING, 5.0, 0.5) == Renew()


@given(now=st.floats(100, 114.9), draw=st.floats(0, 1, exclude_max=True))
def test_a_follower_never_waits_longer_than_a_jittered_retry_nor_into_the_past(now: float, draw: float) -> None:
    step = next_step(Observation(held("other"), 100.0), "me", TIMING, now, draw)
    assert isinstance(step, Wait)
    assert 0 < step.seconds <= TIMING.retry_s * 1.2


def test_holding_is_seen_by_identity_and_only_while_renewed() -> None:
    seen = Observation(held("scheduler-0_abc"), 100.0)
    assert seen.held_by("scheduler-0_abc", 110.0)
    assert not seen.held_by("scheduler-0_abc", 115.0)
    assert not seen.held_by("scheduler-1_def", 110.0)
    assert seen.record is not None
    assert seen.record.holder_host == "scheduler-0"


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"lease_s": 0.5}, "lease_s"),
        ({"lease_s": 15.5}, "lease_s"),
        ({"renew_deadline_s": 15.0}, "renew_deadline_s"),
        ({"renew_deadline_s": 0.0}, "renew_deadline_s"),
        ({"retry_s": 10.0}, "retry_s"),
    ],
)
def test_durations_with_which_two_could_lead_are_refused(values: dict[str, float], name: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        ElectionTiming(**values)
    assert refusal.value.field == name


@pytest.mark.parametrize("lease_s", [3, 8, 15, 300])
def test_durations_keep_their_proportions_whatever_the_lease(lease_s: int) -> None:
    timing = ElectionTiming.within(lease_s)
    assert timing.lease_s == lease_s
    assert timing.renew_deadline_s / lease_s == pytest.approx(TIMING.renew_deadline_s / TIMING.lease_s)
    assert timing.retry_s / lease_s == pytest.approx(TIMING.retry_s / TIMING.lease_s)
    assert ElectionTiming.within(15) == TIMING


def test_a_lease_is_read_back_as_it_was_written() -> None:
    body = lease_body("ns", "l", seen=None, holder="me", timing=TIMING, wall=WALL)
    assert "resourceVersion" not in body["metadata"]
    body["metadata"]["resourceVersion"] = "7"
    assert parse_lease(body) == LeaseRecord("me", 15, 0, "7", "2026-01-02T03:04:05.000678Z")


def test_transitions_count_changes_of_the_holder_and_the_time_of_acquisition_moves_with_them() -> None:
    mine = LeaseRecord("me", 15, 3, "7", "earlier")
    renewed = lease_body("ns", "l", seen=mine, holder="me", timing=TIMING, wall=WALL)
    assert (renewed["spec"]["leaseTransitions"], renewed["spec"]["acquireTime"]) == (3, "earlier")
    assert renewed["metadata"]["resourceVersion"] == "7"
    taken = lease_body("ns", "l", seen=mine, holder="other", timing=TIMING, wall=WALL)
    assert (taken["spec"]["leaseTransitions"], taken["spec"]["acquireTime"]) == (4, "2026-01-02T03:04:05.000678Z")
    released = lease_body("ns", "l", seen=mine, holder="", timing=TIMING, wall=WALL)
    assert (released["spec"]["leaseTransitions"], released["spec"]["leaseDurationSeconds"]) == (3, 1)


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": "a"}},
        {"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": "a", "leaseDurationSeconds": -1}},
        {"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": "a", "leaseDurationSeconds": "15"}},
    ],
)
def test_a_malformed_lease_is_an_error(raw: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        parse_lease(raw)


def test_a_lease_that_nobody_filled_in_is_free() -> None:
    assert parse_lease({"metadata": {"resourceVersion": "1"}}).holder == ""


@dataclass
class Candidate:
    """A candidate with a clock of its own, driven step by step as the shell around the core does it."""

    name: str
    offset_s: float
    rate: float
    seen: Observation | None = None
    until_s: float | None = None
    wakes_at: float = 0.0
    cut_until: float = 0.0
    pending: list[tuple[float, LeaseRecord | None, float]] = field(default_factory=list)

    def local(self, now: float) -> float:
        return self.offset_s + self.rate * now

    def leads(self, now: float) -> bool:
        return self.until_s is not None and self.local(now) < self.until_s


@given(
    seed=st.integers(0, 2**32),
    offsets=st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3),
    rates=st.lists(st.floats(0.9, 1.1), min_size=3, max_size=3),
    loss=st.floats(0, 0.6),
    delay_s=st.floats(0, 12),
    partitions=st.floats(0, 0.1),
)
def test_never_do_two_lead_whatever_the_clocks_say_and_whatever_the_network_loses(
    seed: int, offsets: list[float], rates: list[float], loss: float, delay_s: float, partitions: float
) -> None:
    chance = random.Random(seed)
    server: LeaseRecord | None = None
    version = 0
    candidates = [Candidate(f"c{n}", offsets[n], rates[n]) for n in range(3)]
    led: set[str] = set()
    now = 0.0
    while now < 300.0:
        now += 0.25
        for candidate in candidates:
            # Answers and writes travel: each takes effect, or is told, some time after it was sent.
            for item in [item for item in candidate.pending if item[0] <= now]:
                candidate.pending.remove(item)
                _, write, sent_local = item
                if write is None:
                    candidate.seen = observe(candidate.seen, server, candidate.local(now))
                    continue
                current = server.resource_version if server else None
                if (write.resource_version or None) != current:
                    continue
                version += 1
                server = LeaseRecord(write.holder, 15, 0, str(version))
                if chance.random() >= loss:
                    candidate.seen = observe(candidate.seen, server, candidate.local(now))
                    candidate.until_s = term_end_s(sent_local, TIMING)
                    led.add(candidate.name)
            if now < candidate.wakes_at:
                continue
            candidate.wakes_at = now + chance.uniform(0.25, TIMING.retry_s * 1.2)
            arrives = now + chance.uniform(0, delay_s)
            if now >= candidate.cut_until and chance.random() < partitions:
                candidate.cut_until = now + chance.uniform(5.0, 40.0)
            if now < candidate.cut_until or chance.random() < loss:
                continue
            local = candidate.local(now)
            if candidate.seen is None or chance.random() < 0.5:
                candidate.pending.append((arrives, None, local))
                continue
            step = next_step(candidate.seen, candidate.name, TIMING, local, chance.random())
            if not isinstance(step, Wait):
                record = candidate.seen.record
                write = LeaseRecord(candidate.name, 15, 0, record.resource_version if record else "")
                candidate.pending.append((arrives, write, local))
        assert sum(candidate.leads(now) for candidate in candidates) <= 1
    if loss < 0.1 and delay_s < 1 and partitions < 0.01:
        assert led
