import asyncio
from pathlib import Path

import pytest
import redis.asyncio as redis

from controller.memory.embedded import embedded_server
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from sair.errors import SchemaVersionError
from tests.builders import experience

PIPELINE = "default/vision"


async def test_a_flushed_redis_gets_back_what_the_controller_knows(store: Store, redis_url: str) -> None:
    memory = MirroredMemory(store)
    for number in (1, 2, 3):
        await memory.save(experience(number), PIPELINE, {"round": str(number)}, {})
    async with redis.from_url(redis_url) as client:
        await client.flushall()
    await memory.save(experience(4), PIPELINE, {"round": "4"}, {})
    loaded = await store.load(PIPELINE)
    assert [e.round for e in loaded.experiences] == [1, 2, 3, 4]
    assert loaded.state == {"round": "4"}


async def test_experiences_wait_while_redis_is_away_and_are_written_when_it_is_back(tmp_path: Path) -> None:
    async with embedded_server(tmp_path) as url:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        store = Store.from_url(url)
        memory = MirroredMemory(store)
        await memory.save(experience(1), PIPELINE, {"round": "1"}, {})
    await memory.save(experience(2), PIPELINE, {"round": "2"}, {})
    await memory.record(PIPELINE, {"round": "2"})
    assert (memory.available, memory.unsaved) == (False, 1)
    async with embedded_server(tmp_path, port=port):
        await memory.save(experience(3), PIPELINE, {"round": "3"}, {})
        assert (memory.available, memory.unsaved) == (True, 0)
        assert [e.round for e in (await store.load(PIPELINE)).experiences] == [1, 2, 3]
        assert len(await store.decisions(PIPELINE, 10)) == 1
        await store.close()


async def test_a_controller_that_starts_while_redis_is_away_merges_what_it_finds_later(tmp_path: Path) -> None:
    async with embedded_server(tmp_path) as url:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        first = Store.from_url(url)
        await MirroredMemory(first).save(experience(1), PIPELINE, {}, {})
        await first.close()
    store = Store.from_url(url)
    memory = MirroredMemory(store)
    assert (await memory.load(PIPELINE)).experiences == ()
    await memory.save(experience(2), PIPELINE, {}, {})
    async with embedded_server(tmp_path, port=port):
        assert [e.round for e in (await memory.load(PIPELINE)).experiences] == [1, 2]
        await memory.save(experience(3), PIPELINE, {}, {})
        assert [e.round for e in (await store.load(PIPELINE)).experiences] == [1, 2, 3]
        await store.close()


async def test_memory_is_bounded_and_forgets_what_taught_least(store: Store) -> None:
    memory = MirroredMemory(store, capacity=60)
    for number in range(70):
        await memory.save(experience(number, surprisal=float(number)), PIPELINE, {}, {})
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
            await memory.save(experience(number), PIPELINE, {"round": str(number)}, {})
        # Nobody waited for it again, and nothing was dropped.
        assert asked == before
        assert memory.unsaved == 4
        ended.set()
        await store.close()
