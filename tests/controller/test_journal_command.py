import asyncio
from pathlib import Path

import typer
from typer.testing import CliRunner, Result

from controller.journal_command import explain, replay
from controller.memory.command import app as memory
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
        (("explain", "no/such"), "the journal of no/such is empty"),
        (("explain", KEY, "77"), "the journal has no round 77; it has 0 to 3"),
        (("replay", KEY, "--policy", "magic"), "in-context or hold"),
        (("replay", KEY, "--set", "magic=1"), "a parameter such as"),
        (("replay", KEY, "--from-file", str(tmp_path / "none")), "No such file"),
        (("rollback", KEY, "77"), "has no round 77"),
    ):
        done = await sair(*command, "--redis-url", redis_url)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert words in done.stderr


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
        assert done.stderr.startswith("sair: ")
        assert done.stderr.count("\n") == 1
        assert words in done.stderr
