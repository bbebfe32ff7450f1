import asyncio
from pathlib import Path

import pytest
import redis.asyncio as redis
from typer.testing import CliRunner

from controller.memory.command import app
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from tests.builders import experience
from tests.controller.memory.servers import answers, eventually, plain
from tests.controller.memory.telling import PIPELINE, Logs, journal, told

_LEAST = ("default", "on", "nopass", "resetkeys", "~sair:*", "+@all", "-@dangerous", "-@admin", "+keys")
"""What a user needs at least; see docs/memory.md."""


async def test_a_full_redis_is_named_nothing_is_lost_and_what_waits_is_written_once_there_is_room(
    tmp_path: Path, logs: Logs
) -> None:
    arguments = ("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    async with plain(tmp_path / "full", *arguments) as (_process, port):
        await eventually(lambda: answers(port))
        store = Store.from_url(f"redis://127.0.0.1:{port}/0")
        memory = MirroredMemory(store)
        await memory.load(PIPELINE)
        number = 0
        while memory.available and number < 400:
            number += 1
            await memory.record(PIPELINE, {"kind": "decision", "round": str(number), "reply": "x" * 8_000})
            await memory.save([experience(number)], PIPELINE, {"round": str(number)}, {})
        for late in range(number + 1, number + 6):
            await memory.record(PIPELINE, {"kind": "decision", "round": str(late), "reply": "x" * 8_000})
            await memory.save([experience(late)], PIPELINE, {"round": str(late)}, {})
        standing = memory.standing(PIPELINE)
        assert standing.full
        assert "maxmemory" in standing.problem
        # The first that there was no room for was a round's record, or what came after it.
        written = number + 5 - standing.records
        assert (standing.experiences, standing.lost) == (6, 0)
        assert [int(each["round"]) for each in await journal(store)] == list(range(1, written + 1))
        assert written in (number - 1, number)
        told(logs, "Redis is full")
        # Who leads next can read all that is there.
        successor = MirroredMemory(store)
        loaded = await successor.load(PIPELINE)
        assert loaded.whole
        assert len(loaded.experiences) == number - 1
        async with redis.Redis(port=port) as client:
            await client.config_set("maxmemory", "100mb")
        await memory.save([experience(number + 6)], PIPELINE, {"round": str(number + 6)}, {})
        assert memory.available
        assert await store.count(PIPELINE) == number + 6
        assert [int(each["round"]) for each in await journal(store)] == list(range(1, number + 6))
        told(logs, "Redis takes everything again")
        await store.close()


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        (("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"), ["allkeys-lru"]),
        (("--maxmemory", "100mb", "--maxmemory-policy", "noeviction"), []),
        (("--maxmemory-policy", "allkeys-lru"), []),
        (("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru", "--user", *_LEAST), []),
    ],
    ids=["evicts", "keeps", "has no bound", "does not tell"],
)
async def test_a_redis_that_evicts_keys_by_itself_is_warned_of_once(
    tmp_path: Path, logs: Logs, arguments: tuple[str, ...], warned: list[str]
) -> None:
    async with plain(tmp_path / "cache", *arguments) as (_process, port):
        await eventually(lambda: answers(port))
        store = Store.from_url(f"redis://127.0.0.1:{port}/0")
        memory = MirroredMemory(store)
        for name in (PIPELINE, "a/other"):
            assert (await memory.load(name)).whole
        assert [each["maxmemory_policy"] for each in logs if "evicts keys by itself" in each["event"]] == warned
        stats = await asyncio.to_thread(
            CliRunner().invoke, app, ["stats"], env={"REDIS_URL": f"redis://127.0.0.1:{port}/0"}
        )
        assert stats.exit_code == 0
        assert ("evicts keys" in stats.stderr) == bool(warned)
        await store.close()


async def test_in_a_full_redis_a_memory_at_its_bounds_goes_on(tmp_path: Path) -> None:
    async with plain(tmp_path / "full", "--maxmemory-policy", "noeviction") as (_process, port):
        await eventually(lambda: answers(port))
        store = Store.from_url(f"redis://127.0.0.1:{port}/0", journal_bytes=100_000)
        memory = MirroredMemory(store, capacity=100)
        await memory.load(PIPELINE)

        async def a_round(number: int) -> None:
            await memory.record(PIPELINE, {"kind": "decision", "round": str(number), "reply": "x" * 5_000})
            each = experience(number, surprisal=float(number % 7))
            await memory.save([each], PIPELINE, {"round": str(number)}, {})

        for number in range(120):
            await a_round(number)
        async with redis.Redis(port=port) as client:
            await client.config_set("maxmemory", "1mb")
        for number in range(120, 140):
            await a_round(number)
            assert memory.available
        assert (await store.load(PIPELINE)).state == {"round": "139"}
        assert (await journal(store))[-1]["round"] == "139"
        await store.close()
