import pytest

from controller.memory.store import Store
from controller.recorded import RecordedRound, rounds_in
from sair.errors import EntryError
from tests.controller.histories import history, recorded_run


async def test_rounds_are_put_together_from_their_records(store: Store) -> None:
    watcher = await recorded_run(store, 250)
    rounds, _ = await history(store)
    assert [each.round for each in rounds] == [report.round for report in watcher.reports]
    for each, report in zip(rounds, watcher.reports, strict=True):
        assert report.decision is not None
        assert each.observation() == report.observation
        assert each.view() == report.view
        assert each.room() == report.room
        assert each.allocations("before_json") == report.decision.before
        assert each.verdicts() == list(report.decision.verdicts)
        assert each.outcomes() == (list(report.outcomes) if report.decision.action else None)
    assert rounds[0].learned() == watcher.reports[0].learned
    assert rounds[0].reward() is not None
    assert rounds[-1].concluded is None


def test_a_number_that_comes_twice_is_two_rounds_and_what_follows_belongs_to_the_second() -> None:
    records = [
        ("1-0", {"kind": "decision", "round": "4", "problem": "held"}),
        ("2-0", {"kind": "decision", "round": "4"}),
        ("3-0", {"kind": "applied", "round": "4"}),
        ("4-0", {"kind": "concluded", "round": "3"}),
    ]
    rounds, damaged = rounds_in("journal", records)
    assert not damaged
    assert [each.applied is not None for each in rounds] == [False, True]


def test_a_record_of_no_kind_or_no_number_is_named_and_left_out() -> None:
    records = [("1-0", {"kind": "sudo", "round": "1"}), ("2-0", {"kind": "decision", "round": "²"}), ("3-0", {})]
    rounds, damaged = rounds_in("journal", records)
    assert rounds == ()
    assert [error.field for error in damaged] == ["journal 1-0 kind", "journal 2-0 round", "journal 3-0 kind"]


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("observation_json", "{"),
        ("observation_json", "[" * 100_000),
        ("view_json", "null"),
        ("room_json", '{"nodes": 3}'),
        ("learned_json", '{"pipeline": 1}'),
        ("before_json", '{"a": {"replicas": -1, "cpu_m": 1, "memory_mi": 1}}'),
        ("menu_json", "[1]"),
        ("verdicts_json", '[{"rule": "x", "outcome": "maybe"}]'),
        ("observation_json", "x" * 2_000_000),
    ],
)
def test_a_damaged_field_is_named_with_its_record(field: str, text: str) -> None:
    each = RecordedRound("journal", "1-0", 1, {field: text})
    readers = {
        "observation_json": each.observation,
        "view_json": each.view,
        "room_json": each.room,
        "learned_json": each.learned,
        "before_json": lambda: each.allocations("before_json"),
        "menu_json": each.menu,
        "verdicts_json": each.verdicts,
    }
    with pytest.raises(EntryError) as refused:
        readers[field]()
    assert refused.value.field == f"journal 1-0 {field}"


def test_a_decision_that_was_written_twice_is_one_round() -> None:
    twice = {"kind": "decision", "round": "4", "time_s": "30.0", "action": "hold"}
    records = [
        ("1-0", twice),
        ("2-0", twice),
        ("3-0", {"kind": "applied", "round": "4", "time_s": "30.0"}),
        ("4-0", {**twice, "time_s": "60.0"}),
    ]
    rounds, damaged = rounds_in("journal", records)
    assert not damaged
    assert [(each.identifier, each.applied is not None) for each in rounds] == [("1-0", True), ("4-0", False)]


def test_what_followed_a_round_belongs_to_the_one_of_its_time_where_a_number_was_taken_twice() -> None:
    records = [
        ("1-0", {"kind": "decision", "round": "4", "time_s": "30.0"}),
        ("2-0", {"kind": "decision", "round": "4", "time_s": "90.0"}),
        ("3-0", {"kind": "concluded", "round": "4", "time_s": "90.0", "experience": "second"}),
        ("4-0", {"kind": "applied", "round": "4", "time_s": "30.0"}),
        ("5-0", {"kind": "concluded", "round": "4", "time_s": "30.0", "experience": "first"}),
    ]
    first, second = rounds_in("journal", records)[0]
    assert (first.applied is not None, second.applied is not None) == (True, False)
    assert [each.concluded and each.concluded["experience"] for each in (first, second)] == ["first", "second"]
