"""Whatever a program does, and whatever happens to its files, the hook neither breaks it nor lets it go unlimited."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cuda_hook.accuracy.cases import Bench
from cuda_hook.accuracy.container import Container, finish, hook_library
from cuda_hook.accuracy.ground_truth import GroundTruth
from cuda_hook.agent.page import PAGE_BYTES, Page
from tests.cuda_hook.conftest import RunProgram
from tests.cuda_hook.programs import robust


@contextmanager
def _loaded(container: Container, gpu: GroundTruth, load: str = "kernel:1000:8192") -> Iterator[subprocess.Popen[str]]:
    process = container.start("sair-load", load)
    try:
        deadline = time.monotonic() + 20
        while gpu.busy_ns(container.name) == 0:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
        assert process.poll() is None, process.communicate()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def _share(gpu: GroundTruth, name: str, seconds: float) -> float:
    before, start = gpu.busy_ns(name), time.monotonic_ns()
    time.sleep(seconds)
    return (gpu.busy_ns(name) - before) / (time.monotonic_ns() - start)


@pytest.mark.parametrize(
    "program",
    [
        robust.many_threads_launch_on_streams_of_their_own,
        robust.forks_and_the_child_works_when_the_parent_had_not_begun,
        robust.forks_while_other_threads_launch,
        robust.starts_another_program_that_launches,
        robust.opens_and_closes_the_driver_again_and_again,
    ],
    ids=lambda program: program.__name__,
)
def test_programs_run_to_their_end(
    hook: Path, bench: Bench, gpu: GroundTruth, run_program: RunProgram, program: Callable[[], None]
) -> None:
    container = bench.container("one")
    container.set_rate(0.5)
    run_program(program, container)


@pytest.mark.parametrize("program", [robust.launches_through_every_lookup, robust.launches_by_every_kind_of_call])
def test_no_launch_passes_by_the_hook(
    hook: Path, bench: Bench, gpu: GroundTruth, run_program: RunProgram, program: Callable[[], None]
) -> None:
    container = bench.container("one")
    container.set_rate(0.5)
    launched = int(run_program(program, container))
    with Page(container.page) as page:
        view = page.read()
    assert sum(s.retired_launches for s in view.gpus) + sum(s.launches for s in view.slots) == launched


def test_a_fork_during_the_hooks_start_leaves_no_lock_behind(
    hook: Path, bench: Bench, gpu: GroundTruth, run_program: RunProgram
) -> None:
    container = bench.container("one")
    container.set_rate(0.5)
    with container.page.open("wb") as page:
        fcntl.lockf(page, fcntl.LOCK_EX)
        run_program(robust.forks_while_another_thread_starts_the_hook, container)


def test_the_grant_is_followed_after_the_environment_was_overwritten(
    hook: Path, bench: Bench, gpu: GroundTruth, run_program: RunProgram
) -> None:
    container = bench.container("one")
    container.set_rate(0.3)
    run_program(robust.overwrites_its_environment_before_the_grant_changes, container)
    with Page(container.page) as page:
        assert page.read().rate == pytest.approx(0.6)


def test_a_vanished_grant_keeps_the_last_good_rate(hook: Path, bench: Bench, gpu: GroundTruth) -> None:
    container = bench.container("one")
    container.set_rate(0.4)
    with _loaded(container, gpu):
        time.sleep(0.4)
        container.grant.unlink()
        time.sleep(0.3)
        # The upper side only: a busy host may keep the application from taking its share.
        assert _share(gpu, "one", 1.5) < 0.44


@pytest.mark.parametrize("spoil", [Path.unlink, lambda grant: grant.write_text("banana")], ids=["vanished", "garbled"])
def test_a_process_that_starts_without_a_readable_grant_goes_on_with_the_containers_rate(
    hook: Path, bench: Bench, gpu: GroundTruth, spoil: Callable[[Path], object]
) -> None:
    container = bench.container("one")
    container.set_rate(0.4)
    with _loaded(container, gpu):
        spoil(container.grant)
        time.sleep(0.3)
        with _loaded(container, gpu), Page(container.page) as page:
            before, start, rates = gpu.busy_ns("one"), time.monotonic_ns(), set()
            while time.monotonic_ns() - start < 1_500_000_000:
                rates.add(page.read().rate)
                time.sleep(0.002)
            share = (gpu.busy_ns("one") - before) / (time.monotonic_ns() - start)
    assert rates == {0.4}
    assert share < 0.44
    # Nor does one that starts after all the others have ended.
    finish(container.start("sair-load", "kernel:200:132", "iterations=100"))
    with Page(container.page) as page:
        assert page.read().rate == pytest.approx(0.4)


@pytest.mark.parametrize("garbage", ["", "banana", "1.5", "-0.3", "0", "nan", "0.3 0.4", "9" * 5000, "\x00\xff"])
def test_a_garbled_grant_never_lets_the_container_loose(
    hook: Path, bench: Bench, gpu: GroundTruth, garbage: str
) -> None:
    container = bench.container("one")
    container.set_rate(0.3)
    with _loaded(container, gpu):
        time.sleep(0.3)
        container.grant.write_text(garbage, encoding="latin-1")
        time.sleep(0.3)
        assert _share(gpu, "one", 0.8) < 0.36


def test_a_killed_process_leaves_the_budget_to_its_siblings(hook: Path, bench: Bench, gpu: GroundTruth) -> None:
    container = bench.container("one")
    container.set_rate(0.4)
    with _loaded(container, gpu, "kernel:1000:132"):
        for _ in range(5):
            victim = container.start("sair-load", "kernel:5000:132")
            time.sleep(0.25)
            victim.send_signal(signal.SIGKILL)
            victim.communicate()
        time.sleep(0.5)
        kernels = gpu.kernels("one")
        assert _share(gpu, "one", 1.5) < 0.45
        assert gpu.kernels("one") - kernels > 150, "the survivor has its budget back"


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * PAGE_BYTES, b"\x00" * (2 * PAGE_BYTES)])
def test_a_page_of_garbage_is_made_anew(hook: Path, bench: Bench, gpu: GroundTruth, content: bytes) -> None:
    container = bench.container("one")
    container.set_rate(0.5)
    container.page.write_bytes(content)
    finish(container.start("sair-load", "kernel:200:132", "iterations=100"))
    with Page(container.page) as page:
        assert page.read().rate == pytest.approx(0.5)


def test_a_page_truncated_while_in_use_kills_nobody(hook: Path, bench: Bench, gpu: GroundTruth) -> None:
    container = bench.container("one")
    container.set_rate(0.5)
    with _loaded(container, gpu):
        os.truncate(container.page, 0)
        time.sleep(1.0)
        assert _share(gpu, "one", 1.0) < 0.6


@pytest.mark.parametrize("place", ["/nonexistent/stats", "/proc/stats", "/dev/null"])
def test_without_a_usable_page_the_process_is_limited_alone(
    hook: Path, bench: Bench, gpu: GroundTruth, place: str
) -> None:
    container = bench.container("one")
    container.set_rate(0.3)
    process = container.start("sair-load", "kernel:1000:132", "seconds=1.5", extra={"SAIR_STATS_PATH": place})
    report = finish(process)
    assert gpu.busy_ns("one") / (report["until_ns"] - report["from_ns"]) < 0.36


@pytest.mark.parametrize("command", [["/bin/true"], [sys.executable, "-c", "import ssl, ctypes; print('hello')"]])
def test_programs_without_cuda_are_unaffected(hook: Path, tmp_path: Path, command: list[str]) -> None:
    container = Container("one", tmp_path / "pod", tmp_path / "gpu")
    container.set_rate(0.3)
    plain = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, timeout=30, check=False)
    environment = container.environment() | {"LD_LIBRARY_PATH": "/nonexistent"}
    hooked = subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False)
    assert (hooked.returncode, hooked.stdout, hooked.stderr) == (plain.returncode, plain.stdout, plain.stderr)
    assert not container.page.exists()


def test_without_configuration_the_hook_passes_everything_through(hook: Path, bench: Bench, gpu: GroundTruth) -> None:
    container = bench.container("one")
    container.set_rate(0.1)
    environment = container.environment()
    for name in ("SAIR_GRANT_FILE", "SAIR_STATS_PATH"):
        del environment[name]
    program = hook_library().parent / "driver" / "sair-load"
    done = subprocess.run(
        [program, "kernel:1000:132", "iterations=300"], env=environment, capture_output=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    # 300 ms of work at a tenth would have taken 3 s; the device's own record shows how densely it was packed.
    now = time.monotonic_ns()
    bins = gpu.busy_bins("one", now - 3_000_000_000, now)
    assert bins.max() == 1_000_000
    assert (bins == 1_000_000).sum() > 200
