"""The simulated NVML is as coarse, as late and, when told so, as wrong as the real one."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuda_hook.accuracy.cases import Bench
from cuda_hook.accuracy.ground_truth import BUILD, GroundTruth

ROOT = Path(__file__).resolve().parents[2]

_READER = """
import json, sys, time
from cuda_hook.agent.nvml import Nvml
nvml = Nvml()
since = int(time.time() * 1e6)
time.sleep(float(sys.argv[1]))
samples = nvml.process_utilization(0, since)
print(json.dumps([[s.pid, s.end_us - since, s.busy] for s in samples]))
"""


def _samples(gpu: GroundTruth, seconds: float) -> list[tuple[int, int, float]]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "LD_LIBRARY_PATH": str(BUILD / "driver"),
        "SAIR_SIMGPU_PATH": str(gpu.path),
    }
    command = [sys.executable, "-c", _READER, str(seconds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return [(pid, end, busy) for pid, end, busy in json.loads(done.stdout)]


@pytest.fixture
def busy(bench: Bench, gpu: GroundTruth) -> Iterator[subprocess.Popen[str]]:
    """A process that always has work queued."""
    process = bench.container("busy", hooked=False).start("sair-load", "kernel:1000:132")
    deadline = time.monotonic() + 20
    while gpu.busy_ns("busy") < 300_000_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield process
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_process_is_sampled_every_sixth_of_a_second_in_whole_percents(
    busy: subprocess.Popen[str], gpu: GroundTruth
) -> None:
    samples = _samples(gpu, 1.2)
    assert {pid for pid, _, _ in samples} == {busy.pid}
    assert len(samples) in (6, 7, 8)
    ends = [end for _, end, _ in samples]
    assert [late - early for early, late in itertools.pairwise(ends)] == pytest.approx(
        [166_667] * (len(ends) - 1), abs=200
    )
    assert [share for _, _, share in samples] == pytest.approx([1.0] * len(samples))


def test_a_bias_shows_in_every_sample(busy: subprocess.Popen[str], gpu: GroundTruth) -> None:
    gpu.configure("nvml_bias_permille", -200)
    assert {share for _, _, share in _samples(gpu, 0.8)} == {0.8}


def test_a_process_that_died_is_no_longer_listed(busy: subprocess.Popen[str], gpu: GroundTruth) -> None:
    busy.send_signal(signal.SIGKILL)
    busy.communicate()
    assert _samples(gpu, 0.5) == []
