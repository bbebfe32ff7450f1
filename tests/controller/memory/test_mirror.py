import asyncio
from pathlib import Path

import pytest
import redis.asyncio as redis

from controller.experience import Outcome
from controller.memory.embedded import embedded_server
from controller.memory.keys import Keys
from controller.memory.mirror import MirroredMemory
from controller.memory.store import FrontierPoint, Store
from sair.errors import SchemaVersionError
from tests.builders import experience
from tests.controller.memory.telling import PIPELINE, Logs, journal, told


async def test_a_flushed_redis_gets_back_what_the_controller_knows(store: Store, redis_url: str) -> None:
    memory = MirroredMemory(store)
    for number in (1, 2, 3):
        await memory.save([experience(number)], PIPELINE, {"round": str(number)}, {})
    async with redis.from_url(redis_url) as client:
        await client.flushall()
    await memory.save([experience(4)], PIPELINE, {"round": "4"}, {})
    loaded = await store.load(PIPELINE)
    assert [e.round for e in loaded.experiences] == [1, 2, 3, 4]
    assert loaded.state == {"round": "4"}


async def test_experiences_wait_while_redis_is_away_and_are_written_when_it_is_back(tmp_path: Path) -> None:
    async with embedded_server(tmp_path) as url:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        store = Store.from_url(url)
        memory = MirroredMemory(store)
        await memory.save([experience(1)], PIPELINE, {"round": "1"}, {})
    await memory.save([experience(2)], PIPELINE, {"round": "2"}, {})
    await memory.record(PIPELINE, {"round": "2"})
    assert (memory.available, memory.unsaved) == (False, 1)
    async with embedded_server(tmp_path, port=port):
        await memory.save([experience(3)], PIPELINE, {"round": "3"}, {})
        assert (memory.available, memory.unsaved) == (True, 0)
        assert [e.round for e in (await store.load(PIPELINE)).experiences] == [1, 2, 3]
        assert len(await store.decisions(PIPELINE, 10)) == 1
        await store.close()


async def test_a_controller_that_starts_while_redis_is_away_merges_what_it_finds_later(tmp_path: Path) -> None:
    async with embedded_server(tmp_path) as url:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        first = Store.from_url(url)
        await MirroredMemory(first).save([experience(1)], PIPELINE, {}, {})
        await first.close()
    store = Store.from_url(url)
    memory = MirroredMemory(store)
    assert (await memory.load(PIPELINE)).experiences == ()
    await memory.save([experience(2)], PIPELINE, {}, {})
    async with embedded_server(tmp_path, port=port):
        assert [e.round for e in (await memory.load(PIPELINE)).experiences] == [1, 2]
        await memory.save([experience(3)], PIPELINE, {}, {})
        assert [e.round for e in (await store.load(PIPELINE)).experiences] == [1, 2, 3]
        await store.close()


async def test_memory_is_bounded_and_forgets_what_taught_least(store: Store) -> None:
    memory = MirroredMemory(store, capacity=60)
    for number in range(70):
        await memory.save([experience(number, surprisal=float(number))], PIPELINE, {}, {})
    assert await store.count(PIPELINE) == 60
    assert [e.round for e in (await store.load(PIPELINE)).experiences] == list(range(10, 70))


async def test_another_schema_stops_the_controller_before_it_writes(store: Store, redis_url: str) -> None:
    async with redis.from_url(redis_url) as client:
        await client.set("sair:schema", "99")
    with pytest.raises(SchemaVersionError):
        await MirroredMemory(store).load(PIPELINE)


async def test_the_server_of_the_embedded_default_keeps_its_data(tmp_path: Path) -> None:
    for _ in range(2):
        async with embedded_server(tmp_path) as url, redis.from_url(url) as client:
            await client.incr("starts")
            count = int(await client.get("starts") or 0)
    assert count == 2


async def test_a_redis_that_takes_calls_and_never_answers_holds_rounds_up_once_and_not_every_time() -> None:
    asked = 0
    ended = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await ended.wait()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        store = Store.from_url(f"redis://127.0.0.1:{port}/0")
        memory = MirroredMemory(store)
        await memory.record(PIPELINE, {"round": "1"})
        assert not memory.available
        before = asked
        for number in range(2, 6):
            await memory.record(PIPELINE, {"round": str(number)})
            await memory.save([experience(number)], PIPELINE, {"round": str(number)}, {})
        # Nobody waited for it again, and nothing was dropped.
        assert asked == before
        assert memory.unsaved == 4
        ended.set()
        await store.close()


async def test_a_flush_is_told_with_what_is_rebuilt_and_what_stays_lost(
    store: Store, redis_url: str, logs: Logs
) -> None:
    memory = MirroredMemory(store)
    await memory.load(PIPELINE)
    for number in (1, 2, 3):
        await memory.record(PIPELINE, {"kind": "decision", "round": str(number)})
        await memory.save([experience(number)], PIPELINE, {"round": str(number)}, {})
    async with redis.from_url(redis_url) as client:
        await client.flushall()
    await memory.record(PIPELINE, {"kind": "decision", "round": "4"})
    await memory.save([experience(4)], PIPELINE, {"round": "4"}, {})
    line = told(logs, "does not hold what it was given: it was emptied")
    assert (line["experiences_rebuilt"], line["journal_records_lost"]) == (4, 3)
    assert "stay lost" in line["event"]
    assert [(each["kind"], each.get("round"), each.get("records")) for each in await journal(store)] == [
        ("decision", "4", None),
        ("lost", None, "3"),
    ]
    assert (memory.losses.records, memory.standing(PIPELINE).lost) == (3, 3)
    logs.clear()
    await memory.save([experience(5)], PIPELINE, {"round": "5"}, {})
    assert logs == []


async def test_an_older_copy_of_the_same_size_is_noticed_rebuilt_and_told(
    store: Store, redis_url: str, logs: Logs
) -> None:
    memory = MirroredMemory(store, capacity=60)
    await memory.load(PIPELINE)
    surprisals = {number: float(number) for number in range(80)}

    async def rounds(first: int, last: int) -> None:
        for number in range(first, last):
            await memory.record(PIPELINE, {"kind": "decision", "round": str(number)})
            each = experience(number, surprisal=surprisals[number])
            await memory.save([each], PIPELINE, {"round": str(number)}, {})

    async with redis.from_url(redis_url) as client:
        await rounds(0, 70)
        names = [key async for key in client.scan_iter()]
        old = {name: await client.dump(name) for name in names}
        await rounds(70, 75)
        await client.flushall()
        for name, value in old.items():
            assert value is not None
            await client.restore(name, 0, value)
    # As many as the controller knows, and not the same.
    assert await store.count(PIPELINE) == 60
    await rounds(75, 76)
    assert [e.round for e in (await store.load(PIPELINE, 1_000)).experiences] == list(range(16, 76))
    line = told(logs, "it was put back to an older copy")
    assert (line["experiences_rebuilt"], line["journal_records_lost"]) == (60, 5)
    assert line["experiences_deleted"] == 6
    kinds = [each["kind"] for each in await journal(store)]
    assert kinds.count("lost") == 1
    assert len(kinds) == 72
    index = await store.index(PIPELINE)
    hashes = [key for key in await store.keys(PIPELINE) if ":experience:" in key]
    assert len(hashes) == len(index) == 60


async def test_a_lower_capacity_forgets_in_redis_too_what_taught_least(
    store: Store, redis_url: str, logs: Logs
) -> None:
    best = Outcome(0.1, 0.1)
    frontier = {"0000000003": FrontierPoint(best, 3)}
    before = MirroredMemory(store, capacity=1_000)
    for number in range(200):
        outcome = best if number == 3 else Outcome(0.8, 0.4)
        each = experience(number, surprisal=float(number), outcome=outcome)
        # One that says of all that they stand on the frontier is not believed.
        claimed = frontier | {f"{known:010d}": FrontierPoint(outcome, 3) for known in range(number)}
        await before.save([each], PIPELINE, {"round": "1"}, claimed)
    after = MirroredMemory(store, capacity=100)
    loaded = await after.load(PIPELINE)
    kept = [3, *range(101, 200)]
    assert [e.round for e in loaded.experiences] == kept
    assert [key for key in await store.keys(PIPELINE) if ":experience:" in key] == [
        Keys(PIPELINE).experience(f"{number:010d}") for number in kept
    ]
    assert told(logs, "more experiences than the capacity")["forgotten"] == 100
    assert set(await store.client.hkeys(Keys(PIPELINE).frontier)) == {"0000000003"}
    await after.save([experience(200, surprisal=200.0)], PIPELINE, {"round": "2"}, frontier)
    assert await store.count(PIPELINE) == 100


@pytest.mark.parametrize("given", [None, {"0000000200": FrontierPoint(Outcome(0.8, 0.4), 3)}])
async def test_a_frontier_point_survives_a_start_without_redis(
    tmp_path: Path, given: dict[str, FrontierPoint] | None
) -> None:
    best = experience(0, surprisal=0.0, outcome=Outcome(0.1, 0.1))
    frontier = {best.id: FrontierPoint(best.outcome, best.load_bucket)}
    async with embedded_server(tmp_path) as url:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        first = Store.from_url(url)
        known = [best, *(experience(number, surprisal=1.0 + number) for number in range(1, 100))]
        await first.restore(PIPELINE, known, {"round": "99"}, frontier)
        await first.close()
    store = Store.from_url(url)
    memory = MirroredMemory(store, capacity=100)
    assert not (await memory.load(PIPELINE)).whole
    async with embedded_server(tmp_path, port=port):
        # The round's save comes before the next attempt to recall; it knows of its own rounds only.
        await memory.save([experience(200, surprisal=50.0)], PIPELINE, {}, given)
        assert await store.count(PIPELINE) == 101
        if given is None:
            assert await store.client.hkeys(Keys(PIPELINE).frontier) == [best.id]
        loaded = await memory.load(PIPELINE)
        assert loaded.whole
        assert best.id in {each.id for each in loaded.experiences}
        assert await store.count(PIPELINE) == 100
        assert await store.client.hkeys(Keys(PIPELINE).frontier) == [best.id]
        await store.close()


async def test_while_the_frontier_is_unknown_memory_is_bounded_and_its_own_best_stay(store: Store) -> None:
    memory = MirroredMemory(store, capacity=60)
    best = experience(0, surprisal=0.0, outcome=Outcome(0.1, 0.1))
    await memory.save([best], PIPELINE, {}, None)
    for number in range(1, 80):
        await memory.save([experience(number, surprisal=float(number))], PIPELINE, {}, None)
    assert [each.round for each in (await store.load(PIPELINE)).experiences] == [0, *range(21, 80)]


async def test_a_leader_that_was_paused_writes_nothing_over_its_successor(store: Store, logs: Logs) -> None:
    leads = True
    first = MirroredMemory(store, leads=lambda: leads)
    await first.load(PIPELINE)
    await first.save([experience(1)], PIPELINE, {"round": "1"}, {})
    second = MirroredMemory(store)
    await second.load(PIPELINE)
    await second.save([experience(2)], PIPELINE, {"round": "2"}, {})
    leads = False
    await first.record(PIPELINE, {"kind": "decision", "round": "9"})
    await first.save([experience(9)], PIPELINE, {"round": "9"}, {})
    loaded = await store.load(PIPELINE)
    assert ([e.round for e in loaded.experiences], loaded.state) == ([1, 2], {"round": "2"})
    assert await journal(store) == []
    assert first.losses.refused == 2
    refused = [each for each in logs if "another controller leads this pipeline by now" in each["event"]]
    assert [(each["records"], each["experiences"]) for each in refused] == [(1, 0), (0, 1)]
    await second.save([experience(3)], PIPELINE, {"round": "3"}, {})
    assert second.losses.refused == 0


async def test_a_leader_whose_pipeline_somebody_else_claimed_claims_it_again(store: Store, logs: Logs) -> None:
    leader = MirroredMemory(store)
    await leader.load(PIPELINE)
    await leader.save([experience(1)], PIPELINE, {"round": "1"}, {})
    late = await store.claim(PIPELINE)
    await store.restore(PIPELINE, [experience(9)], {"round": "9"}, {}, writer=late)
    await leader.record(PIPELINE, {"kind": "decision", "round": "2"})
    await leader.save([experience(2)], PIPELINE, {"round": "2"}, {})
    assert told(logs, "it is claimed again")["pipeline"] == PIPELINE
    assert (await store.load(PIPELINE)).state == {"round": "2"}
    assert len(await journal(store)) == 1
    assert leader.losses.refused == 0


async def test_records_beyond_what_may_wait_are_counted_and_the_journal_says_that_they_are_missing(
    tmp_path: Path, logs: Logs
) -> None:
    async with embedded_server(tmp_path) as url:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        store = Store.from_url(url)
        memory = MirroredMemory(store, waiting_bytes=50_000)
        await memory.load(PIPELINE)
        await memory.save([experience(0)], PIPELINE, {"round": "0"}, {})
    for number in range(1, 31):
        await memory.record(PIPELINE, {"kind": "decision", "round": str(number), "reply": "x" * 3_000})
    kept = memory.waiting
    assert 0 < kept < 30
    assert memory.losses.records == memory.standing(PIPELINE).lost == 30 - kept
    told(logs, "the oldest are dropped and counted")
    async with embedded_server(tmp_path, port=port):
        await memory.save([experience(1)], PIPELINE, {"round": "31"}, {})
        records = await journal(store)
        assert (records[0]["kind"], records[0]["records"]) == ("lost", str(30 - kept))
        assert f"rounds 1 to {30 - kept}" in records[0]["reason"]
        assert [each["round"] for each in records[1:]] == [str(number) for number in range(31 - kept, 31)]
        assert told(logs, "journal records were dropped")["records"] == 30 - kept
        await store.close()
