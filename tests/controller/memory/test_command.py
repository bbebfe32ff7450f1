import asyncio
import json
import os
import stat
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


async def test_rounds_that_ended_alike_are_pruned_though_all_of_them_are_the_best(store: Store, redis_url: str) -> None:
    await store.restore(PIPELINE, [experience(number) for number in range(80)], {"round": "80"}, {})
    done = await sair_memory(redis_url, "prune", PIPELINE, "--keep", "60")
    assert "20 of 80 experiences are gone, 60 stay" in done.stdout
    assert [each.round for each in (await store.load(PIPELINE)).experiences] == list(range(20, 80))
    assert "1 in 1 load buckets" in (await sair_memory(redis_url, "stats", PIPELINE)).stdout


async def test_a_backup_stays_as_it_was_until_the_next_one_is_complete(
    store: Store, redis_url: str, tmp_path: Path
) -> None:
    await store.restore(PIPELINE, [experience(1)], {"round": "1"}, {})
    file, link = tmp_path / "backup.jsonl", tmp_path / "link.jsonl"
    assert (await sair_memory(redis_url, "export", "-o", str(file))).exit_code == 0
    before = file.read_text()
    file.chmod(0o640)
    link.symlink_to(file)
    refused(await sair_memory(redis_url, "export", "typo/name", "-o", str(file)), "nothing of a pipeline typo/name")
    assert (await sair_memory(redis_url, "export", PIPELINE, "typo/name", "-o", str(file))).exit_code == 2
    assert file.read_text() == before
    refused(await sair_memory("redis://127.0.0.1:1/0", "export", PIPELINE, "-o", str(file)), "ConnectionError")
    assert file.read_text() == before
    await store.restore(PIPELINE, [experience(2)], {"round": "2"}, {})
    assert (await sair_memory(redis_url, "export", "-o", str(link))).exit_code == 0
    assert file.read_text().count("\n") == before.count("\n") + 1
    assert (link.is_symlink(), file.stat().st_mode & 0o777) == (True, 0o640)
    assert set(await asyncio.to_thread(os.listdir, tmp_path)) == {file.name, link.name}
    assert (await sair_memory(redis_url, "export", "-o", "/dev/null")).exit_code == 0
    assert stat.S_ISCHR((await asyncio.to_thread(os.stat, "/dev/null")).st_mode)
    for wrong, why in ((tmp_path, "Is a directory"), (tmp_path / "no" / "file", "No such file or directory")):
        refused(await sair_memory(redis_url, "export", PIPELINE, "-o", str(wrong)), f"that can be written ({why})")
    full = await sair_memory(redis_url, "export", "-o", "/dev/full")
    assert (full.exit_code, "No space left on device" in full.stderr) == (2, True)


async def test_a_memory_without_a_controllers_state_is_known_too(store: Store, redis_url: str) -> None:
    await store.restore("no/state", [experience(1, pipeline="no/state")], {}, {})
    await store.append_decision("only/journal", {"kind": "decision", "round": "1"})
    await store.client.delete("sair:{only/journal}:writes")
    await store.claim("only/claim")
    assert await store.pipelines() == ("no/state", "only/claim", "only/journal")
    listed = (await sair_memory(redis_url, "ls")).stdout
    assert all(name in listed for name in ("no/state", "only/claim", "only/journal"))
    done = await sair_memory(redis_url, "export")
    kinds = [(line.get("pipeline"), line["kind"]) for line in map(json.loads, done.stdout.splitlines())]
    assert kinds == [(None, "header"), ("no/state", "experience"), ("only/journal", "decision")]
    assert {"no/state", "only/journal"} <= set((await sair_memory(redis_url, "stats")).stdout.split())


async def test_a_pipeline_with_a_key_of_another_type_is_told_and_the_others_are_listed(
    store: Store, redis_url: str
) -> None:
    for name in ("a/good", "b/bad", "c/good"):
        await store.restore(name, [experience(1, pipeline=name)], {"round": "1"}, {})
        await store.append_decision(name, {"kind": "decision", "round": "1"})
    for index in ("rewards", "decisions"):
        await store.client.delete(f"sair:{{b/bad}}:{index}")
        await store.client.set(f"sair:{{b/bad}}:{index}", "x")
    for command in ("ls", "stats"):
        done = await sair_memory(redis_url, command)
        assert done.exit_code == 0
        assert all(name in done.stdout for name in ("a/good", "c/good"))
        assert "damaged: sair:{b/bad}:rewards is a string, not a zset" in done.stderr
    (line,) = [line for line in (await sair_memory(redis_url, "ls")).stdout.splitlines() if "b/bad" in line]
    assert "damaged" in line
    done = await sair_memory(redis_url, "export")
    assert (done.exit_code, "sair:{b/bad}:decisions is a string, not a stream" in done.stderr) == (2, True)


async def test_an_export_holds_nothing_that_import_refuses(store: Store, redis_url: str, tmp_path: Path) -> None:
    await store.restore(PIPELINE, [experience(1), experience(2, id="we:ird"), experience(3, id="a b")], {}, {})
    for identifier in ("5-0", "99999999999999-0"):
        await store.client.xadd("sair:{default/vision}:decisions", {"kind": "decision"}, id=identifier)
    await store.client.hset("sair:{Not A Name/x}:controller", "round", "1")
    file = tmp_path / "memory.jsonl"
    done = await sair_memory(redis_url, "export", "-o", str(file))
    assert done.exit_code == 0
    assert "2 experiences, 1 journal records; 2 unreadable entries left out" in done.stderr
    for words in ("id: 'a b' is not allowed", "id: '99999999999999-0' is not allowed", "pipeline: 'Not A Name/x'"):
        assert words in done.stderr
    named = await sair_memory(redis_url, "export", "Not A Name/x", "-o", str(tmp_path / "none"))
    refused(named, "pipeline: 'Not A Name/x' is not allowed")
    await store.client.flushall()
    done = await sair_memory(redis_url, "import", str(file))
    assert (done.exit_code, "2 added" in done.stderr) == (0, True)
    assert "takes this over only when it begins anew" in done.stderr
    assert "begins anew" not in (await sair_memory(redis_url, "import", str(file))).stderr
    assert {each.id for each in (await store.load(PIPELINE)).experiences} == {"0000000001", "we:ird"}
    # A name given twice is written once: a journal twice would be out of order.
    await sair_memory(redis_url, "export", PIPELINE, PIPELINE, "-o", str(file))
    assert (await sair_memory(redis_url, "import", str(file), "--dry-run")).exit_code == 0


async def test_standard_input_that_is_no_text_is_one_line() -> None:
    done = await asyncio.to_thread(CliRunner().invoke, app, ["import", "-"], input=b"\xff\xfe")
    refused(done, "standard input: ")
    assert "expected UTF-8 text" in done.stderr


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
