import asyncio
import json
from pathlib import Path

import pytest
import redis.asyncio as redis
from typer.testing import CliRunner, Result

from controller.memory.command import app
from controller.memory.store import Store
from tests.builders import experience
from tests.controller.histories import KEY, recorded_run

PIPELINE = "default/vision"


async def sair_memory(url: str, *arguments: str) -> Result:
    """Run ``sair memory …`` in a thread of its own, as it has a loop of its own."""
    return await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--redis-url", url])


def refused(result: Result, words: str) -> None:
    """One line on stderr, nothing on stdout, exit status 2."""
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("sair: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


async def test_an_export_taken_over_elsewhere_is_the_same_memory(store: Store, redis_url: str, tmp_path: Path) -> None:
    await recorded_run(store, 200)
    file = tmp_path / "memory.jsonl"
    done = await sair_memory(redis_url, "export", "-o", str(file))
    assert (done.exit_code, done.stdout) == (0, "")
    assert "5 experiences" in done.stderr
    first = file.read_text().splitlines()
    assert json.loads(first[0]) == {"kind": "header", "schema": "1"}
    await store.client.flushall()
    for expected in ("5 added, 0 repaired, 0 kept", "0 added, 0 repaired, 5 kept"):
        done = await sair_memory(redis_url, "import", str(file))
        assert done.exit_code == 0
        assert expected in done.stderr
    piped = await sair_memory(redis_url, "export", KEY)
    assert piped.stdout.splitlines() == first


async def test_a_file_with_one_bad_line_changes_nothing(store: Store, redis_url: str, tmp_path: Path) -> None:
    await recorded_run(store, 130)
    good = (await sair_memory(redis_url, "export")).stdout
    await store.client.flushall()
    file = tmp_path / "bad.jsonl"
    file.write_text(good + '{"kind":"experience","pipeline":"a/b","id":"1","fields":{}}\n')
    lines = good.count("\n") + 1
    refused(await sair_memory(redis_url, "import", str(file)), f"bad.jsonl:{lines} round: None is not allowed")
    assert await store.client.dbsize() == 0
    refused(await sair_memory(redis_url, "import", str(tmp_path / "none")), "No such file")
    file.write_bytes(b"\xff\xfe")
    refused(await sair_memory(redis_url, "import", str(file)), "UTF-8")


async def test_statistics_count_what_is_there_and_what_cannot_be_read(store: Store, redis_url: str) -> None:
    await store.restore(PIPELINE, [experience(n, surprisal=float(n)) for n in range(11)], {"round": "11"}, {})
    await store.client.hset("sair:{default/vision}:experience:0000000010", "round", "x")
    done = await sair_memory(redis_url, "stats")
    assert done.exit_code == 0
    rows = {
        cells[0].strip(): cells[1].strip() for line in done.stdout.splitlines() if len(cells := line.split("│")[1:]) > 1
    }
    assert rows["experiences"] == "10 (in-context 10)"
    assert rows["unreadable entries"] == "1"
    assert rows["oldest"] == "2023-11-14 22:13:20"
    assert rows["newest"] == "2023-11-14 22:17:50"
    assert rows["surprisals at 0%/10%/50%/90%/100%"] == "+0.000 / +0.900 / +4.500 / +8.100 / +9.000"
    assert int(rows["bytes in Redis"].replace(",", "")) > 11 * 500
    refused(await sair_memory(redis_url, "stats", "no/such"), "memory knows no pipeline no/such")


async def test_pruning_forgets_what_taught_least_and_never_a_frontier_point(store: Store, redis_url: str) -> None:
    # The least surprising is the only one on the frontier.
    dominated = [experience(n, surprisal=1.0 + n) for n in range(1, 80)]
    best = experience(0, surprisal=0.0)
    object.__setattr__(best, "outcome", type(best.outcome)(0.1, 0.1, 0.0))
    await store.restore(PIPELINE, [best, *dominated], {"round": "80"}, {})
    await store.client.zadd("sair:{default/vision}:experiences", {"ghost": 1.0})
    dry = await sair_memory(redis_url, "prune", PIPELINE, "--keep", "60", "--dry-run")
    assert "20 of 80 experiences would go, 60 stay" in dry.stdout
    assert await store.count(PIPELINE) == 81
    done = await sair_memory(redis_url, "prune", PIPELINE, "--keep", "60", "--unreadable")
    assert "20 of 80 experiences are gone, 60 stay; unreadable entries: 1" in done.stdout
    loaded = await store.load(PIPELINE)
    assert [e.round for e in loaded.experiences] == [0, *range(21, 80)]
    assert not loaded.damaged
    assert len(await store.top(PIPELINE, "rewards", 100)) == 60
    most = await sair_memory(redis_url, "prune", PIPELINE, "--keep", "0")
    assert "1 are frontier points, the newest 50 always stay" in most.stdout
    assert await store.count(PIPELINE) == 51


@pytest.mark.parametrize(
    ("schema", "to", "words"),
    [
        (None, "1", "Redis has no memory of SAIR"),
        ("1", "1", "memory has version 1, the only one there is. Nothing to do."),
        ("99", "1", "knows no way from there"),
        ("1", "2", "--to: '2' is not allowed; expected 1, the only version there is"),
    ],
)
async def test_there_is_one_version_to_migrate_to(
    store: Store, redis_url: str, schema: str | None, to: str, words: str
) -> None:
    if schema:
        await store.client.set("sair:schema", schema)
    done = await sair_memory(redis_url, "migrate", "--to", to)
    if "Nothing" in words or "no memory" in words:
        assert done.exit_code == 0
        assert words in done.stdout
    else:
        refused(done, words)


async def test_a_memory_of_another_version_is_not_written_to(store: Store, redis_url: str, tmp_path: Path) -> None:
    await recorded_run(store, 100)
    file = tmp_path / "memory.jsonl"
    await sair_memory(redis_url, "export", "-o", str(file))
    await store.client.set("sair:schema", "99")
    for command in (("import", str(file)), ("prune", KEY, "--keep", "1"), ("export",)):
        refused(await sair_memory(redis_url, *command), "sair:schema is '99'")


async def test_a_redis_that_is_away_is_one_line_and_a_malformed_url_too(tmp_path: Path) -> None:
    for command in (("ls",), ("stats",), ("show", PIPELINE), ("export",), ("prune", PIPELINE, "--keep", "9")):
        refused(await sair_memory("redis://127.0.0.1:1/0", *command), "Redis: ConnectionError")
    refused(await sair_memory("http://127.0.0.1", "ls"), "Redis URL")


async def test_text_from_redis_cannot_steer_the_terminal(store: Store, redis_url: str) -> None:
    await store.restore(PIPELINE, [experience(1, policy="\x1b[2Jllm [red]")], {"round": "1"}, {})
    async with redis.from_url(redis_url) as client:
        await client.hset("sair:{x\x1b[2J/y}:controller", "round", "1")
    for command in (("ls",), ("show", PIPELINE), ("stats",)):
        done = await sair_memory(redis_url, *command)
        assert done.exit_code == 0
        assert "\x1b" not in done.stdout
    assert "[red]" in (await sair_memory(redis_url, "show", PIPELINE)).stdout
