from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from sair.kube.occurrences import Aggregator, Create, EventRate, Occurrence, Prolong, Reference, Write, event_body
from sair.kube.resources import NODES, PODS

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
POD = Reference(PODS, "a", "ns", "uid-a")


def at(seconds: float) -> dt.datetime:
    return START + dt.timedelta(seconds=seconds)


def refusal(note: str = "no room", about: Reference = POD, reason: str = "GpuRateRefused") -> Occurrence:
    return Occurrence(about, reason, note, "Granting", "Warning")


def test_the_first_of_its_kind_is_written_at_once() -> None:
    assert Aggregator().happened(refusal(), at(0), "e1") == [Create("e1", refusal(), at(0))]


def test_the_same_again_is_counted_and_written_as_a_series_after_a_while() -> None:
    events = Aggregator(EventRate(quiet_s=10))
    events.happened(refusal(), at(0), "e1")
    assert events.happened(refusal(), at(3), "e2") == []
    assert events.happened(refusal(), at(6), "e3") == []
    assert events.due(at(9.9)) == []
    assert events.due(at(10)) == [Prolong("e1", refusal(), 3, at(0), at(6))]
    assert events.due(at(30)) == []


def test_what_says_something_new_is_an_event_of_its_own() -> None:
    events = Aggregator()
    for number in range(3):
        said = refusal(f"round {number}")
        assert events.happened(said, at(30 * number), f"e{number}") == [Create(f"e{number}", said, at(30 * number))]
    assert events.happened(refusal("round 1"), at(75), "x") == [Prolong("e1", refusal("round 1"), 2, at(30), at(75))]


def test_who_says_something_new_all_the_time_is_heard_so_often_and_counted_in_between() -> None:
    events = Aggregator(EventRate(quiet_s=10, notes=3, note_every_s=60))
    writes = [
        write for second in range(120) for write in events.happened(refusal(f"{second}"), at(second), f"e{second}")
    ]
    created = [write.name for write in writes if isinstance(write, Create)]
    assert created[:3] == ["e0", "e1", "e2"]
    assert len(created) == 4
    counts = dict.fromkeys(created, 1)
    counts |= {write.name: write.count for write in [*writes, *events.flush()] if isinstance(write, Prolong)}
    assert sum(counts.values()) == 120


def test_one_object_that_talks_too_much_silences_no_other() -> None:
    events = Aggregator(EventRate(notes=1))
    for number in range(5):
        events.happened(refusal(f"{number}"), at(0), f"e{number}")
    other = refusal("5", about=Reference(PODS, "b", "ns"))
    assert events.happened(other, at(0), "x") == [Create("x", other, at(0))]


def test_another_reason_or_another_object_is_another_event() -> None:
    events = Aggregator()
    events.happened(refusal(), at(0), "e1")
    assert isinstance(events.happened(refusal(reason="GpuRateGranted"), at(0), "e2")[0], Create)
    reborn = Reference(PODS, "a", "ns", "uid-b")
    assert isinstance(events.happened(refusal(about=reborn), at(0), "e3")[0], Create)


def test_after_a_long_pause_a_new_event_begins_and_the_old_series_is_closed_with_its_count() -> None:
    events = Aggregator(EventRate(quiet_s=10, series_s=60))
    events.happened(refusal(), at(0), "e1")
    events.happened(refusal(), at(5), "e2")
    assert events.happened(refusal(), at(100), "e3") == [
        Prolong("e1", refusal(), 2, at(0), at(5)),
        Create("e3", refusal(), at(100)),
    ]


def test_what_was_counted_is_not_lost_at_the_end() -> None:
    events = Aggregator()
    events.happened(refusal(), at(0), "e1")
    events.happened(refusal(), at(1), "e2")
    assert events.flush() == [Prolong("e1", refusal(), 2, at(0), at(1))]
    assert events.flush() == []


def test_memory_is_bounded_and_the_series_forgotten_is_the_one_longest_silent() -> None:
    events = Aggregator(EventRate(remembered=2))
    for number in range(3):
        events.happened(refusal(about=Reference(PODS, f"p{number}", "ns")), at(number), f"e{number}")
    assert isinstance(events.happened(refusal(about=Reference(PODS, "p2", "ns")), at(20), "x")[0], Prolong)
    assert isinstance(events.happened(refusal(about=Reference(PODS, "p0", "ns")), at(21), "x")[0], Create)


@given(steps=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 3), st.booleans()), max_size=60))
def test_every_occurrence_is_counted_once_and_no_series_is_written_more_often_than_allowed(
    steps: list[tuple[float, int, bool]],
) -> None:
    rate = EventRate(quiet_s=10, series_s=60, remembered=3)
    events = Aggregator(rate)
    now, happened = 0.0, 0
    counts: dict[str, int] = {}
    last_written: dict[str, float] = {}

    def take(writes: list[Write], *, final: bool = False) -> None:
        for write in writes:
            if isinstance(write, Create):
                assert write.name not in counts
                counts[write.name] = 1
            else:
                assert write.count > counts[write.name]
                ended = final or (at(now) - write.last).total_seconds() > rate.series_s or len(counts) > rate.remembered
                assert now - last_written[write.name] >= rate.quiet_s or ended
                counts[write.name] = write.count
            last_written[write.name] = now

    for index, (pause, which, tick) in enumerate(steps):
        now += pause
        if tick:
            take(events.due(at(now)))
        else:
            happened += 1
            take(events.happened(refusal(about=Reference(PODS, f"p{which}", "ns")), at(now), f"e{index}"))
    take(events.flush(), final=True)
    assert sum(counts.values()) == happened


@given(steps=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 12)), max_size=60))
def test_whatever_is_said_no_kind_has_more_events_than_it_is_allowed(steps: list[tuple[float, int]]) -> None:
    rate = EventRate(quiet_s=10, series_s=1e9, notes=3, note_every_s=60)
    events, now, created = Aggregator(rate), 0.0, 0
    for index, (pause, which) in enumerate(steps):
        now += pause
        writes = events.happened(refusal(f"note {which}"), at(now), f"e{index}")
        created += sum(isinstance(write, Create) for write in writes)
        assert created <= rate.notes + now / rate.note_every_s + 1e-6


def test_an_event_about_a_cluster_wide_object_lives_in_the_default_namespace() -> None:
    body = event_body(
        Create("e", refusal(about=Reference(NODES, "n1")), at(0)), controller="sair.dev/extender", instance="x"
    )
    assert body["metadata"]["namespace"] == "default"
    assert body["regarding"] == {"apiVersion": "v1", "kind": "Node", "name": "n1"}


def test_a_note_is_cut_at_what_the_server_takes_without_splitting_a_character() -> None:
    body = event_body(Create("e", refusal("ä" * 1000), at(0)), controller="sair.dev/extender", instance="x")
    assert len(body["note"].encode()) <= 1024
    assert body["note"].endswith("ä…")
