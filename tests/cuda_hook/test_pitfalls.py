"""What is known to have broken other hooks: captures, ranks that wait for each other, contexts that die, unusual ways in."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cuda_hook.accuracy.cases import Bench
from cuda_hook.accuracy.container import Container, finish, hook_library
from cuda_hook.accuracy.ground_truth import GroundTruth
from cuda_hook.agent.page import PAGE_BYTES, Page
from tests.cuda_hook.conftest import ROOT, RunProgram
from tests.cuda_hook.programs import capture, waiting

_SOURCES = ROOT / "cuda_hook" / "tests" / "programs"
_SLOTS, _SLOT_BYTES = 128, 256


def _launches(container: Container) -> int:
    with Page(container.page) as page:
        view = page.read()
    return sum(section.retired_launches for section in view.gpus) + sum(slot.launches for slot in view.slots)


@pytest.mark.parametrize(
    "program",
    [
        capture.a_global_capture_survives_limited_launches_of_another_thread,
        capture.a_global_capture_may_begin_at_any_moment_of_another_threads_launch,
        capture.the_twins_capture_too,
        waiting.a_launch_does_not_wait_for_ever_for_one_that_cannot_run,
        waiting.known_work_that_cannot_run_does_not_use_up_the_room,
    ],
    ids=lambda program: program.__name__,
)
@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_programs_run_to_their_end(
    hook: Path, bench: Bench, gpu: GroundTruth, run_program: RunProgram, program: Callable[[], None], rate: float
) -> None:
    container = bench.container("one")
    container.set_rate(rate)
    run_program(program, container)


@pytest.mark.parametrize(
    "program",
    [waiting.contexts_come_and_go_with_work_in_flight, capture.a_graph_is_charged_whenever_it_runs],
    ids=lambda program: program.__name__,
)
def test_every_launch_is_counted_once(
    hook: Path, bench: Bench, gpu: GroundTruth, run_program: RunProgram, program: Callable[[], None]
) -> None:
    container = bench.container("one")
    container.set_rate(0.6)
    launched = int(run_program(program, container))
    assert _launches(container) == launched


def test_a_graph_that_was_updated_is_charged_its_new_cost(
    hook: Path, bench: Bench, gpu: GroundTruth, run_program: RunProgram
) -> None:
    container = bench.container("one")
    container.set_rate(0.3)
    ended_ns = int(run_program(capture.graphs_that_change_under_way, container))
    busy = gpu.busy_bins("one", ended_ns - 2_000_000_000, ended_ns)
    # Charged as before, the eightfold work would have the device to itself.
    assert busy.mean() / 1e6 < 0.34


def test_a_launch_on_two_devices_is_charged_to_each(hook: Path, bench: Bench, run_program: RunProgram) -> None:
    bench.directory.mkdir(parents=True)
    gpu = GroundTruth(bench.directory / "gpu", settings={"SAIR_SIMGPU_DEVICES": "2"})
    container = bench.container("one")
    container.set_rate(0.3)
    ended_ns = int(run_program(waiting.one_cooperative_launch_on_two_devices, container))
    for device in range(2):
        busy = gpu.busy_bins("one", ended_ns - 2_000_000_000, ended_ns, device=device)
        assert 0 < busy.mean() / 1e6 < 0.34


def _compile(directory: Path, source: str, *arguments: str) -> Path:
    program = directory / Path(source).stem
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", str(program), str(_SOURCES / source), *arguments], check=True)
    return program


def test_a_statically_linked_runtime_is_limited(hook: Path, bench: Bench, gpu: GroundTruth, tmp_path: Path) -> None:
    runtime, archive, main = tmp_path / "runtime.o", tmp_path / "libruntime.a", tmp_path / "main.c"
    subprocess.run(["gcc", "-Wall", "-Werror", "-c", "-o", runtime, _SOURCES / "static_runtime.c"], check=True)
    subprocess.run(["ar", "rcs", archive, runtime], check=True)
    main.write_text("int runtime_launches(int); int main(void) { return runtime_launches(50); }\n")
    program = tmp_path / "program"
    subprocess.run(["gcc", "-o", program, main, archive, "-ldl"], check=True)
    container = bench.container("one")
    container.set_rate(0.5)
    assert subprocess.run([program], env=container.environment(), timeout=30, check=False).returncode == 0
    assert _launches(container) == 50


def test_constructors_and_destructors_may_launch(hook: Path, bench: Bench, gpu: GroundTruth) -> None:
    driver = hook_library().parent / "driver"
    program = _compile(bench.directory, "early.c", f"-L{driver}", f"-Wl,-rpath,{driver}", "-lcuda")
    container = bench.container("one")
    container.set_rate(0.5)
    assert subprocess.run([program], env=container.environment(), timeout=30, check=False).returncode == 0
    assert _launches(container) == 25


def _own_start_ticks() -> int:
    return int(Path(f"/proc/{os.getpid()}/stat").read_text().rsplit(")", 1)[1].split()[19])


def test_a_process_that_finds_the_page_full_is_limited_by_itself(hook: Path, bench: Bench, gpu: GroundTruth) -> None:
    container = bench.container("one")
    container.set_rate(0.3)
    finish(container.start("sair-load", "kernel:200:132", "iterations=5"))
    # Every slot belongs to a process that lives: this one.
    slot = struct.pack("<QQ", 1 << 32 | os.getpid(), _own_start_ticks()).ljust(_SLOT_BYTES, b"\0")
    with container.page.open("r+b") as file:
        file.seek(PAGE_BYTES - _SLOTS * _SLOT_BYTES)
        file.write(slot * _SLOTS)
    report = finish(container.start("sair-load", "kernel:1000:132", "seconds=1.5"))
    assert gpu.busy_ns("one") / (report["until_ns"] - report["from_ns"]) < 0.36
    with Page(container.page) as page:
        assert page.read().slots_refused >= 1
