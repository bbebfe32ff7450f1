"""Streams, threads, contexts and graphs that come, change and go: what they did is charged, and nothing of them is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cuda_hook.accuracy.cases import Bench
from cuda_hook.accuracy.ground_truth import GroundTruth
from tests.cuda_hook.conftest import RunProgram
from tests.cuda_hook.programs import copies, graphs, streams


@pytest.mark.parametrize(
    "program",
    [
        streams.a_batch_of_the_legacy_stream_is_closed_though_contexts_appear,
        streams.destroyed_at_rate_1,
        streams.threads_submit_to_one_stream,
        streams.forks_beside_threads_that_launch,
        copies.every_call_that_waits_closes_the_batch,
        graphs.graphs_changed_in_every_way,
        graphs.an_executable_graph_at_an_address_used_before,
        streams.captures_into_existing_graphs,
        streams.work_in_other_contexts_is_measured,
        streams.a_context_that_is_detached,
    ],
    ids=lambda program: program.__name__,
)
def test_programs_find_their_page_as_it_should_be(
    hook: Path, bench: Bench, gpu: GroundTruth, run_program: RunProgram, program: Callable[[], None]
) -> None:
    container = bench.container("one")
    container.set_rate(0.5)
    run_program(program, container)


def _share(gpu: GroundTruth, printed: str, *, device: int = 0) -> float:
    start_ns, end_ns = map(int, printed.split())
    return float(gpu.busy_bins("one", start_ns, end_ns, device=device).mean() / 1e6)


@pytest.mark.parametrize(
    "program",
    [
        streams.threads_end_without_waiting,
        streams.threads_end_and_a_second_context_appears,
        streams.more_kernels_than_can_be_known,
        streams.more_streams_than_can_be_known,
        streams.unknown_kernels_beside_a_long_capture,
    ],
    ids=lambda program: program.__name__,
)
def test_the_share_holds_whatever_can_be_measured(
    hook: Path, bench: Bench, gpu: GroundTruth, run_program: RunProgram, program: Callable[[], None]
) -> None:
    container = bench.container("one")
    container.set_rate(0.3)
    share = _share(gpu, run_program(program, container))
    # A busy host may keep the program from taking all of its share, but never lets it take more.
    assert 0.1 < share < 0.32


def test_the_share_is_that_of_the_streams_device(hook: Path, bench: Bench, run_program: RunProgram) -> None:
    bench.directory.mkdir(parents=True)
    gpu = GroundTruth(bench.directory / "gpu", settings={"SAIR_SIMGPU_DEVICES": "2"})
    container = bench.container("one")
    container.set_rate(0.3)
    printed = run_program(streams.kernels_run_on_the_streams_device, container)
    assert 0.1 < _share(gpu, printed, device=1) < 0.33
    assert 0 < _share(gpu, printed) < 0.1
