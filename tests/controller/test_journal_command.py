import asyncio
import json
from pathlib import Path

import typer
from typer.testing import CliRunner, Result

from controller.journal_command import explain, replay
from controller.memory.command import app as memory
from controller.memory.keys import Keys
from controller.memory.store import Store
from controller.rollback_command import rollback
from tests.controller.histories import KEY, history, recorded_run

app = typer.Typer()
app.command()(explain)
app.command()(replay)
app.command()(rollback)


async def sair(*arguments: str, environment: dict[str, str] | None = None) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, list(arguments), env=environment or {})


async def test_a_history_is_explained_and_replayed_from_redis_and_from_a_file_alike(
    store: Store, redis_url: str, tmp_path: Path
) -> None:
    await recorded_run(store, 300)
    file = tmp_path / "memory.jsonl"
    await asyncio.to_thread(CliRunner().invoke, memory, ["export", "-o", str(file), "--redis-url", redis_url])
    for command in (
        ("explain", KEY, "3"),
        ("explain", KEY),
        ("replay", KEY, "--policy", "hold"),
        ("rollback", KEY, "2"),
    ):
        from_redis = await sair(*command, "--redis-url", redis_url)
        from_file = await sair(*command, "--from-file", str(file), "--redis-url", "redis://127.0.0.1:1/0")
        assert from_redis.exit_code == 0, from_redis.stderr
        assert from_redis.stdout == from_file.stdout
    assert "Round 3 of" in (await sair("explain", KEY, "3", "--redis-url", redis_url)).stdout
    shown = (await sair("replay", KEY, "--redis-url", redis_url)).stdout
    assert "9 rounds decided again (in-context)" in shown
    assert "rebuilt exactly in 9 of 9 rounds" in shown


async def test_what_cannot_be_told_is_one_line(store: Store, redis_url: str, tmp_path: Path) -> None:
    await recorded_run(store, 130)
    for command, words in (
        (("explain", "no/such"), f"Redis has nothing about no/such; it knows {KEY}"),
        (("replay", KEY.split("/")[1]), f"; it knows {KEY}"),
        (("explain", KEY, "77"), "the journal has no round 77; it has 0 to 3"),
        (("replay", KEY, "--policy", "magic"), "in-context or hold"),
        (("replay", KEY, "--set", "magic=1"), "a parameter such as"),
        (
            ("replay", KEY, "--set", "caution=abc"),
            "'caution=abc' is not allowed; expected a value of the parameter's type",
        ),
        (("replay", KEY, "--from-file", str(tmp_path / "none")), "No such file"),
        (("rollback", KEY, "77"), "has no round 77"),
        (("rollback", KEY), "the round to undo"),
        (("rollback", KEY, "1", "--hold", "soon"), "--hold"),
    ):
        done = await sair(*command, "--redis-url", redis_url)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert words in done.stderr


async def test_an_export_without_the_pipeline_names_those_it_has(store: Store, redis_url: str, tmp_path: Path) -> None:
    await recorded_run(store, 100)
    file = tmp_path / "memory.jsonl"
    await asyncio.to_thread(CliRunner().invoke, memory, ["export", "-o", str(file), "--redis-url", redis_url])
    done = await sair("explain", "no/such", "--from-file", str(file))
    assert (done.exit_code, done.stderr) == (2, f"sair: memory.jsonl has nothing about no/such; it knows {KEY}\n")


async def test_a_pipeline_whose_first_round_is_not_over_and_a_redis_with_none_are_told_apart(
    store: Store, redis_url: str
) -> None:
    assert "it knows no pipeline yet" in (await sair("explain", "a/b", "--redis-url", redis_url)).stderr
    await store.client.hset("sair:{a/b}:controller", "round", "0")
    assert "the journal of a/b is empty" in (await sair("explain", "a/b", "--redis-url", redis_url)).stderr


async def test_a_record_that_cannot_be_read_is_named_beside_what_can_be_told(store: Store, redis_url: str) -> None:
    await recorded_run(store, 130)
    key = Keys(KEY).decisions
    await store.client.xadd(key, {"kind": "decision", "round": "4x"})
    done = await sair("explain", KEY, "--redis-url", redis_url)
    assert done.exit_code == 0
    assert done.stdout.startswith("Round 3 of")
    assert done.stderr.startswith(f"unreadable: {key}")
    assert "'4x' is not allowed; expected a whole number of rounds" in done.stderr
    await store.client.delete(key)
    await store.client.xadd(key, {"kind": "nonsense", "round": "4"})
    done = await sair("explain", KEY, "--redis-url", redis_url)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"no round of {KEY} can be read: {key}" in done.stderr


async def test_a_rollback_to_a_round_whose_record_is_damaged_or_held_says_which(store: Store, redis_url: str) -> None:
    await recorded_run(store, 130)
    for number, fields, words in (
        ("4", {"before_json": "{"}, "before_json"),
        ("5", {"problem": "held: no scrape"}, "round 5 was not decided (held: no scrape)"),
    ):
        await store.append_decision(KEY, {"kind": "decision", "round": number, **fields})
        done = await sair("rollback", KEY, number, "--redis-url", redis_url)
        assert (done.exit_code, done.stdout) == (2, "")
        assert words in done.stderr


async def test_a_plan_that_would_be_refused_says_why(store: Store, redis_url: str) -> None:
    await recorded_run(store, 130)
    wild = {"inference": {"replicas": 400, "cpu_m": 500, "memory_mi": 4096, "gpu_milli": 300}}
    newest = (await history(store))[0][-1].decision
    await store.append_decision(KEY, {**newest, "round": "4", "before_json": json.dumps(wild)})
    done = await sair("rollback", KEY, "4", "--redis-url", redis_url)
    assert done.exit_code == 2
    assert "→ 400" in done.stdout
    assert "nothing was changed" not in done.stdout
    assert "it would be refused: bounds: inference replicas 400 is outside its bounds" in done.stderr
    assert "over the budget" in done.stderr


async def test_a_rollback_is_a_plan_until_it_is_told_to_act(store: Store, redis_url: str) -> None:
    await recorded_run(store, 500)
    rounds, _ = await history(store)
    done = await sair("rollback", KEY, "0", "--redis-url", redis_url)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == "nothing was changed; --apply does it"
    before, seen = rounds[0].allocations("before_json"), rounds[-1].observation()
    assert before is not None
    assert seen is not None
    now = rounds[-1].allocations("after_json") if rounds[-1].applied is not None else seen.allocations
    assert now is not None
    differing = {name for name in before if before[name] != now[name]}
    assert differing
    assert all(f"  {name}: " in done.stdout for name in differing)


async def test_without_a_cluster_a_rollback_is_refused_in_one_line(
    store: Store, redis_url: str, tmp_path: Path
) -> None:
    await recorded_run(store, 130)
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n"
        "users: [{name: u, user: {}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n"
    )
    for path, words in ((str(kubeconfig), "127.0.0.1"), (str(tmp_path / "none"), "none")):
        done = await sair(
            "rollback", KEY, "0", "--apply", "--redis-url", redis_url, environment={"SAIR_CONTROLLER_KUBECONFIG": path}
        )
        assert done.exit_code == 2
        # It runs in the tests' own process, where others may write to stderr too.
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("sair: ")]
        assert words in error
        assert "Traceback" not in done.stderr
