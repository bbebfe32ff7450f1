"""Which of several extenders grants."""

from __future__ import annotations

from extender.leadership import Leadership, LeaseState, parse_lease

OURS, THEIRS = "pod-a_4f0c-77", "pod-b_91aa-02"


def leadership() -> Leadership:
    return Leadership("pod-a", fresh_s=10.0, takeover_s=1.0)


def test_without_a_lease_it_always_grants() -> None:
    assert Leadership(None, fresh_s=10.0, takeover_s=1.0).leads(0.0)


def test_it_grants_while_its_scheduler_renews() -> None:
    one = leadership()
    for second in range(20):
        one.see(LeaseState(OURS, f"t{second}"), float(second))

    assert one.leads(20.0)
    assert one.why_not(20.0) is None


def test_the_first_look_at_a_lease_proves_nothing() -> None:
    one = leadership()
    one.see(LeaseState(OURS, "t0"), 0.0)

    assert not one.leads(5.0)
    one.see(LeaseState(OURS, "t1"), 5.0)
    assert one.leads(5.0)


def test_it_holds_still_right_after_taking_over() -> None:
    one = leadership()
    one.see(LeaseState(THEIRS, "t0"), 0.0)
    one.see(LeaseState(OURS, "t1"), 2.0)

    assert not one.leads(2.5)
    assert one.leads(3.0)


def test_it_stops_when_the_lease_is_not_renewed() -> None:
    one = leadership()
    for second in range(3):
        one.see(LeaseState(OURS, f"t{second}"), float(second))

    assert one.leads(12.0)
    assert not one.leads(12.1)
    assert one.why_not(12.1) == "the own scheduler's Lease was not seen renewed"


def test_after_a_gap_one_look_proves_nothing_either() -> None:
    one = leadership()
    for second in range(3):
        one.see(LeaseState(OURS, f"t{second}"), float(second))
    one.see(LeaseState(OURS, "t30"), 40.0)

    assert not one.leads(40.0)
    one.see(LeaseState(OURS, "t42"), 42.0)
    assert one.leads(42.0)


def test_it_stops_the_moment_another_holds_the_lease_or_nobody_does() -> None:
    for other in (LeaseState(THEIRS, "t3"), LeaseState()):
        one = leadership()
        for second in range(3):
            one.see(LeaseState(OURS, f"t{second}"), float(second))
        one.see(other, 3.0)

        assert not one.leads(3.0)


def test_a_pod_whose_name_merely_begins_alike_is_another() -> None:
    one = Leadership("pod", fresh_s=10.0, takeover_s=0.1)
    for second in range(3):
        one.see(LeaseState("pod-a_77", f"t{second}"), float(second))

    assert not one.leads(2.0)
    assert one.why_not(2.0) == "the schedulers' Lease is held by pod-a_77"


def test_a_lease_is_read() -> None:
    assert parse_lease({"spec": {"holderIdentity": OURS, "renewTime": "t"}}) == LeaseState(OURS, "t")
    assert parse_lease({"spec": {"holderIdentity": ""}}) == LeaseState()
    assert parse_lease({}) == LeaseState()
