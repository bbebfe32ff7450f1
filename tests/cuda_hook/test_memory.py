"""Granted memory is never exceeded by any path, is what every query reports, and is exact after every kind of release."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cuda_hook.accuracy.cases import Bench
from cuda_hook.accuracy.ground_truth import GroundTruth
from tests.cuda_hook.conftest import ROOT, RunProgram
from tests.cuda_hook.programs import memory

_LIMIT = {"SAIR_GPU_MEMORY_MIB": "256"}


@pytest.mark.parametrize(
    "program",
    [memory.every_path_counts_and_gives_back_exactly, memory.a_destroyed_context_gives_its_memory_back],
    ids=lambda program: program.__name__,
)
@pytest.mark.parametrize("under", ["the driver alone", "the hook without a limit", "the hook with a limit"])
def test_accounting_is_exact(
    hook: Path, bench: Bench, gpu: GroundTruth, run_program: RunProgram, program: Callable[[], None], under: str
) -> None:
    container = bench.container("one", hooked="hook" in under)
    run_program(program, container, extra=_LIMIT if "with a limit" in under else {})
    assert gpu.memory_bytes("one") == 0


@pytest.mark.parametrize(
    "program",
    [
        memory.no_path_exceeds_the_limit,
        memory.graphs_count_what_they_allocate_until_they_are_destroyed,
        memory.captures_the_same_again_and_again,
        memory.pools_belong_to_the_device,
        memory.what_a_pool_keeps_counts,
        memory.many_threads_use_pools,
        memory.physical_memory_counts_while_anything_uses_it,
        memory.counts_what_the_card_gives_out,
        memory.the_limit_is_what_the_device_reports,
        memory.nvml_reports_the_limit_as_well,
        memory.queries_leave_out_a_sibling_that_died,
    ],
    ids=lambda program: program.__name__,
)
def test_the_limit_holds(
    hook: Path, bench: Bench, gpu: GroundTruth, run_program: RunProgram, program: Callable[[], None]
) -> None:
    run_program(program, bench.container("one"), extra=_LIMIT)


def test_a_pool_that_grows_by_more_than_fits_is_refused(
    hook: Path, bench: Bench, gpu: GroundTruth, run_program: RunProgram
) -> None:
    program, extra = memory.a_pool_that_grows_by_more_than_fits_is_refused, {"SAIR_SIMGPU_POOL_MIB": "64"}
    run_program(program, bench.container("one"), extra=_LIMIT | extra)


@pytest.mark.parametrize(
    "program",
    [memory.counts_where_it_lies, memory.nvml_reports_the_device_that_is_asked_about],
    ids=lambda program: program.__name__,
)
def test_of_two_devices_each_has_its_own_memory(
    hook: Path, bench: Bench, run_program: RunProgram, program: Callable[[], None]
) -> None:
    bench.directory.mkdir(parents=True)
    GroundTruth(bench.directory / "gpu", settings={"SAIR_SIMGPU_DEVICES": "2"})
    run_program(program, bench.container("one"), extra=_LIMIT)


def test_a_sibling_that_died_is_left_out_without_a_grant_as_well(
    hook: Path, bench: Bench, gpu: GroundTruth, run_program: RunProgram
) -> None:
    """With a memory limit alone no launch looks for dead siblings."""
    container = bench.container("one")
    run_program(memory.queries_leave_out_a_sibling_that_died, container, extra=_LIMIT | {"SAIR_GRANT_FILE": ""})


def test_memory_of_a_killed_process_is_free_again(
    hook: Path, bench: Bench, gpu: GroundTruth, run_program: RunProgram
) -> None:
    container = bench.container("one")
    container.set_rate(1.0)
    code = "from tests.cuda_hook.programs.memory import holds_memory_and_dies as program; program()"
    environment = container.environment({"PYTHONPATH": str(ROOT), **_LIMIT})
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, timeout=60, check=False)
    assert done.returncode == -9
    run_program(memory.has_the_whole_limit, container, extra=_LIMIT)
    assert gpu.memory_bytes("one") == 0
