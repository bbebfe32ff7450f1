from controller.memory.waiting import Dropped, Waiting


def record(number: int, characters: int = 1_000) -> dict[str, str]:
    return {"kind": "decision", "round": str(number), "reply": "x" * characters}


def test_records_wait_in_order_and_nothing_is_dropped_below_the_bound() -> None:
    waiting = Waiting(1_000_000)
    assert [waiting.add("a/x", record(number)) for number in range(3)] == [[], [], []]
    assert waiting.count() == waiting.count("a/x") == 3
    seen = []
    while (oldest := waiting.first("a/x")) is not None:
        seen.append(oldest["round"])
        waiting.done("a/x")
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
    waiting.told("busy/one")
    assert waiting.dropped("busy/one") == Dropped()


def test_a_record_larger_than_the_bound_waits_alone() -> None:
    waiting = Waiting(10_000)
    waiting.add("a/x", record(1))
    assert waiting.add("a/x", record(2, 20_000)) == ["a/x"]
    assert (waiting.first("a/x") or {})["round"] == "2"


def test_what_is_cleared_takes_no_room_any_more() -> None:
    waiting = Waiting(10_000)
    for _ in range(20):
        assert waiting.add("a/x", record(1)) == []
        assert waiting.add("a/x", record(2)) == []
        assert waiting.clear("a/x") == 2
