import pytest

from controller.memory.waiting import Dropped, Waiting


def record(number: int, characters: int = 1_000) -> dict[str, str]:
    return {"kind": "decision", "round": str(number), "reply": "x" * characters}


def test_records_wait_in_order_and_nothing_is_dropped_below_the_bound() -> None:
    waiting = Waiting(1_000_000)
    assert [waiting.add("a/x", record(number)) for number in range(3)] == [[], [], []]
    assert waiting.count() == waiting.count("a/x") == 3
    seen = []
    while waiting.count("a/x"):
        with waiting.writing("a/x") as oldest:
            seen.append(oldest["round"])
    assert seen == ["0", "1", "2"]
    assert waiting.count("a/x") == 0


def test_beyond_the_bound_the_longest_queue_gives_up_its_oldest_and_says_which() -> None:
    waiting = Waiting(50_000)
    waiting.add("quiet/one", record(0))
    shortened = [name for number in range(100) for name in waiting.add("busy/one", record(number))]
    assert set(shortened) == {"busy/one"}
    assert waiting.count() * 2_400 <= 50_000
    assert waiting.count("quiet/one") == 1
    kept = waiting.count("busy/one")
    assert waiting.dropped("busy/one") == Dropped(100 - kept, "0", str(99 - kept))
    assert waiting.dropped("quiet/one") == Dropped()
    with waiting.telling("busy/one") as told:
        assert told.records == 100 - kept
    assert waiting.dropped("busy/one") == Dropped()


def test_a_record_larger_than_the_bound_waits_alone() -> None:
    waiting = Waiting(10_000)
    waiting.add("a/x", record(1))
    assert waiting.add("a/x", record(2, 20_000)) == ["a/x"]
    with waiting.writing("a/x") as oldest:
        assert oldest["round"] == "2"


def test_what_is_being_written_is_not_dropped_meanwhile_and_waits_on_if_it_could_not_be() -> None:
    waiting = Waiting(10_000)
    for number in range(3):
        waiting.add("a/x", record(number))
    with pytest.raises(OSError, match="away"), waiting.writing("a/x") as oldest:
        assert oldest["round"] == "0"
        for number in range(3, 9):
            waiting.add("a/x", record(number))
        assert waiting.dropped("a/x") == Dropped(6, "1", "6")
        raise OSError("away")
    seen = []
    while waiting.count("a/x"):
        with waiting.writing("a/x") as oldest:
            seen.append(oldest["round"])
            assert waiting.count("a/x") == 4 - len(seen)
    assert seen == ["0", "7", "8"]


def test_what_is_dropped_while_it_is_told_is_told_the_next_time() -> None:
    waiting = Waiting(10_000)
    numbers = iter(range(100))

    def one_more() -> None:
        waiting.add("a/x", record(next(numbers)))

    for _ in range(6):
        one_more()
    with pytest.raises(OSError, match="away"), waiting.telling("a/x") as told:
        assert told == Dropped(3, "0", "2")
        one_more()
        raise OSError("away")
    with waiting.telling("a/x") as told:
        assert told == Dropped(4, "0", "3")
        one_more()
    assert waiting.dropped("a/x") == Dropped(1, "4", "4")


def test_what_is_cleared_takes_no_room_any_more() -> None:
    waiting = Waiting(10_000)
    for _ in range(20):
        assert waiting.add("a/x", record(1)) == []
        assert waiting.add("a/x", record(2)) == []
        assert waiting.clear("a/x") == 2
