"""The simulated driver keeps the driver API's promises, and the hook in front of it keeps every one of them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cuda_hook.accuracy.cases import Bench
from cuda_hook.accuracy.container import finish
from cuda_hook.accuracy.ground_truth import GroundTruth
from tests.cuda_hook.conftest import RunProgram
from tests.cuda_hook.programs import semantics

PROGRAMS = [
    semantics.events_measure_the_kernels_between_them,
    semantics.a_wait_for_an_event_orders_two_streams,
    semantics.the_legacy_stream_waits_for_blocking_streams_only,
    semantics.the_twins_mean_different_default_streams,
    semantics.a_captured_graph_runs_only_when_launched,
    semantics.an_updated_graph_takes_its_new_kernels_time,
    semantics.an_unsafe_call_of_any_thread_breaks_a_global_capture,
    semantics.work_on_the_legacy_stream_beside_a_capture_is_refused,
    semantics.a_capture_forks_and_has_to_join_again,
    semantics.synchronising_a_capturing_stream_is_refused,
    semantics.host_functions_run_between_the_work_around_them,
    semantics.a_cooperative_grid_must_fit_the_device,
    semantics.a_full_queue_blocks_the_launch,
    semantics.bytes_copied_there_come_back,
    semantics.a_forked_child_cannot_use_its_parents_driver,
    semantics.a_child_forked_before_the_first_call_starts_afresh,
    semantics.procedure_addresses_follow_version_and_stream_flag,
    semantics.a_stream_destroyed_with_work_in_flight_finishes_it,
]


def _name(program: Callable[[], None]) -> str:
    return program.__name__


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("program", PROGRAMS, ids=_name)
def test_on_the_driver_alone(
    bench: Bench, gpu: GroundTruth, run_program: RunProgram, program: Callable[[], None]
) -> None:
    run_program(program, bench.container("alone", hooked=False))


@pytest.mark.parametrize("rate", [1.0, 0.9], ids=["passing through", "limiting"])
@pytest.mark.parametrize("program", PROGRAMS, ids=_name)
def test_under_the_hook(
    hook: Path, bench: Bench, gpu: GroundTruth, run_program: RunProgram, program: Callable[[], None], rate: float
) -> None:
    container = bench.container("hooked")
    container.set_rate(rate)
    run_program(program, container)


def test_streams_overlap_when_the_device_is_told_so(driver: None, tmp_path: Path, run_program: RunProgram) -> None:
    bench = Bench(tmp_path / "bench", arbiter="concurrent")
    gpu = bench.gpu()
    run_program(semantics.streams_of_one_context_overlap_where_blocks_fit, bench.container("alone", hooked=False))
    # Four kernels of 20 ms at once keep the device busy for little more than 20 ms: the union counts, not the sum.
    assert 19_000_000 < gpu.busy_ns("alone") < 60_000_000


@pytest.mark.parametrize(("arbiter", "share"), [("rr", 0.5), ("fifo", 1 / 6)])
def test_two_contexts_share_the_device_as_it_arbitrates(
    driver: None, tmp_path: Path, arbiter: str, share: float
) -> None:
    bench = Bench(tmp_path / "bench", arbiter=arbiter)
    gpu = bench.gpu()
    # In one queue whoever fills it first has it for a second: there both wait for each kernel.
    option = ":sync" if arbiter == "fifo" else ""
    loads = {"short": f"kernel:1000:132{option}", "long": f"kernel:5000:132{option}"}
    processes = [bench.container(name, hooked=False).start("sair-load", load) for name, load in loads.items()]
    _wait(lambda: all(gpu.busy_ns(name) > 0 for name in loads))
    time.sleep(0.6)
    until = time.monotonic_ns()
    busy = [gpu.busy_bins(name, until - 500_000_000, until).sum() for name in loads]
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert sum(busy) == pytest.approx(500e6, rel=0.01 if arbiter == "rr" else 0.1)
    assert busy[0] / sum(busy) == pytest.approx(share, abs=0.05)


def test_a_killed_process_gives_back_its_queue_and_its_place(bench: Bench, gpu: GroundTruth) -> None:
    victim = bench.container("victim", hooked=False).start("sair-load", "kernel:50000:132")
    _wait(lambda: gpu.busy_ns("victim") > 0)
    assert gpu.processes() == 1
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert gpu.processes() == 0
    report = finish(bench.container("next", hooked=False).start("sair-load", "kernel:1000:132:sync", "iterations=10"))
    # What the victim had queued, a thousand kernels of 50 ms, is gone with it.
    assert (report["until_ns"] - report["from_ns"]) / 1e9 < 2.0


def test_ground_truth_counts_exactly_what_was_launched(bench: Bench, gpu: GroundTruth) -> None:
    finish(bench.container("one", hooked=False).start("sair-load", "kernel:700:132", "iterations=500"))
    assert gpu.busy_ns("one") == 500 * 700_000
    assert gpu.kernels("one") == 500
