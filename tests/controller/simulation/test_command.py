"""The commands as people run them: as processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SAIR = [sys.executable, "-c", "from sair.cli import main; main()"]


def environment(folder: Path) -> dict[str, str]:
    hidden = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "REDIS_URL")
    return {name: value for name, value in os.environ.items() if name not in hidden} | {"TEST_RUN": str(folder)}


def processes_about(folder: Path) -> list[str]:
    """Command lines of all descendants of a run: they inherit its environment; a Redis server overwrites it, but stands in the folder."""
    found = []
    mark = f"TEST_RUN={folder}\0".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stands_in = str((entry / "cwd").readlink())
            if mark in (entry / "environ").read_bytes() or stands_in.startswith(str(folder)):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "out"
    assert processes_about(tmp_path / "out") == []


def simulate(folder: Path, *options: str, **method: str) -> subprocess.CompletedProcess[str]:
    command = [*SAIR, "simulate", "--out", str(folder), *options]
    env = environment(folder) | {f"SAIR_METHOD_{name.upper()}": value for name, value in method.items()}
    return subprocess.run(command, capture_output=True, text=True, timeout=110, env=env, check=False)


def test_a_run_ends_with_a_table_a_report_and_the_lines_that_read_its_memory(folder: Path) -> None:
    ended = simulate(folder, "--duration", "300", "--policy", "sair", "--policy", "hpa", "--policy", "threshold")
    assert ended.returncode == 0, ended.stderr
    assert "no language model is configured" in ended.stdout
    for row in ("SAIR (built-in policy)", "HPA (defaults)", "threshold"):
        assert row in ended.stdout
    assert "redis-cli HGETALL 'sair:{simulated/image-classification}:experience:" in ended.stdout
    assert (folder / "report.html").stat().st_size > 10_000
    assert list(folder.glob("*.svg"))


def test_a_pipeline_with_two_sinks_is_simulated_as_any_other(folder: Path) -> None:
    options = ("--pipeline", "document-tagging", "--workload", "poisson", "--duration", "240")
    ended = simulate(folder, *options, "--policy", "sair", "--policy", "static")
    assert ended.returncode == 0, ended.stderr
    assert "SAIR (built-in policy)" in ended.stdout
    assert "right-sized static" in ended.stdout
    assert "redis-cli HGETALL 'sair:{simulated/document-tagging}:experience:" in ended.stdout


def test_the_same_seed_gives_the_same_run(folder: Path) -> None:
    rows = []
    for _ in range(2):
        ended = simulate(folder, "--duration", "240", "--policy", "sair", "--seed", "7")
        rows.append([line for line in ended.stdout.splitlines() if "SAIR (built-in policy) │" in line])
    assert rows[0] == rows[1] != []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--pipeline", "nope"], "image-classification"),
        (["--workload", "nope"], "ramp-burst"),
        (["--policy", "nope"], "one of sair, hpa"),
    ],
)
def test_an_unknown_choice_is_one_line_with_what_is_allowed(folder: Path, options: list[str], said: str) -> None:
    ended = simulate(folder, *options)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_malformed_trace_names_its_file_and_line(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("10\n12\nmany\n")
    ended = simulate(folder, "--trace", str(trace))
    assert ended.returncode == 2
    assert f"{trace}:3" in ended.stderr
    trace.unlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "out"
    command = [*SAIR, "simulate", "--out", str(folder), "--duration", "86400", "--policy", "sair", "--policy", "static"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(folder) | {"PYTHONUNBUFFERED": "1"},
        # What is started in the background of a script ignores SIGINT, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # no threads here
    ) as process:
        assert process.stdout is not None
        while "req/s" not in process.stdout.readline():
            assert process.poll() is None
        running = processes_about(folder)
        assert any("-server" in line for line in running)
        assert any("spawn_main" in line for line in running)
        process.send_signal(number)
        # Reading on: one that waits for room in a full pipe could not end.
        process.communicate(timeout=90)
    deadline = time.monotonic() + 60
    while processes_about(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_about(folder) == []
    if number == signal.SIGINT:
        assert process.returncode == 130


def test_what_one_run_remembers_is_where_the_next_begins(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "memory.jsonl"
    options = ("--duration", "240", "--policy", "sair", "--remember", str(file))
    first = simulate(folder, *options)
    assert first.returncode == 0, first.stderr
    assert "Begins with 0 experiences" in first.stdout
    lines = len(file.read_text().splitlines())
    second = simulate(folder, *options, "--seed", "2")
    assert second.returncode == 0, second.stderr
    assert f"Begins with {lines - 2} experiences" in second.stdout
    assert len(file.read_text().splitlines()) > lines


def test_pieces_of_the_method_can_be_chosen_for_a_simulation(folder: Path) -> None:
    options = ("--workload", "burst", "--duration", "900", "--policy", "sair")
    plain, without = simulate(folder, *options), simulate(folder, *options, reflex="off", pareto="off")
    assert "method:" not in plain.stdout
    assert "; method: pareto False, reflex False" in " ".join(without.stdout.split())
    assert _row(plain, "SAIR") != _row(without, "SAIR")
    assert _row(simulate(folder, *options, "--seeds", "2", reflex="off"), "SAIR") != _row(
        simulate(folder, *options, "--seeds", "2"), "SAIR"
    )
    assert "SAIR_METHOD_REFLEXES" in simulate(folder, *options, reflexes="off").stderr


def _row(ended: subprocess.CompletedProcess[str], policy: str) -> str:
    """Of the table."""
    return next(line for line in ended.stdout.splitlines() if line.startswith("│") and policy in line)


def test_several_seeds_give_differences_with_intervals(folder: Path) -> None:
    ended = simulate(folder, "--duration", "120", "--policy", "sair", "--policy", "threshold", "--seeds", "2")
    assert ended.returncode == 0, ended.stderr
    (row,) = [line for line in ended.stdout.splitlines() if line.lstrip("│ ").startswith("threshold")]
    assert "pt [" in row
